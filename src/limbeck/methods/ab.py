"""Activation boundaries: the student learns which neurons of the teacher are active."""

from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.connectors import Through
from limbeck.core import Schedule, Setup, Stage, Term, weighted
from limbeck.methods.about import EVERY_TASK, About, Paper
from limbeck.methods.kd import kd
from limbeck.methods.reading import in_order, maps
from limbeck.methods.shared import OverLayers, check_above_zero, check_at_least, connector, matched, stage_epochs

PAPER = Paper(
    "Heo et al.",
    "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
    2019,
    "1811.03233",
)


def boundary_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    margin: float = 1.0,
    weight: float = 1.0,
    average: Literal["batch", "sum"] = "batch",
) -> Tensor:
    """Squared distance between the student's value and the margin with the sign of the teacher's value.

    This is the paper's alternative loss. With s and t the same neuron of both networks before the activation:
    (m + s)² where t <= 0 and s > -m, (m - s)² where t > 0 and s <= m, else 0. The values are summed over channels and
    positions. No gradient flows to the teacher.

    Args:
        student: maps (N, C, H, W) before the activation and after the connector.
        teacher: the same for the teacher. If the sizes differ, the larger map is average-pooled to the smaller size.
        margin: m.
        weight: of the layer.
        average: "batch" divides the sum by N, as in the authors' script; "sum" is the paper's sum.
    """
    student, teacher = matched(student, teacher.detach())
    gap = torch.where(teacher > 0, margin - student, margin + student)
    total = F.relu(gap).square().sum() * weight
    return total / len(student) if average == "batch" else total


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
    """Activation boundaries: the student first learns which neurons of the teacher are active, then the task.

    A connector, a 1x1 convolution and a BatchNorm, is added where the channels differ, as in the authors' code. The
    weight 3/1000, the factor 2 per layer and the mean over the batch are those of the authors' script; the paper gives
    none. In its second stage the script trains on soft targets only, at T = 3 without T²: ``hard: 0, soft: 0.111``.

    Args:
        setup: epochs, optimizer and schedule of each of the two stages.
        boundary: weight of the first stage's loss.
        boundary_epochs: epochs of the first stage; the default is the recipe's.
        margin: m, the distance from zero that the student's values should have.
        layer_factor: f; the l-th of L layers has the weight f^(l - L). 2 is that of the authors' script
            (bhheo/AB_distillation, cifar10_AB_distillation.py, a7701d3); the paper's formula has no factor, which is 1.
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
    losses = []
    for layer, pair in enumerate(pairs, start=1):
        source, target = (setup.shape(one) for one in pair)
        bridge = nn.Identity() if source[0] == target[0] else connector(setup, source, target, method="ab")
        weight = layer_factor ** (layer - len(pairs))
        losses.append(Through(bridge, partial(boundary_loss, margin=margin, weight=weight, average=average)))
    epochs = stage_epochs(setup, "boundary_epochs", boundary_epochs)
    terms = weighted({"boundary": Term(OverLayers(losses), in_order(pairs), boundary)})
    first = Stage("boundaries", terms, epochs, setup.optimizer, setup.schedule)
    (task,) = kd(setup, hard=hard, soft=soft, temperature=temperature)
    return (first, replace(task, name="task"))


ABOUT = About(ab, PAPER, tasks=EVERY_TASK)
