"""Activation boundaries: the student learns which neurons of the teacher are active."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Term, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.kd import kd
from limbeck.methods.reading import maps
from limbeck.methods.shared import check_factor, connector, matched, stage_epochs


def boundary_loss(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    *,
    margin: float = 1.0,
    layer_factor: float = 2.0,
    average: Literal["batch", "sum"] = "batch",
) -> Tensor:
    """Squared distance of the student from the margin on its teacher's side of zero (the paper's alternative loss).

    With s and t a neuron of each before the activation: (m + s)² where t <= 0 and s > -m, (m - s)² where t > 0 and
    s <= m, else 0. Summed over all places and channels of a layer, the l-th of L layers weighs f^(l - L).
    None of the gradient reaches the teacher.

    Args:
        students: maps (N, C, H, W) before the activation, after the connector, one a layer, shallow to deep.
        teachers: the same of the teacher; of two sizes the larger is averaged down to the smaller.
        margin: m.
        layer_factor: f; 2 in the authors' script (bhheo/AB_distillation, cifar10_AB_distillation.py, a7701d3). The
            paper's formula has no such factor: 1.
        average: "batch" divides the sum by N, as the script does; "sum" is the paper's plain sum.
    """
    total = students[0].new_zeros(())
    for place, (student, teacher) in enumerate(zip(students, teachers, strict=True), start=1):
        mine, target = matched(student, teacher.detach())
        gap = torch.where(target > 0, margin - mine, margin + mine)
        total = total + F.relu(gap).square().sum() * layer_factor ** (place - len(students))
    return total / len(students[0]) if average == "batch" else total


class Boundaries(nn.Module):
    """`boundary_loss` on the student's maps after a connector each."""

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
        """All of the student's maps, then all of the teacher's, to a scalar."""
        count = len(self.connectors)
        students = [connector(mine) for connector, mine in zip(self.connectors, tensors[:count], strict=True)]
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

    The connector, a 1x1 convolution and BatchNorm, is there only where the channels differ, as in the authors' code.
    The weight 3/1000, the factor 2 a layer and the mean over the batch are the script's; the paper gives none. After
    the first stage the script trains on soft targets alone, at T = 3 without T²: ``hard: 0, soft: 0.111``.

    Args:
        setup: epochs, optimizer and schedule of each of the two stages.
        boundary: weight of the first stage's loss.
        boundary_epochs: of the first stage; by default as many as the recipe has.
        margin: m, how far from zero the student is to be.
        layer_factor: how much more a layer weighs than the one before it; the paper's formula has 1.
        average: "batch" is the mean over the batch; "sum" the plain sum of the paper's formula.
        hard: weight of the cross-entropy with the labels in the second stage.
        soft: weight of soft targets in the second stage, see `kd`.
        temperature: T of the soft targets.
        student_layers: what gives the student's maps before the activation; by default each section's last.
        teacher_layers: the same of the teacher.

    Raises:
        LimbeckError: a network has no maps; the layers do not come in pairs; an option is out of range.
    """
    if margin < 0:
        raise LimbeckError(f"margin is {margin}: it must be 0 or more")
    check_factor(layer_factor)
    pairs = maps(setup, student_layers, teacher_layers, method="ab", activated=False)
    shapes = [(setup.shape(student), setup.shape(teacher)) for student, teacher in pairs]
    loss = Boundaries(
        [nn.Identity() if mine[0] == its[0] else connector(setup, mine, its, method="ab") for mine, its in shapes],
        margin=margin,
        layer_factor=layer_factor,
        average=average,
    )
    reads = (*(student for student, _ in pairs), *(teacher for _, teacher in pairs))
    epochs = stage_epochs(setup, "boundary_epochs", boundary_epochs)
    first = Stage(
        "boundaries", weighted({"boundary": Term(loss, reads, boundary)}), epochs, setup.optimizer, setup.schedule
    )
    (task,) = kd(setup, hard=hard, soft=soft, temperature=temperature)
    return (first, replace(task, name="task"))


ABOUT = About(
    ab,
    paper=Paper(
        "Heo et al.",
        "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
        2019,
        "1811.03233",
    ),
)
