"""The share of inputs that the student may answer alone if the teacher answers the rest.

The student answers an input if its confidence, the largest probability, is above a threshold. At 0 it answers all
inputs, at 1 none.
"""

from dataclasses import dataclass


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
