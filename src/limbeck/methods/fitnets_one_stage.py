"""Hints in one stage: Romero, Ballas, Kahou et al., "FitNets: Hints for Thin Deep Nets" (2015), arXiv:1412.6550."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.connectors import Through, valid_conv
from limbeck.core import TARGETS, LimbeckError, Schedule, Setup, Stage, Term, from_student, weighted
from limbeck.methods.alone import hard_loss
from limbeck.methods.fitnets import guided_and_hint, hint_loss, refuse_larger
from limbeck.methods.shared import check_norm


class OneStageRegressor(nn.Module):
    """RepDistiller's regressor: convolution, BatchNorm, ReLU (HobbitLong/RepDistiller, models/util.py, ConvReg).

    3x3 of stride 2 where the student's sides are twice the teacher's, a transposed 4x4 where they are half, else
    without padding as in FitNets. Shapes are (C, H, W).
    """

    def __init__(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        super().__init__()
        if len(source) != 3 or len(target) != 3:
            raise LimbeckError(
                f"the guided layer gives {source} and the hint is {target}: this regressor maps (C, H, W) to (C, H, W)"
            )
        if source[1:] == (2 * target[1], 2 * target[2]):
            self.conv: nn.Module = nn.Conv2d(source[0], target[0], 3, stride=2, padding=1)
        elif target[1:] == (2 * source[1], 2 * source[2]):
            self.conv = nn.ConvTranspose2d(source[0], target[0], 4, stride=2, padding=1)
        else:
            refuse_larger(source, target)
            self.conv = valid_conv(source, target)
        self.bn = nn.BatchNorm2d(target[0])

    def forward(self, student: Tensor) -> Tensor:
        """(N, C_S, H, W) to (N, C_T, H', W')."""
        return F.relu(self.bn(self.conv(student)))


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
        LimbeckError: the layers give no maps, or the hint is larger than the guided map and not twice its size.
    """
    student, teacher = guided_and_hint(setup, guided_layer, hint_layer)
    check_norm(setup, setup.shape(teacher), method="fitnets_one_stage")
    loss = Through(
        OneStageRegressor(setup.shape(student), setup.shape(teacher)), partial(hint_loss, average="elements")
    )
    terms = {
        "hard": Term(hard_loss, (from_student(), TARGETS), hard),
        "hint": Term(loss, (student, teacher), hint),
    }
    return (Stage("fitnets_one_stage", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)
