"""Variational information distillation: the student's maps predict the teacher's."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.connectors import as_map
from limbeck.core import LimbeckError, Schedule, Setup, Stage, Term, weighted
from limbeck.methods.about import EVERY_TASK, About, Paper
from limbeck.methods.kd import label_terms
from limbeck.methods.reading import check_map_or_vector, feature_pairs, in_order
from limbeck.methods.shared import OverLayers, check_at_least, pooled_alike

PAPER = Paper("Ahn et al.", "Variational Information Distillation for Knowledge Transfer", 2019, "1904.05835")

Average = Literal["elements", "batch"]


class Information(nn.Module):
    """-log q(t | s), where q is a Gaussian around a regression from the student's feature to the teacher's.

    The sum over channels and positions of log sigma_c + (t - mu(s))² / (2 sigma_c²). mu consists of three 1x1
    convolutions without bias, with ReLU between them. sigma_c² = log(1 + exp(a_c)) + floor, with one learnt a_c per
    channel of the teacher. The loss is below 0 where the variance is small and the regression is accurate. If the sizes
    differ, the larger map is average-pooled first; a vector (N, D) is taken as a map of one position. No gradient flows
    to the teacher.

    Args:
        student: the channels of the student's feature.
        teacher: the channels of the teacher's feature.
        hidden, variance, floor: the options of `vid`.
        average: "batch" sums over channels and positions and averages over N, as in the paper. "elements" averages over
            all three, as in RepDistiller (distiller_zoo/VID.py, b84f547): the former divided by C * H * W.
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
        student, teacher = pooled_alike(as_map(student), as_map(teacher.detach()))
        variance = (self.floor - F.logsigmoid(-self.spread)).reshape(1, -1, 1, 1)
        error = self.regressor(student) - teacher
        values = (error.square() / variance + variance.log()) / 2
        value: Tensor = values.mean() if self.average == "elements" else values.sum() / len(values)
        return value


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
    """Variational information distillation: the student's maps predict the teacher's.

    The paper gives no weights that hold for all networks, so weight, mean and regressors are those of the CRD benchmark
    (Tian et al. 2020), which took the regressors from the authors. ``average: batch`` is the paper's sum.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        information: weight of the information term, lambda, the same for every layer.
        soft: weight of the soft targets, with the factor T²; the published objective has none.
        temperature: T of the soft targets.
        average: mean of the information term over all "elements", or only over the "batch", as in the paper.
        hidden: channels between the convolutions of the regressors; 0 means as many as the teacher's map has.
        variance: the initial variance of the Gaussians.
        floor: the smallest variance.
        sections: the default layers: "all" sections or the "last" one. For a network without maps they are its hidden
            layers.
        student_layers: the layers to compare, shallow to deep; a map (C, H, W) or a vector (D,).
        teacher_layers: the same for the teacher.

    Raises:
        LimbeckError: a layer gives neither a map nor a vector; ``hidden`` is below 0; ``0 < floor < variance`` does not
            hold; the temperature is not above 0, or all weights are 0.
    """
    check_at_least(0, "hidden", hidden)
    if not 0 < floor < variance:
        raise LimbeckError(f"variance is {variance} and floor {floor}: allowed is 0 < floor < variance")
    pairs = feature_pairs(setup, student_layers, teacher_layers, sections)
    for one in in_order(pairs):
        check_map_or_vector(setup, one, method="vid")
    channels = [(setup.shape(student)[0], setup.shape(teacher)[0]) for student, teacher in pairs]
    losses = [Information(*pair, hidden=hidden, variance=variance, floor=floor, average=average) for pair in channels]
    terms = label_terms(setup, hard=hard, soft=soft, temperature=temperature)
    terms["information"] = Term(OverLayers(losses), in_order(pairs), information)
    return (Stage("vid", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


ABOUT = About(vid, PAPER, tasks=EVERY_TASK)
