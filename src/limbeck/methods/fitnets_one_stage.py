"""The hint of FitNets and the cross-entropy in one stage: a variant that other toolkits call FitNet."""

import math
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.connectors import Through, as_map, map_shape, valid_conv
from limbeck.core import TARGETS, LimbeckError, Schedule, Setup, Stage, Term, from_student, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_loss
from limbeck.methods.fitnets import check_weights, guided_and_hint, hint_map_loss
from limbeck.methods.shared import check_norm


class OneStageRegressor(nn.Module):
    """RepDistiller's regressor: convolution, BatchNorm, ReLU (HobbitLong/RepDistiller, models/util.py, ConvReg).

    3x3 of stride 2 where the student's sides are twice the teacher's, a transposed 4x4 where they are half, else
    without padding as in FitNets. Ours: where it would have to enlarge otherwise, the map is first enlarged bilinearly
    and the convolution is 1x1; from a vector to a map a linear layer takes its place. Shapes are (C, H, W).

    Args:
        source: the student's map.
        target: the teacher's.
        activated: whether it ends in the ReLU.
    """

    def __init__(self, source: tuple[int, int, int], target: tuple[int, int, int], *, activated: bool = True) -> None:
        super().__init__()
        if source[1:] == (2 * target[1], 2 * target[2]):
            self.conv: nn.Module = nn.Conv2d(source[0], target[0], 3, stride=2, padding=1)
        elif target[1:] == (2 * source[1], 2 * source[2]):
            self.conv = nn.ConvTranspose2d(source[0], target[0], 4, stride=2, padding=1)
        elif source[1:] == (1, 1) != target[1:]:
            full = nn.Linear(source[0], math.prod(target))
            self.conv = nn.Sequential(nn.Flatten(), full, nn.Unflatten(1, target))
        elif source[1] < target[1] or source[2] < target[2]:
            resize = nn.Upsample(size=target[1:], mode="bilinear")
            self.conv = nn.Sequential(resize, nn.Conv2d(source[0], target[0], 1))
        else:
            self.conv = valid_conv(source, target)
        self.bn = nn.BatchNorm2d(target[0])
        self.activated = activated

    def forward(self, student: Tensor) -> Tensor:
        """(N, C_S, H, W), or what can be taken as such a map, to (N, C_T, H', W')."""
        given: Tensor = self.bn(self.conv(as_map(student)))
        return F.relu(given) if self.activated else given


def fitnets_one_stage(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    hint: float | Schedule = 100.0,
    guided_layer: str = "",
    hint_layer: str = "",
) -> tuple[Stage, ...]:
    """What the CRD benchmark calls FitNet: cross-entropy and a hint at once, in one stage; not the paper's method.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        hint: weight of the mean squared distance to the hint, after convolution, BatchNorm and ReLU.
        guided_layer: the student's layer; the default is what the middle of its sections gives.
        hint_layer: the teacher's, likewise.

    Raises:
        LimbeckError: the layers give neither maps nor vectors nor tokens of a square; the batch size is 1 and the hint
            has one place, for which BatchNorm has no statistics; the regressor would be huge.
    """
    student, teacher = guided_and_hint(setup, guided_layer, hint_layer)
    shapes = setup.shape(student), setup.shape(teacher)
    source, target = (map_shape(shape) for shape in shapes)
    what = f"the guided layer gives {shapes[0]} and the hint is {shapes[1]}"
    if source is None or target is None:
        raise LimbeckError(f"{what}: tokens that form no square cannot be compared as maps: name other layers")
    check_norm(setup, target, method="fitnets_one_stage")
    if source[1:] == (1, 1):
        check_weights(source[0] * math.prod(target), what)
    notes = [f"{what}, which are compared as maps {source} and {target}"] if (source, target) != shapes else []
    connector = OneStageRegressor(source, target, activated=len(shapes[1]) != 2)  # tokens are below 0 too
    if isinstance(connector.conv, nn.Sequential) and source[1:] != (1, 1):
        notes.append(f"the hint map {target} is larger than the guided map {source}, which is enlarged bilinearly")
    loss = Through(connector, partial(hint_map_loss, average="elements"))
    terms = {
        "hard": Term(hard_loss, (from_student(), TARGETS), hard),
        "hint": Term(loss, (student, teacher), hint),
    }
    told = tuple(f"fitnets_one_stage: {note}" for note in notes)
    return (Stage("fitnets_one_stage", weighted(terms), setup.epochs, setup.optimizer, setup.schedule, notes=told),)


ABOUT = About(
    fitnets_one_stage,
    paper=Paper("Romero, Ballas, Kahou et al.", "FitNets: Hints for Thin Deep Nets", 2015, "1412.6550"),
)
