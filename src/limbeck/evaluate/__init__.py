"""Metrics and cost of a network."""

from limbeck.evaluate.bias import bias_study
from limbeck.evaluate.cost import Latency, file_bytes, latency, macs, parameters
from limbeck.evaluate.landmarks import normalised_mean_error
from limbeck.evaluate.metrics import Figures, metrics, predict

__all__ = [
    "Figures",
    "Latency",
    "bias_study",
    "file_bytes",
    "latency",
    "macs",
    "metrics",
    "normalised_mean_error",
    "parameters",
    "predict",
]
