"""Activation boundaries: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons" (2019), arXiv:1811.03233."""  # noqa: E501

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Tap, Term, tap, weighted
from limbeck.methods.at import pooled_alike
from limbeck.methods.kd import kd
from limbeck.methods.reading import Pair, sections


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
    pairs = unactivated(setup, student_layers, teacher_layers, method="ab")
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


def unactivated(
    setup: Setup, student_layers: tuple[str, ...], teacher_layers: tuple[str, ...], *, method: str
) -> list[Pair]:
    """Pairs of maps before the activation: those named, or the sections', the deepest with the deepest.

    Raises:
        LimbeckError: a network has no maps; one side names more layers than the other; a layer gives no map.
    """

    def taps(network: str, layers: tuple[str, ...]) -> list[Tap]:
        return [tap(network, layer) for layer in layers] or [
            section.unactivated for section in sections(setup, network, method=method)
        ]

    student, teacher = taps("student", student_layers), taps("teacher", teacher_layers)
    if student_layers and teacher_layers and len(student) != len(teacher):
        raise LimbeckError(
            f"student_layers names {len(student)} layers and teacher_layers {len(teacher)}: name them in pairs"
        )
    for one in (*student, *teacher):
        if len(setup.shape(one)) != 3:
            raise LimbeckError(f"{method} reads maps (C, H, W), but {one} gives {setup.shape(one)}")
    count = min(len(student), len(teacher))
    return list(zip(student[-count:], teacher[-count:], strict=True))


def connector(setup: Setup, source: Sequence[int], target: Sequence[int], *, method: str) -> nn.Sequential:
    """A 1x1 convolution without bias and a BatchNorm, (N, C, H, W) to (N, C', H, W), initialised as the authors do.

    Raises:
        LimbeckError: the BatchNorm would see one value a channel.
    """
    check_norm(setup, source, method=method)
    convolution = nn.Conv2d(source[0], target[0], 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(target[0]))


def check_norm(setup: Setup, shape: Sequence[int], *, method: str) -> None:
    """Raise LimbeckError where a BatchNorm on tensors of this shape would have one value a channel to go by."""
    if setup.batch_size == 1 and all(side == 1 for side in shape[1:]):
        raise LimbeckError(
            f"{method} has a BatchNorm on {tuple(shape)}, which needs 2 samples or more: batch_size is 1"
        )


def check_factor(layer_factor: float) -> None:
    """Raise LimbeckError unless the factor from layer to layer is above 0."""
    if not layer_factor > 0:
        raise LimbeckError(f"layer_factor is {layer_factor}: it must be above 0")


def stage_epochs(setup: Setup, name: str, epochs: int | None) -> int:
    """The epochs of a stage: those given under the name, else the recipe's.

    Raises:
        LimbeckError: they are fewer than 1.
    """
    if epochs is not None and epochs < 1:
        raise LimbeckError(f"{name} is {epochs}: allowed are whole numbers from 1")
    return setup.epochs if epochs is None else epochs


def matched(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """`pooled_alike`, of maps that must agree in batch and channels.

    Raises:
        LimbeckError: they do not.
    """
    if student.shape[:2] != teacher.shape[:2]:
        raise LimbeckError(f"maps of {tuple(student.shape)} and {tuple(teacher.shape)} differ in batch or channels")
    return pooled_alike(student, teacher)
