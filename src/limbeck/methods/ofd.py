"""Overhaul of feature distillation: the student matches the teacher's maps after a margin ReLU."""

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError, Loss, Schedule, Setup, Stage, Term, from_teacher, weighted
from limbeck.methods.about import EVERY_TASK, About, Paper
from limbeck.methods.kd import label_terms
from limbeck.methods.reading import in_order, maps, sections
from limbeck.methods.shared import OverLayers, check_above_zero, connector, matched
from limbeck.taps import check

PAPER = Paper("Heo et al.", "A Comprehensive Overhaul of Feature Distillation", 2019, "1904.01866")


def margins(norm: nn.BatchNorm2d) -> Tensor:
    """The mean of the negative values of each channel after a BatchNorm, (C,): the margins of the margin ReLU.

    A channel is assumed to be normal with mean beta and standard deviation |gamma|. Then E[x | x < 0] is
    beta - |gamma| phi(beta / |gamma|) / Phi(-beta / |gamma|). Where fewer than 0.001 of the values are negative, the
    margin is -3 |gamma|, as in the authors' code (clovaai/overhaul-distillation, CIFAR-100/distiller.py, 76344a8). It
    is computed in 64 bits; the authors' code uses 32.
    """
    one = torch.ones(norm.num_features, dtype=torch.float64)
    deviation = one if norm.weight is None else norm.weight.detach().cpu().double().abs()
    mean = 0 * one if norm.bias is None else norm.bias.detach().cpu().double()
    ratio = mean / deviation.clamp_min(torch.finfo(torch.float64).tiny)
    share = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    common = share > 0.001
    expected = mean - deviation * density / torch.where(common, share, one)
    return torch.where(common, expected, -3 * deviation)


def overhaul_loss(
    student: Tensor,
    teacher: Tensor,
    margin: Tensor,
    *,
    weight: float = 1.0,
    average: Literal["batch", "sum"] = "batch",
) -> Tensor:
    """The partial L2 distance between the student and the teacher after the teacher's margin ReLU.

    With t = max(teacher, m) it is (s - t)², and 0 where s <= t <= 0. The values are summed over channels and positions.
    No gradient flows to the teacher.

    Args:
        student: maps (N, C, H, W) after the connector.
        teacher: maps before the activation. If the sizes differ, the larger map is average-pooled to the smaller size.
        margin: m, (C,).
        weight: of the layer.
        average: "batch" divides the sum by N, as the authors' training script does; "sum" is the sum.
    """
    student, teacher = matched(student, torch.maximum(teacher.detach(), margin.view(-1, 1, 1)))
    counts = (student > teacher) | (teacher > 0)
    total = torch.where(counts, student - teacher, torch.zeros_like(student)).square().sum() * weight
    return total / len(student) if average == "batch" else total


class Overhaul(nn.Module):
    """`overhaul_loss` with a connector on the student's map and the margins (C,) of the teacher's."""

    margin: Tensor

    def __init__(self, connector: nn.Module, margin: Tensor, loss: Loss) -> None:
        super().__init__()
        self.connector = connector
        self.register_buffer("margin", margin.to(torch.get_default_dtype()))
        self.loss = loss

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a scalar, of maps (N, C, H, W)."""
        return self.loss(self.connector(student), teacher, self.margin)


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
    """Overhaul of feature distillation: the student matches the teacher's maps after a margin ReLU.

    The weight, 1/1000 for CIFAR (1/10000 for ImageNet), the factor 2 per layer and the mean over the batch are those of
    the authors' code; the paper gives none. The margins are computed when the method is called.

    Args:
        setup: epochs, optimizer and schedule.
        feature: weight of the distance between the maps.
        hard: weight of the cross-entropy with the labels.
        soft: weight of the soft targets, see `kd`; the paper has none.
        temperature: T of the soft targets.
        layer_factor: f; the l-th of L layers has the weight f^(l - L). 2 as in the authors' code; the paper has no such
            factor, which corresponds to 1.
        average: "batch" is the mean over the batch; "sum" is the sum.
        student_layers: the layers whose outputs, before the activation, are compared; the default is each section's
            last map.
        teacher_layers: the same for the teacher.
        teacher_norms: the BatchNorm layers from which the margins of the teacher's maps are computed; the default is
            the last one before each section's last activation.

    Raises:
        LimbeckError: a network has no maps; the layers do not come in pairs; the teacher has no BatchNorm there; an
            option is out of range.
    """
    check_above_zero("layer_factor", layer_factor)
    pairs = maps(setup, student_layers, teacher_layers, method="ofd", activated=False)
    names = _norms(setup, len(pairs), teacher_layers, teacher_norms)
    losses = []
    for layer, (pair, name) in enumerate(zip(pairs, names, strict=True), start=1):
        source, target = (setup.shape(one) for one in pair)
        loss = partial(overhaul_loss, weight=layer_factor ** (layer - len(pairs)), average=average)
        bridge = connector(setup, source, target, method="ofd")
        losses.append(Overhaul(bridge, _margin(setup, name, target[0]), loss))
    terms = {
        **label_terms(setup, hard=hard, soft=soft, temperature=temperature),
        "feature": Term(OverLayers(losses), in_order(pairs), feature),
    }
    return (Stage("ofd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


def _norms(
    setup: Setup, count: int, teacher_layers: tuple[str, ...], teacher_norms: tuple[str, ...]
) -> tuple[str, ...]:
    """The names of the teacher's BatchNorms, one for each map."""
    if teacher_norms and len(teacher_norms) != count:
        raise LimbeckError(
            f"teacher_norms has {len(teacher_norms)} layers for {count} maps: name one BatchNorm layer for each map"
        )
    if teacher_layers and not teacher_norms:
        raise LimbeckError("teacher_layers needs teacher_norms: name one BatchNorm layer for each map")
    return teacher_norms or tuple(section.norm for section in sections(setup, "teacher", method="ofd")[-count:])


def _margin(setup: Setup, name: str, channels: int) -> Tensor:
    """The margins from the named BatchNorm of the teacher, for a map with this number of channels."""
    if name:
        check({"teacher": setup.module("teacher", "")}, from_teacher(name))
    norm = setup.module("teacher", name) if name else None
    if not isinstance(norm, nn.BatchNorm2d):
        got = f"{name} is a {type(norm).__name__}" if name else "the teacher has none"
        raise LimbeckError(
            f"ofd computes its margins from the BatchNorm before the teacher's activation, and {got}: "
            "name BatchNorm layers as teacher_norms, or use another method"
        )
    if norm.num_features != channels:
        raise LimbeckError(
            f"the BatchNorm {name} has {norm.num_features} channels, the teacher's map {channels}: "
            "name the one that gives it as teacher_norms"
        )
    return margins(norm)


ABOUT = About(ofd, PAPER, tasks=EVERY_TASK)
