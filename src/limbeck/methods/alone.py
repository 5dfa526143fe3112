"""Training the student without a teacher: the baseline of every comparison."""

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core import TARGETS, Schedule, Setup, Stage, Tap, Term, tap
from limbeck.methods.about import EVERY_TASK, About


def hard_loss(student: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with the labels at T = 1, averaged over the batch.

    With targets (N, K), it is the mean weighted by the sum of each row. It is 0 if all rows are 0, as in a batch
    without labels. See `limbeck.data.soft_targets.SoftTargets`.

    Args:
        student: logits (N, K).
        targets: class indices (N,), int64; or probabilities times the weight of the sample, (N, K) floating.
    """
    if targets.dim() == 1:
        return F.cross_entropy(student, targets)
    whole = F.cross_entropy(student, targets.to(student.dtype), reduction="sum")
    return whole / targets.sum().clamp(min=torch.finfo(targets.dtype).tiny)


def hard_term(setup: Setup, student: Tap, weight: float | Schedule = 1.0) -> Term:
    """The term of the targets: `hard_loss`, or the loss of another task."""
    return Term(setup.hard_loss or hard_loss, (student, TARGETS), weight)


def alone(setup: Setup, *, student_layer: str = "") -> tuple[Stage, ...]:
    """The student alone: cross-entropy with the labels, without a teacher.

    This is the baseline of every comparison. It has the same recipe, initial weights and batches as the method.

    Args:
        setup: epochs, optimizer and schedule.
        student_layer: the layer read as the student's logits; the default is the network's output.
    """
    terms = {"hard": hard_term(setup, tap("student", student_layer))}
    return (Stage("alone", terms, setup.epochs, setup.optimizer, setup.schedule),)


ABOUT = About(alone, None, networks={"student": "resnet8"}, tasks=EVERY_TASK)  # a baseline, which nobody published
