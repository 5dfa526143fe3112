"""How well the confidences of a classifier fit its accuracy, before and after temperature scaling.

C. Guo, G. Pleiss, Y. Sun, K. Weinberger, "On Calibration of Modern Neural Networks" (2017).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from torch import Tensor

from limbeck.evaluate.confidence import BINS, bin_of, calibration_error

TEMPERATURES = (0.05, 20.0)
"""The range in which a temperature is fitted."""


@dataclass(frozen=True)
class Bin:
    """The samples whose confidence, the largest probability, is in one of 15 intervals of equal width of [0, 1]."""

    samples: int
    confidence: float | None  # mean; None without samples
    accuracy: float | None  # fraction of correct predictions; None without samples


@dataclass(frozen=True)
class Reliability:
    """The confidences of a network on one split compared with its accuracy."""

    ece: float  # expected calibration error in [0, 1]
    cross_entropy: float  # in nats
    bins: tuple[Bin, ...]  # 15, from low to high confidence


@dataclass(frozen=True)
class Calibration:
    """The reliability on the test split before and after temperature scaling."""

    before: Reliability
    temperature: float | None  # fitted on the validation split; None without one, or if all predictions there are right
    after: Reliability | None  # with the logits divided by the temperature; None without a temperature


def reliability(logits: Tensor, targets: Tensor) -> Reliability:
    """Compare confidence and accuracy in 64 bits.

    The expected calibration error is that of `limbeck.evaluate.confidence`.

    Args:
        logits: (N, K), finite, with N of at least 1.
        targets: (N,) int64 in [0, K).
    """
    log_probabilities = F.log_softmax(logits.double(), dim=1)
    confidence, predicted = log_probabilities.exp().max(dim=1)
    counts, confidences, hits = (
        torch.bincount(bin_of(confidence), weights, minlength=BINS).tolist()
        for weights in (None, confidence, (predicted == targets).double())
    )
    return Reliability(
        ece=calibration_error(log_probabilities.exp(), targets),
        cross_entropy=F.nll_loss(log_probabilities, targets).item(),
        bins=tuple(
            Bin(count, total / count, right / count) if count else Bin(0, None, None)
            for count, total, right in zip(counts, confidences, hits, strict=True)
        ),
    )


def fit_temperature(logits: Tensor, targets: Tensor) -> float | None:
    """Return the temperature in `TEMPERATURES` with the lowest cross-entropy of ``logits / temperature``.

    The logits (N, K) and targets (N,) are of data on which the result is not reported. The cross-entropy has one
    minimum, because it is convex in the reciprocal of the temperature. If all predictions are correct it falls with the
    temperature and has no minimum; None is returned.
    """
    if bool((logits.argmax(dim=1) == targets).all()):
        return None
    logits = logits.double()

    def cross_entropy(log_temperature: float) -> float:
        return F.cross_entropy(logits / math.exp(log_temperature), targets).item()

    found = minimize_scalar(cross_entropy, bounds=[math.log(end) for end in TEMPERATURES], method="bounded")
    return math.exp(found.x)


def calibration(logits: Tensor, targets: Tensor, validation: tuple[Tensor, Tensor] | None = None) -> Calibration:
    """Compute the reliability on a test split before and after temperature scaling.

    Args:
        logits: (N, K), finite, with N of at least 1.
        targets: (N,) int64 in [0, K).
        validation: logits (M, K) and targets (M,) of other samples, on which the temperature is fitted.
    """
    before = reliability(logits, targets)
    temperature = None if validation is None else fit_temperature(*validation)
    if temperature is None:
        return Calibration(before, None, None)
    return Calibration(before, temperature, reliability(logits.double() / temperature, targets))
