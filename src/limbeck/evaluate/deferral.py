"""The share of inputs that the student may answer alone if the teacher answers the rest.

The student answers an input if its confidence, the largest probability, is above a threshold. At 0 it answers all
inputs, at 1 none.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError

POINTS = 100
"""The most steps of a curve."""


@dataclass(frozen=True)
class Joint:
    """Student and teacher together, on one split."""

    threshold: float  # in [0, 1]
    share: float  # fraction of inputs that the student answers
    accuracy: float  # of student and teacher together


@dataclass(frozen=True)
class Deferral:
    """What the student may answer alone."""

    curve: tuple[Joint, ...]  # on the test split, by ascending threshold: from 0 (student alone) to 1 (teacher alone)
    margin: float  # the accuracy that the pair may lose to the teacher, on the validation split
    validation: Joint | None  # the choice: the greatest share within the margin; None without a validation split
    test: Joint | None  # the same threshold on the test split


@dataclass(frozen=True, eq=False)
class Answers:
    """The logits (N, K) of student and teacher for the same samples, and their targets (N,)."""

    student: Tensor
    teacher: Tensor
    targets: Tensor

    @property
    def confidences(self) -> Tensor:
        """Of the student, (N,) in 64 bits."""
        return self.student.double().softmax(dim=1).amax(dim=1)

    def joint(self, thresholds: Tensor) -> tuple[Tensor, Tensor]:
        """How many inputs the student answers at thresholds (T,), and how many the pair has right, both (T,) int64."""
        confidences, order = self.confidences.sort(stable=True)
        right, teacher = ((logits.argmax(dim=1) == self.targets).long() for logits in (self.student, self.teacher))
        deferred = torch.searchsorted(confidences, thresholds, right=True)
        gains = torch.cat([torch.zeros(1, dtype=torch.int64), (teacher - right)[order].cumsum(0)])
        return len(order) - deferred, right.sum() + gains[deferred]

    def joints(self, thresholds: Tensor) -> tuple[Joint, ...]:
        """The figures at thresholds (T,)."""
        count = len(self.targets)
        found = zip(thresholds.tolist(), *(one.tolist() for one in self.joint(thresholds)), strict=True)
        return tuple(Joint(threshold, alone / count, right / count) for threshold, alone, right in found)


def choose(validation: Answers, margin: float) -> float:
    """Return the lowest threshold at which the pair's accuracy is at most ``margin`` below the teacher's.

    It is 0, a confidence of the student, or 1, at which the teacher answers alone.
    """
    least = int((validation.teacher.argmax(dim=1) == validation.targets).sum())
    return _lowest(validation, least - math.floor(margin * len(validation.targets) + 1e-9))


def for_accuracy(validation: Answers, accuracy: float) -> float:
    """Return the lowest threshold at which the pair reaches an accuracy, as `choose`.

    Raises:
        LimbeckError: no threshold reaches it.
    """
    chosen = _lowest(validation, math.ceil(accuracy * len(validation.targets) - 1e-9))
    (reached,) = validation.joints(torch.tensor([chosen], dtype=torch.float64))
    if reached.accuracy < accuracy - 1e-9:
        raise LimbeckError(
            f"student and teacher together do not reach an accuracy of {accuracy:g} on the validation split: the "
            f"teacher has {reached.accuracy:.4f}"
        )
    return chosen


def for_share(validation: Answers, share: float) -> float:
    """Return the highest threshold at which the student answers at least this share of the inputs, as `choose`."""
    confidences = validation.confidences.sort(descending=True).values
    answered = math.ceil(share * len(confidences) - 1e-9)
    if answered == 0:
        return 1.0
    below = confidences[confidences < confidences[answered - 1]]
    return below[0].item() if len(below) else 0.0


def _lowest(validation: Answers, right: int) -> float:
    """The lowest threshold above which the student answers some input, and the pair has so many right; or 1."""
    thresholds = torch.cat([torch.zeros(1, dtype=torch.float64), torch.unique(validation.confidences)])
    alone, correct = validation.joint(thresholds)
    fitting = thresholds[(correct >= right) & (alone > 0)]
    return fitting[0].item() if len(fitting) else 1.0


class Deferred(nn.Module):
    """A student, and the teacher behind it for inputs on which the student's confidence is at most a threshold.

    Args:
        student: inputs (N, ...) to logits (N, K).
        teacher: likewise; it gets only the inputs that the student does not answer.
        threshold: in [0, 1], such as that of an exported file.

    Attributes:
        answered: how many inputs the student has answered.
        deferred: how many the teacher has.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, threshold: float) -> None:
        super().__init__()
        if not 0 <= threshold <= 1:
            raise LimbeckError(f"the threshold is {threshold}: allowed is a confidence from 0 to 1")
        self.student, self.teacher, self.threshold = student, teacher, threshold
        self.answered = self.deferred = 0

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, ...) to logits (N, K): those of the student or of the teacher, for each input."""
        logits: Tensor = self.student(inputs)
        unsure = logits.double().softmax(dim=1).amax(dim=1) <= self.threshold
        count = int(unsure.sum())
        self.answered, self.deferred = self.answered + len(inputs) - count, self.deferred + count
        if not count:
            return logits
        return logits.index_copy(0, unsure.nonzero().flatten(), self.teacher(inputs[unsure]).to(logits))


def deferral(test: Answers, validation: Answers | None = None, *, margin: float = 0.0) -> Deferral:
    """Compute the curve on the test split, and the figures of a threshold that is chosen on the validation split.

    The choice is the best of many thresholds on the validation split. On the test split the accuracy may therefore be
    further below the teacher's than the margin.

    Args:
        test: on which all figures are reported.
        validation: of other samples.
        margin: the accuracy in [0, 1] that the pair may lose to the teacher on the validation split.

    Raises:
        LimbeckError: the margin is out of range.
    """
    if not 0 <= margin <= 1:
        raise LimbeckError(f"the margin is {margin}: allowed is an accuracy from 0 to 1")
    confidences = test.confidences.sort().values
    inner = confidences[torch.arange(1, POINTS) * len(confidences) // POINTS]
    ends = torch.tensor([0, 1], dtype=torch.float64)
    curve = test.joints(torch.unique(torch.cat([ends, inner])))
    if validation is None:
        return Deferral(curve, margin, None, None)
    chosen = torch.tensor([choose(validation, margin)], dtype=torch.float64)
    return Deferral(curve, margin, *validation.joints(chosen), *test.joints(chosen))
