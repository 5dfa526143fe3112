"""Confidences (the probabilities of predictions) in bins, and the expected calibration error."""

import torch
from torch import Tensor

BINS = 15
"""The number of bins, of equal width in [0, 1]."""

_BELOW_ONE = 1 - 2**-24  # the greatest float32 below 1


def calibration_error(probabilities: Tensor, targets: Tensor) -> float:
    """Return the expected calibration error of probabilities (N, K), in 32 bits.

    It is the mean over the bins of the absolute difference between confidence and accuracy, weighted by the number of
    samples in each bin.
    """
    confidence, predicted = probabilities.max(dim=1)
    confidence = confidence.clamp(max=_BELOW_ONE).float()
    # The bits are those of torchmetrics, which has one more bin and takes 2 seconds to import.
    counts, confidences, hits = (
        torch.bincount(bin_of(confidence), weights, minlength=BINS + 1)
        for weights in (None, confidence, (predicted == targets).float())
    )
    gaps = (hits / counts - confidences / counts).abs().nan_to_num()
    return (gaps * (counts / len(targets))).sum().item()


def bin_of(confidence: Tensor) -> Tensor:
    """Return the bin (N,), from 0 to 14, of confidences (N,) in [0, 1]. They are compared in 32 bits."""
    return torch.bucketize(confidence.float(), torch.linspace(0, 1, BINS + 1)[1:-1], right=True)
