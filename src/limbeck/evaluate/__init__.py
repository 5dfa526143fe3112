"""Metrics and cost of a network."""

from limbeck.evaluate.bias import bias_study
from limbeck.evaluate.cost import Latency, file_bytes, latency, macs, parameters
from limbeck.evaluate.landmarks import LandmarkFigures, normalised_mean_error
from limbeck.evaluate.metrics import ClassFigures, metrics, predict
from limbeck.evaluate.multi_label import MultiLabelFigures
from limbeck.evaluate.regression import RegressionFigures
from limbeck.evaluate.segmentation import SegmentationFigures

Figures = ClassFigures | MultiLabelFigures | RegressionFigures | LandmarkFigures | SegmentationFigures
"""The metrics of a network on one split, by the task of the data."""

__all__ = [
    "ClassFigures",
    "Figures",
    "Latency",
    "SegmentationFigures",
    "bias_study",
    "file_bytes",
    "latency",
    "macs",
    "metrics",
    "normalised_mean_error",
    "parameters",
    "predict",
]
