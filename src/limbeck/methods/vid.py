"""Variational information distillation: the student's maps predict the teacher's."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Term, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.reading import feature_pairs, in_order
from limbeck.methods.shared import label_terms, pooled_alike

Average = Literal["elements", "batch"]


class Information(nn.Module):
    """How badly a Gaussian around a regression from the student's feature explains the teacher's: -log q(t | s).

    The sum over channels and places of log sigma_c + (t - mu(s))² / (2 sigma_c²), mu three 1x1 convolutions without
    bias with ReLU between, sigma_c² = log(1 + exp(a_c)) + floor with one learnt a_c a channel of the teacher. It is
    below 0 where the variance is small and the regression good. Where the sizes differ, the larger map is pooled
    first; a vector (N, D) is a map of one place. None of the gradient reaches the teacher.

    Args:
        student: the channels of the student's feature.
        teacher: those of the teacher's.
        hidden: those between the convolutions; 0 for as many as the teacher's.
        variance: every sigma_c² at the start.
        floor: the least variance.
        average: "batch" is the paper's sum over channels and places, mean over N; "elements" the mean over all three,
            as RepDistiller (distiller_zoo/VID.py, b84f547) has it: the former over C * H * W.
    """

    def __init__(
        self,
        student: int,
        teacher: int,
        *,
        hidden: int = 0,
        variance: float = 5.0,
        floor: float = 1e-5,
        average: Average = "elements",
    ) -> None:
        super().__init__()
        between = hidden or teacher
        widths = [(student, between), (between, between), (between, teacher)]
        first, second, third = (nn.Conv2d(*pair, kernel_size=1, bias=False) for pair in widths)
        self.regressor = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        start = variance - floor
        self.spread = nn.Parameter(torch.full((teacher,), start + math.log(-math.expm1(-start))))
        self.floor = floor
        self.average = average

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a scalar."""
        student, teacher = pooled_alike(_as_map(student), _as_map(teacher.detach()))
        variance = (self.floor - F.logsigmoid(-self.spread)).reshape(1, -1, 1, 1)
        error = self.regressor(student) - teacher
        values = (error.square() / variance + variance.log()) / 2
        value: Tensor = values.mean() if self.average == "elements" else values.sum() / len(values)
        return value


def _as_map(feature: Tensor) -> Tensor:
    return feature.reshape(*feature.shape, 1, 1) if feature.dim() == 2 else feature


class OverLayers(nn.Module):
    """One loss with parameters a pair of layers, summed: first the student's tensors, then the teacher's."""

    def __init__(self, losses: Sequence[nn.Module]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)

    def forward(self, *features: Tensor) -> Tensor:
        """The sum, a scalar."""
        half = len(self.losses)
        values = [loss(features[index], features[half + index]) for index, loss in enumerate(self.losses)]
        return torch.stack(values).sum()


def vid(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    information: float | Schedule = 1.0,
    soft: float | Schedule = 0.0,
    temperature: float = 4.0,
    average: Average = "elements",
    hidden: int = 0,
    variance: float = 5.0,
    floor: float = 1e-5,
    sections: Literal["last", "all"] = "all",
    student_layers: tuple[str, ...] = (),
    teacher_layers: tuple[str, ...] = (),
) -> tuple[Stage, ...]:
    """Variational information distillation: the teacher's maps can be told from the student's.

    The paper gives no weights that hold from one network to the next, so weight, mean and regressors are those of the
    CRD benchmark (Tian et al. 2020), which took the regressors from the authors; ``average: batch`` is the paper's sum.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        information: weight of the information term, lambda, the same for every layer.
        soft: weight of the soft targets, with the factor T²; the published total has none.
        temperature: T of the soft targets.
        average: mean of the information term over all "elements", or over the "batch" alone as in the paper.
        hidden: channels between the regressors' convolutions; 0 for as many as the teacher's map has.
        variance: the Gaussians' variance at the start.
        floor: the least variance.
        sections: where no layers are named, "all" sections' maps or the "last" one's. A network without maps gives
            its hidden layers.
        student_layers: the layers to compare, shallow to deep; a map (C, H, W) or a vector (D,).
        teacher_layers: the same of the teacher.

    Raises:
        LimbeckError: a layer gives neither a map nor a vector; hidden is below 0; the floor is not above 0 or the
            variance not above it; the temperature is not above 0, or all weights are 0.
    """
    if hidden < 0:
        raise LimbeckError(f"hidden is {hidden}: allowed are whole numbers from 0")
    if not 0 < floor < variance:
        raise LimbeckError(f"variance is {variance} and floor {floor}: allowed is 0 < floor < variance")
    pairs = feature_pairs(setup, student_layers, teacher_layers, sections)
    for one in (tap for pair in pairs for tap in pair):
        if len(setup.shape(one)) not in (1, 3):
            raise LimbeckError(
                f"vid reads maps (C, H, W) or vectors (D,), but {one} gives {setup.shape(one)}: name layers that give "
                "such as student_layers and teacher_layers (what enters a classifier is written as its name and :input)"
            )
    channels = [(setup.shape(student)[0], setup.shape(teacher)[0]) for student, teacher in pairs]
    losses = [Information(*pair, hidden=hidden, variance=variance, floor=floor, average=average) for pair in channels]
    terms = label_terms(setup, hard=hard, soft=soft, temperature=temperature)
    terms["information"] = Term(OverLayers(losses), in_order(pairs), information)
    return (Stage("vid", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


ABOUT = About(
    vid, paper=Paper("Ahn et al.", "Variational Information Distillation for Knowledge Transfer", 2019, "1904.05835")
)
