"""Overhaul of feature distillation: the student matches the teacher's maps after a margin ReLU."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Term, from_teacher, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.reading import maps, sections
from limbeck.methods.shared import check_factor, connector, label_terms, matched
from limbeck.taps import check

_RARE = 0.001  # a share of negative values below which the authors' code takes three deviations instead
_DEVIATIONS = 3.0


def margins(norm: nn.BatchNorm2d) -> Tensor:
    """Each channel's mean negative value after a BatchNorm, (C,): the margin of the margin ReLU.

    A channel is taken to be normal with mean beta and deviation |gamma|. Then E[x | x < 0] is
    beta - |gamma| phi(beta / |gamma|) / Phi(-beta / |gamma|); where fewer than 0.001 of its values are negative, it is
    -3 |gamma|, as in the authors' code (clovaai/overhaul-distillation, CIFAR-100/distiller.py, 76344a8). Computed in 64
    bits, where theirs has 32.
    """
    one = torch.ones(norm.num_features, dtype=torch.float64)
    deviation = one if norm.weight is None else norm.weight.detach().cpu().double().abs()
    mean = 0 * one if norm.bias is None else norm.bias.detach().cpu().double()
    ratio = mean / deviation.clamp_min(torch.finfo(torch.float64).tiny)
    share = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    common = share > _RARE
    expected = mean - deviation * density / torch.where(common, share, one)
    return torch.where(common, expected, -_DEVIATIONS * deviation)


def overhaul_loss(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    margin: Sequence[Tensor],
    *,
    layer_factor: float = 2.0,
    average: Literal["batch", "sum"] = "batch",
) -> Tensor:
    """The partial L2 distance of the student from the teacher after its margin ReLU.

    With t = max(teacher, m): (s - t)², but 0 where s <= t <= 0. Summed over all places and channels of a layer, the
    l-th of L layers weighs f^(l - L). None of the gradient reaches the teacher.

    Args:
        students: maps (N, C, H, W) after the connector, one a layer, shallow to deep.
        teachers: maps before the activation; of two sizes the larger is averaged down to the smaller.
        margin: m of each layer, (C,).
        layer_factor: f; 2 in the authors' code. The paper has no such factor: 1.
        average: "batch" divides the sum by N, as the authors' training script does; "sum" is the plain sum.
    """
    total = students[0].new_zeros(())
    for place, (student, teacher, least) in enumerate(zip(students, teachers, margin, strict=True), start=1):
        mine, target = matched(student, torch.maximum(teacher.detach(), least.view(-1, 1, 1)))
        counts = (mine > target) | (target > 0)
        squares = torch.where(counts, mine - target, torch.zeros_like(mine)).square()
        total = total + squares.sum() * layer_factor ** (place - len(students))
    return total / len(students[0]) if average == "batch" else total


class Overhaul(nn.Module):
    """`overhaul_loss` on the student's maps after a connector each.

    Args:
        connectors: one a layer.
        margin: one (C,) a layer; kept as buffers ``margin0``, ``margin1`` and so on.
        layer_factor: see `overhaul_loss`.
        average: see `overhaul_loss`.
    """

    def __init__(
        self,
        connectors: Sequence[nn.Module],
        margin: Sequence[Tensor],
        *,
        layer_factor: float = 2.0,
        average: Literal["batch", "sum"] = "batch",
    ) -> None:
        super().__init__()
        self.connectors = nn.ModuleList(connectors)
        for place, one in enumerate(margin):
            self.register_buffer(f"margin{place}", one.to(torch.get_default_dtype()))
        self.layer_factor = layer_factor
        self.average: Literal["batch", "sum"] = average

    def forward(self, *tensors: Tensor) -> Tensor:
        """All of the student's maps, then all of the teacher's, to a scalar."""
        count = len(self.connectors)
        students = [connector(mine) for connector, mine in zip(self.connectors, tensors[:count], strict=True)]
        margin = [self.get_buffer(f"margin{place}") for place in range(count)]
        return overhaul_loss(students, tensors[count:], margin, layer_factor=self.layer_factor, average=self.average)


def ofd(
    setup: Setup,
    *,
    feature: float | Schedule = 0.001,
    hard: float | Schedule = 1.0,
    soft: float | Schedule = 0.0,
    temperature: float = 4.0,
    layer_factor: float = 2.0,
    average: Literal["batch", "sum"] = "batch",
    student_layers: tuple[str, ...] = (),
    teacher_layers: tuple[str, ...] = (),
    teacher_norms: tuple[str, ...] = (),
) -> tuple[Stage, ...]:
    """Overhaul of feature distillation: the student matches the teacher's maps before the ReLU, where that matters.

    The weight, 1/1000 for CIFAR (1/10000 for ImageNet), the factor 2 a layer and the mean over the batch are those of
    the authors' code; the paper gives none. The margins are those of the teacher at the time of the call.

    Args:
        setup: epochs, optimizer and schedule.
        feature: weight of the distance of the maps.
        hard: weight of the cross-entropy with the labels.
        soft: weight of soft targets, see `kd`; the paper has none.
        temperature: T of the soft targets.
        layer_factor: how much more a layer weighs than the one before it; the paper has 1.
        average: "batch" is the mean over the batch; "sum" the plain sum.
        student_layers: what gives the student's maps before the activation; by default each section's last.
        teacher_layers: the same of the teacher.
        teacher_norms: the BatchNorm of each of the teacher's maps, from which its margins are computed; by default the
            one before each section's last activation.

    Raises:
        LimbeckError: a network has no maps; the layers do not come in pairs; the teacher has no BatchNorm there; an
            option is out of range.
    """
    check_factor(layer_factor)
    pairs = maps(setup, student_layers, teacher_layers, method="ofd", activated=False)
    names = _norms(setup, len(pairs), teacher_layers, teacher_norms)
    shapes = [(setup.shape(student), setup.shape(teacher)) for student, teacher in pairs]
    loss = Overhaul(
        [connector(setup, mine, its, method="ofd") for mine, its in shapes],
        [_margin(setup, name, its[0]) for name, (_, its) in zip(names, shapes, strict=True)],
        layer_factor=layer_factor,
        average=average,
    )
    reads = (*(student for student, _ in pairs), *(teacher for _, teacher in pairs))
    terms = {
        **label_terms(setup, hard=hard, soft=soft, temperature=temperature),
        "feature": Term(loss, reads, feature),
    }
    return (Stage("ofd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


def _norms(
    setup: Setup, count: int, teacher_layers: tuple[str, ...], teacher_norms: tuple[str, ...]
) -> tuple[str, ...]:
    """The names of the teacher's BatchNorms, one a map."""
    if teacher_norms and len(teacher_norms) != count:
        raise LimbeckError(f"teacher_norms names {len(teacher_norms)} layers for {count} maps: name one for each")
    if teacher_layers and not teacher_norms:
        raise LimbeckError("teacher_layers are named without their BatchNorms: name one for each as teacher_norms")
    return teacher_norms or tuple(section.norm for section in sections(setup, "teacher", method="ofd")[-count:])


def _margin(setup: Setup, name: str, channels: int) -> Tensor:
    """The margins from the teacher's layer of that name, for a map of so many channels."""
    if name:
        check({"teacher": setup.module("teacher", "")}, from_teacher(name))
    norm = setup.module("teacher", name) if name else None
    if not isinstance(norm, nn.BatchNorm2d):
        got = f"{name} is a {type(norm).__name__}" if name else "the teacher has none"
        raise LimbeckError(
            f"ofd takes its margins from the weights of the BatchNorm before the teacher's activation, and {got}: "
            "name BatchNorm layers as teacher_norms, or take another method"
        )
    if norm.num_features != channels:
        raise LimbeckError(
            f"the BatchNorm {name} has {norm.num_features} channels, the teacher's map {channels}: "
            "name the one that gives it as teacher_norms"
        )
    return margins(norm)


ABOUT = About(ofd, paper=Paper("Heo et al.", "A Comprehensive Overhaul of Feature Distillation", 2019, "1904.01866"))
