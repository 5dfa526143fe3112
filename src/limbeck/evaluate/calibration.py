"""How well the confidences of a classifier fit its accuracy, before and after temperature scaling.

C. Guo, G. Pleiss, Y. Sun, K. Weinberger, "On Calibration of Modern Neural Networks" (2017).
"""

from dataclasses import dataclass


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
    temperature: float | None  # fitted on the validation split; None without one
    after: Reliability | None  # with the logits divided by the temperature; None without one
