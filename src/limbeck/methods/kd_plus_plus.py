"""KD++: the student's feature is as long as the teacher's and points to the centre of its class."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from limbeck.connectors import linear
from limbeck.core import TARGETS, LimbeckError, Schedule, Setup, Stage, Sweep, Tap, Term, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.class_distance import class_means
from limbeck.methods.kd import label_terms
from limbeck.methods.reading import with_classifier
from limbeck.methods.shared import class_indices, rising, unit

PAPER = Paper(
    "Wang, Cheng, Duan et al.",
    "Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
    2023,
    "2305.17007",
)


def norm_direction_loss(student: Tensor, teacher: Tensor, centres: Tensor) -> Tensor:
    """1 - <s, c> / (||c|| * max(||s||, ||t||)), averaged over the batch (the paper's ND loss).

    It is 0 if s points to the centre and is at least as long as t, and 2 if it points away from it. The gradient also
    flows through ||s|| where s is the longer one. A centre of zeros gives 1 and no gradient, and so do two features of
    zeros. Source: `DirectNormLoss` of WangYZ1608/Knowledge-Distillation-via-ND (CIFAR/utils.py, 3b2ff1b). No gradient
    flows to the teacher or the centres.

    Args:
        student: s, features (N, D).
        teacher: t, features (N, D).
        centres: c, the centre of each sample's class, (N, D).
    """
    longer = torch.maximum(vector_norm(student, dim=1), vector_norm(teacher.detach(), dim=1))
    along = (student * unit(centres.detach())).sum(dim=1)
    return (1 - along / longer.where(longer > 0, 1.0)).mean()


class NormDirection(nn.Module):
    """`norm_direction_loss` with the centres of the teacher's features, after a connector of the student's feature.

    Args:
        connector: (N, D) to (N, D'); it is dropped after training.
        classes: K, the number of logits.
        width: D', the length of the teacher's feature.
    """

    def __init__(self, connector: nn.Module, classes: int, width: int) -> None:
        super().__init__()
        self.connector = connector
        self.centres: Tensor
        self.register_buffer("centres", torch.zeros(classes, width))

    def forward(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar; features (N, D) and (N, D'), targets (N,)."""
        return norm_direction_loss(self.connector(student), teacher, self.centres[targets])

    def prepare(self, sweep: Sweep, teacher: Tap) -> None:
        """Compute the mean of the teacher's features of each class, before the first epoch."""
        if sweep.epoch == 0:
            self.centres.copy_(class_means(sweep, teacher, len(self.centres)))


def kd_plus_plus(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    soft: float | Schedule = 1.0,
    norm_direction: float | Schedule = 2.0,
    temperature: float = 4.0,
    warmup: float = 20 / 240,
    adapter: Literal["none", "linear"] = "none",
) -> tuple[Stage, ...]:
    """KD++: soft targets, and features that are as long as the teacher's and point to the centre of their class.

    The centres are the means of the teacher's features over the training set, not augmented. The defaults are the
    authors' for ResNet-56 to ResNet-20 on CIFAR-100; for other pairs they use ``soft`` from 1 to 4 and
    ``norm_direction`` from 0.5 to 2. If the widths differ, they put a layer into the student, so that its classifier
    reads a feature of the teacher's width; ``adapter: linear`` leaves the student as it is.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        soft: weight of the soft targets after the warm-up, see `kd`.
        norm_direction: weight of norm and direction; a number or a schedule.
        temperature: T of the soft targets.
        warmup: the fraction of the stage over which the weight of the soft targets rises linearly from 0.
        adapter: "linear" maps the student's feature to the teacher's width in this loss only. This is an extension.

    Raises:
        LimbeckError: the targets are not class indices; a network has no linear classifier; the widths differ and there
            is no adapter; an option is out of range, or all weights are 0.
    """
    class_indices(setup, "kd_plus_plus")
    student, teacher = (
        with_classifier(setup, network, method="kd_plus_plus").feature for network in ("student", "teacher")
    )
    widths = setup.shape(student), setup.shape(teacher)
    if adapter == "none" and widths[0] != widths[1]:
        raise LimbeckError(
            f"the student's feature {student} has {widths[0]}, the teacher's {teacher} has {widths[1]}: the widths "
            "must be equal, or set adapter: linear"
        )
    connector = linear(*widths) if adapter == "linear" else nn.Identity()
    loss = NormDirection(connector, setup.classes, widths[1][0])
    terms = {
        **label_terms(setup, hard=hard, soft=rising(soft, warmup), temperature=temperature),
        "norm_direction": Term(loss, (student, teacher, TARGETS), norm_direction),
    }
    stage = Stage("kd_plus_plus", weighted(terms), setup.epochs, setup.optimizer, setup.schedule)
    return (replace(stage, prepare=lambda sweep: loss.prepare(sweep, teacher)) if norm_direction else stage,)


ABOUT = About(kd_plus_plus, PAPER)
