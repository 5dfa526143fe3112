"""Activation boundaries: the student learns which neurons of the teacher are active."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import Schedule, Setup, Stage, Term, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.kd import kd
from limbeck.methods.reading import in_order, maps
from limbeck.methods.shared import check_above_zero, check_at_least, connector, matched, stage_epochs

PAPER = Paper(
    "Heo et al.",
    "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
    2019,
    "1811.03233",
)


def boundary_loss(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    *,
    margin: float = 1.0,
    layer_factor: float = 2.0,
    average: Literal["batch", "sum"] = "batch",
) -> Tensor:
    """Squared distance of the student from the margin on the teacher's side of zero (the paper's alternative loss).

    With s and t the same neuron of both networks before the activation: (m + s)² where t <= 0 and s > -m, (m - s)²
    where t > 0 and s <= m, else 0. The values of a layer are summed over channels and positions, and layer l of L is
    multiplied by f^(l - L). No gradient flows to the teacher.

    Args:
        students: maps (N, C, H, W) before the activation and after the connector, one per layer, shallow to deep.
        teachers: the same for the teacher. If the sizes differ, the larger map is average-pooled to the smaller size.
        margin: m.
        layer_factor: f; 2 in the authors' script (bhheo/AB_distillation, cifar10_AB_distillation.py, a7701d3). The
            paper's formula has no such factor, which is 1.
        average: "batch" divides the sum by N, as the script does; "sum" is the paper's sum.
    """
    total = students[0].new_zeros(())
    for layer, pair in enumerate(zip(students, teachers, strict=True), start=1):
        student, teacher = matched(pair[0], pair[1].detach())
        gap = torch.where(teacher > 0, margin - student, margin + student)
        total = total + F.relu(gap).square().sum() * layer_factor ** (layer - len(students))
    return total / len(students[0]) if average == "batch" else total


class Boundaries(nn.Module):
    """`boundary_loss` with a connector on each of the student's maps."""

    def __init__(
        self,
        connectors: Sequence[nn.Module],
        *,
        margin: float = 1.0,
        layer_factor: float = 2.0,
        average: Literal["batch", "sum"] = "batch",
    ) -> None:
        super().__init__()
        self.connectors = nn.ModuleList(connectors)
        self.margin = margin
        self.layer_factor = layer_factor
        self.average: Literal["batch", "sum"] = average

    def forward(self, *tensors: Tensor) -> Tensor:
        """The loss, a scalar, of the student's maps and then the teacher's."""
        count = len(self.connectors)
        students = [connector(student) for connector, student in zip(self.connectors, tensors[:count], strict=True)]
        return boundary_loss(
            students,
            tensors[count:],
            margin=self.margin,
            layer_factor=self.layer_factor,
            average=self.average,
        )


def ab(
    setup: Setup,
    *,
    boundary: float | Schedule = 0.003,
    boundary_epochs: int | None = None,
    margin: float = 1.0,
    layer_factor: float = 2.0,
    average: Literal["batch", "sum"] = "batch",
    hard: float | Schedule = 1.0,
    soft: float | Schedule = 0.0,
    temperature: float = 3.0,
    student_layers: tuple[str, ...] = (),
    teacher_layers: tuple[str, ...] = (),
) -> tuple[Stage, ...]:
    """Activation boundaries: the student first learns which neurons are active, then the task.

    A connector, a 1x1 convolution and a BatchNorm, is added where the channels differ, as in the authors' code. The
    weight 3/1000, the factor 2 per layer and the mean over the batch are those of the authors' script; the paper gives
    none. In its second stage the script trains on soft targets only, at T = 3 without T²: ``hard: 0, soft: 0.111``.

    Args:
        setup: epochs, optimizer and schedule of each of the two stages.
        boundary: weight of the first stage's loss.
        boundary_epochs: epochs of the first stage; the default is the recipe's.
        margin: m, the distance from zero that the student is to keep.
        layer_factor: f, the ratio of a layer's weight to that of the layer before it; 1 in the paper's formula.
        average: "batch" is the mean over the batch; "sum" is the sum of the paper's formula.
        hard: weight of the cross-entropy with the labels in the second stage.
        soft: weight of the soft targets in the second stage, see `kd`.
        temperature: T of the soft targets.
        student_layers: the layers whose outputs, before the activation, are compared; the default is each section's
            last map.
        teacher_layers: the same for the teacher.

    Raises:
        LimbeckError: a network has no maps; the layers do not come in pairs; an option is out of range.
    """
    check_at_least(0, "margin", margin)
    check_above_zero("layer_factor", layer_factor)
    pairs = maps(setup, student_layers, teacher_layers, method="ab", activated=False)
    shapes = [(setup.shape(student), setup.shape(teacher)) for student, teacher in pairs]
    loss = Boundaries(
        [
            nn.Identity() if student[0] == teacher[0] else connector(setup, student, teacher, method="ab")
            for student, teacher in shapes
        ],
        margin=margin,
        layer_factor=layer_factor,
        average=average,
    )
    epochs = stage_epochs(setup, "boundary_epochs", boundary_epochs)
    first = Stage(
        "boundaries",
        weighted({"boundary": Term(loss, in_order(pairs), boundary)}),
        epochs,
        setup.optimizer,
        setup.schedule,
    )
    (task,) = kd(setup, hard=hard, soft=soft, temperature=temperature)
    return (first, replace(task, name="task"))


ABOUT = About(ab, PAPER)
