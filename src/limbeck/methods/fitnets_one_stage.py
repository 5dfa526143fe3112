"""The hint of FitNets and the cross-entropy in one stage: a variant that other toolkits call FitNet."""

import math
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.connectors import Through, as_map, map_shape, valid_conv
from limbeck.core import TARGETS, LimbeckError, Schedule, Setup, Stage, Term, from_student, weighted
from limbeck.methods.about import About
from limbeck.methods.alone import hard_loss
from limbeck.methods.fitnets import PAPER, check_weights, guided_and_hint, hint_map_loss
from limbeck.methods.shared import check_norm


class OneStageRegressor(nn.Module):
    """RepDistiller's regressor: convolution, BatchNorm, ReLU (HobbitLong/RepDistiller, models/util.py, ConvReg).

    The convolution is 3x3 with stride 2 if the student's map is twice as large as the teacher's, a transposed 4x4 if it
    is half as large, and otherwise without padding as in FitNets. limbeck adds two cases: if the map has to be enlarged
    by another factor, it is enlarged bilinearly and the convolution is 1x1; from a vector to a map the convolution is
    replaced by a linear layer.

    Args:
        source: shape (C, H, W) of the student's map.
        target: shape (C, H, W) of the teacher's map.
        activated: whether the regressor ends in a ReLU.
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
        """(N, C_S, H, W), or tokens or a vector taken as such a map, to (N, C_T, H', W')."""
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
    """The cross-entropy and a hint in one stage, which the CRD benchmark calls FitNet; not the method of the paper.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        hint: weight of the mean squared distance to the hint, after convolution, BatchNorm and ReLU.
        guided_layer: the student's layer; the default is the output of its middle section.
        hint_layer: the same for the teacher.

    Raises:
        LimbeckError: a layer gives neither maps nor vectors nor tokens of a square; the hint has one position and the
            batch size is 1, so BatchNorm would see one value per channel; the regressor would be huge.
    """
    student, teacher = guided_and_hint(setup, guided_layer, hint_layer)
    shapes = setup.shape(student), setup.shape(teacher)
    source, target = (map_shape(shape) for shape in shapes)
    what = f"the guided layer gives {shapes[0]} and the hint is {shapes[1]}"
    if source is None or target is None:
        raise LimbeckError(f"{what}: tokens that do not form a square cannot be compared as maps: name other layers")
    check_norm(setup, target, method="fitnets_one_stage")
    if source[1:] == (1, 1):
        check_weights(source[0] * math.prod(target), what)
    notes = [f"{what}, which are compared as maps {source} and {target}"] if (source, target) != shapes else []
    connector = OneStageRegressor(source, target, activated=len(shapes[1]) != 2)  # tokens can be negative
    if isinstance(connector.conv, nn.Sequential) and source[1:] != (1, 1):
        notes.append(f"the hint map {target} is larger than the guided map {source}, which is enlarged bilinearly")
    loss = Through(connector, partial(hint_map_loss, average="elements"))
    terms = {
        "hard": Term(hard_loss, (from_student(), TARGETS), hard),
        "hint": Term(loss, (student, teacher), hint),
    }
    shown = tuple(f"fitnets_one_stage: {note}" for note in notes)
    return (Stage("fitnets_one_stage", weighted(terms), setup.epochs, setup.optimizer, setup.schedule, notes=shown),)


ABOUT = About(fitnets_one_stage, PAPER)
