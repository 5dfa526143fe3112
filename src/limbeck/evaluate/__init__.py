"""Metrics and cost of a network."""

from limbeck.evaluate.bias import best_shift, bias_study, shift_bias
from limbeck.evaluate.cost import Latency, file_bytes, latency, macs, parameters
from limbeck.evaluate.landmarks import normalised_mean_error
from limbeck.evaluate.metrics import Figures, metrics, predict

__all__ = [
    "Figures",
    "Latency",
    "best_shift",
    "bias_study",
    "file_bytes",
    "latency",
    "macs",
    "metrics",
    "normalised_mean_error",
    "parameters",
    "predict",
    "shift_bias",
]
