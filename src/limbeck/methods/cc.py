"""Correlation congruence: the student matches the teacher's correlations between samples."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError, Loss, Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.shared import label_terms, several_samples, unit


def correlation_loss(student: Tensor, teacher: Tensor, *, gamma: float = 0.4, order: int = 2) -> Tensor:
    """(1/N²) ||K_S - K_T||_F², K the samples' kernel matrices: a Taylor series of the Gaussian one.

    K_ij = exp(-2 gamma) sum over p from 0 to order of (2 gamma)^p / p! (x_i . x_j)^p of features x at length 1. A batch
    of one sample gives 0. Knowledge-Distillation-Zoo (kd_losses/cc.py, 65470c8) has the same. None of the gradient
    reaches the teacher.

    Args:
        student: features (N, ...), each sample's taken as a vector.
        teacher: features (N, ...).
        gamma: of exp(-gamma ||x_i - x_j||²), above 0.
        order: P, where the series ends, at least 1.
    """
    mine, wanted = (_kernel(unit(one.flatten(1)), gamma, order) for one in (student, teacher.detach()))
    return (mine - wanted).square().mean()


def _kernel(vectors: Tensor, gamma: float, order: int) -> Tensor:
    products = vectors @ vectors.T
    series = [(2 * gamma) ** power / math.factorial(power) * products**power for power in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(series).sum(dim=0)


def neighbour_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The inner product of the absolute differences of one sample and of the next of the batch, mean over N - 1 pairs.

    This is what RepDistiller (distiller_zoo/CC.py, b84f547) trains under the name of this method; it is not the
    paper's formula. The gradient reaches both, for both are embeddings that learn there. One sample gives 0.

    Args:
        student: embeddings (N, D).
        teacher: embeddings (N, D).
    """
    difference = (student - teacher).abs()
    return (difference[:-1] * difference[1:]).sum() / max(len(difference) - 1, 1)


class Embedded(nn.Module):
    """A loss on linear embeddings of both features, which learn both; the gradient ends before the teacher.

    Args:
        student: the length of the student's feature.
        teacher: of the teacher's.
        size: of the embeddings.
        loss: what compares them.
    """

    def __init__(self, student: int, teacher: int, size: int, loss: Loss) -> None:
        super().__init__()
        self.student = nn.Linear(student, size)
        self.teacher = nn.Linear(teacher, size)
        self.loss = loss

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a scalar."""
        value: Tensor = self.loss(self.student(student.flatten(1)), self.teacher(teacher.detach().flatten(1)))
        return value


def cc(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    correlation: float | Schedule = 100.0,
    soft: float | Schedule = 0.0,
    temperature: float = 4.0,
    form: Literal["kernel", "neighbours"] = "kernel",
    gamma: float = 0.4,
    order: int = 2,
    embedding: int = 128,
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """Correlation congruence: the samples of a batch correlate as they do for the teacher.

    Kernel, gamma and order are the paper's; the weight 100 is Knowledge-Distillation-Zoo's, for the paper's belongs to
    its own batches. The paper's total has soft targets too. `PRESETS` holds RepDistiller's other formula.

    Args:
        setup: epochs, optimizer and schedule; the batch size is part of the method.
        hard: weight of the cross-entropy with the labels.
        correlation: weight of the correlation term; the form "neighbours" wants a far smaller one, 0.02.
        soft: weight of the soft targets, with the factor T².
        temperature: T of the soft targets.
        form: "kernel", the paper's; or "neighbours", RepDistiller's.
        gamma: of the kernel, above 0.
        order: where the kernel's Taylor series ends, from 1.
        embedding: the length of both learnt embeddings of the form "neighbours", from 1.
        student_layer: the layer whose output is compared; the default is the feature that enters the classifier.
        teacher_layer: the same of the teacher.

    Raises:
        LimbeckError: gamma, order, embedding or temperature are out of range; the batch size is 1, or all weights
            are 0.
    """
    several_samples(setup, "cc")
    if not gamma > 0:
        raise LimbeckError(f"gamma is {gamma}: it must be above 0")
    for name, value in (("order", order), ("embedding", embedding)):
        if value < 1:
            raise LimbeckError(f"{name} is {value}: allowed are whole numbers from 1")
    pair = reading.features(setup, student_layer, teacher_layer)
    loss: Loss = partial(correlation_loss, gamma=gamma, order=order)
    if form == "neighbours":
        student, teacher = (math.prod(setup.shape(one)) for one in pair)
        loss = Embedded(student, teacher, embedding, neighbour_loss)
    terms = label_terms(setup, hard=hard, soft=soft, temperature=temperature)
    terms["correlation"] = Term(loss, pair, correlation)
    return (Stage("cc", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # HobbitLong/RepDistiller, scripts/run_cifar_distill.sh.
    "repdistiller": {"form": "neighbours", "correlation": 0.02, "embedding": 128},
}


ABOUT = About(
    cc,
    paper=Paper("Peng et al.", "Correlation Congruence for Knowledge Distillation", 2019, "1904.01802"),
    presets=PRESETS,
)
