"""The hint of FitNets and the cross-entropy in one stage: a variant that other toolkits call FitNet."""

import math
from functools import partial

from torch import nn

from limbeck.connectors import AsMap, Through, map_shape
from limbeck.core import LimbeckError, Schedule, Setup, Stage, Term, from_student, weighted
from limbeck.methods.about import EVERY_TASK, About
from limbeck.methods.alone import hard_term
from limbeck.methods.fitnets import PAPER, check_weights, guided_and_hint, hint_loss, regressor
from limbeck.methods.shared import check_norm


def one_stage_regressor(
    source: tuple[int, int, int], target: tuple[int, int, int], *, activated: bool = True
) -> nn.Sequential:
    """RepDistiller's regressor: convolution, BatchNorm, ReLU (HobbitLong/RepDistiller, models/util.py, ConvReg).

    The convolution is 3x3 with stride 2 if the student's map is twice as large as the teacher's, a transposed 4x4 if it
    is half as large, and otherwise without padding as in FitNets. limbeck adds two cases: if the map has to be enlarged
    by another factor, it is enlarged bilinearly and the convolution is 1x1; from a vector to a map the convolution is
    replaced by a linear layer. Tokens and vectors are taken as maps.

    Args:
        source: shape (C, H, W) of the student's map.
        target: shape (C, H, W) of the teacher's map.
        activated: whether the regressor ends in a ReLU.
    """
    if source[1:] == (2 * target[1], 2 * target[2]):
        first: nn.Module = nn.Conv2d(source[0], target[0], 3, stride=2, padding=1)
    elif target[1:] == (2 * source[1], 2 * source[2]):
        first = nn.ConvTranspose2d(source[0], target[0], 4, stride=2, padding=1)
    elif source[1:] == (1, 1) != target[1:]:
        first = regressor(source, target, kind="full", activation="none")
    else:
        larger = source[1] < target[1] or source[2] < target[2]
        first = regressor(source, target, kind="upsample" if larger else "conv", activation="none")
    return nn.Sequential(AsMap(), first, nn.BatchNorm2d(target[0]), nn.ReLU() if activated else nn.Identity())


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
        LimbeckError: a layer gives neither maps nor vectors nor tokens that form a square; the hint has one position
            and the batch size is 1, so BatchNorm would see one value per channel; the regressor would have more than
            2**25 weights.
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
    connector = one_stage_regressor(source, target, activated=len(shapes[1]) != 2)  # tokens can be negative
    if any(isinstance(layer, nn.Upsample) for layer in connector.modules()):
        notes.append(f"the hint map {target} is larger than the guided map {source}, which is enlarged bilinearly")
    loss = Through(connector, partial(hint_loss, average="elements"))
    terms = {
        "hard": hard_term(setup, from_student(), hard),
        "hint": Term(loss, (student, teacher), hint),
    }
    shown = tuple(f"fitnets_one_stage: {note}" for note in notes)
    return (Stage("fitnets_one_stage", weighted(terms), setup.epochs, setup.optimizer, setup.schedule, notes=shown),)


ABOUT = About(fitnets_one_stage, PAPER, tasks=EVERY_TASK)
