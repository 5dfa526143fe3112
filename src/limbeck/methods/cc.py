"""Correlation congruence: the student matches the teacher's correlations between samples."""

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core import Loss, Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import OF_OUTPUTS, About, Paper
from limbeck.methods.kd import label_terms
from limbeck.methods.shared import check_above_zero, check_at_least, several_samples, unit

PAPER = Paper("Peng et al.", "Correlation Congruence for Knowledge Distillation", 2019, "1904.01802")


def correlation_loss(student: Tensor, teacher: Tensor, *, gamma: float = 0.4, order: int = 2) -> Tensor:
    """(1/N²) ||K_S - K_T||_F², where K is the kernel matrix of the samples.

    K_ij = exp(-2 gamma) * sum over p = 0..P of (2 gamma)^p / p! (x_i . x_j)^p, the Taylor series of the Gaussian kernel
    for features x of length 1. A batch of one sample gives 0. The same as in Knowledge-Distillation-Zoo
    (kd_losses/cc.py, 65470c8). No gradient flows to the teacher.

    Args:
        student: features (N, ...), flattened to one vector per sample.
        teacher: features (N, ...).
        gamma: parameter of the kernel exp(-gamma ||x_i - x_j||²), above 0.
        order: P, at least 1.
    """
    student, teacher = (_kernel(unit(features.flatten(1)), gamma, order) for features in (student, teacher.detach()))
    return (student - teacher).square().mean()


def _kernel(vectors: Tensor, gamma: float, order: int) -> Tensor:
    products = vectors @ vectors.T
    series = [(2 * gamma) ** power / math.factorial(power) * products**power for power in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(series).sum(dim=0)


def neighbour_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The inner product of |e_S - e_T| of a sample with that of the next sample, averaged over the N - 1 pairs.

    This is the loss that RepDistiller (distiller_zoo/CC.py, b84f547) calls CC; it is not the paper's formula. The
    gradient flows to both arguments, because both are learnt embeddings. A batch of one sample gives 0.

    Args:
        student: embeddings (N, D).
        teacher: embeddings (N, D).
    """
    difference = (student - teacher).abs()
    return (difference[:-1] * difference[1:]).sum() / max(len(difference) - 1, 1)


class Embedded(nn.Module):
    """A loss on learnt linear embeddings, of length ``size``, of both features. No gradient flows to the teacher."""

    def __init__(self, student: int, teacher: int, size: int, loss: Loss) -> None:
        super().__init__()
        self.student = nn.Linear(student, size)
        self.teacher = nn.Linear(teacher, size)
        self.loss = loss

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a scalar."""
        return self.loss(self.student(student.flatten(1)), self.teacher(teacher.detach().flatten(1)))


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
    """Correlation congruence: the correlations between the samples of a batch match the teacher's.

    Kernel, gamma and order are those of the paper. The weight 100 is that of Knowledge-Distillation-Zoo, because the
    paper's weight depends on its batches. The paper's objective also has soft targets. The preset is RepDistiller's
    other formula.

    Args:
        setup: epochs, optimizer and schedule. The batch size affects the method.
        hard: weight of the cross-entropy with the labels.
        correlation: weight of the correlation term; the form "neighbours" needs a far smaller one, 0.02.
        soft: weight of the soft targets, with the factor T².
        temperature: T of the soft targets.
        form: "kernel" is the paper's, "neighbours" is RepDistiller's.
        gamma: parameter of the kernel, above 0.
        order: P, the last power of the Taylor series, at least 1.
        embedding: the length of the two learnt embeddings of the form "neighbours", at least 1.
        student_layer: the layer whose output is compared; the default is the feature that enters the classifier.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: gamma, order, embedding or temperature are out of range; the batch size is 1, or all weights
            are 0.
    """
    several_samples(setup, "cc")
    check_above_zero("gamma", gamma)
    check_at_least(1, "order", order)
    check_at_least(1, "embedding", embedding)
    pair = reading.features(setup, student_layer, teacher_layer)
    loss: Loss = partial(correlation_loss, gamma=gamma, order=order)
    if form == "neighbours":
        student, teacher = (math.prod(setup.shape(one)) for one in pair)
        loss = Embedded(student, teacher, embedding, neighbour_loss)
    terms = label_terms(setup, hard=hard, soft=soft, temperature=temperature)
    terms["correlation"] = Term(loss, pair, correlation)
    return (Stage("cc", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


PRESETS = {
    # HobbitLong/RepDistiller, scripts/run_cifar_distill.sh.
    "repdistiller": {"form": "neighbours", "correlation": 0.02, "embedding": 128},
}


ABOUT = About(cc, PAPER, presets=PRESETS, tasks=OF_OUTPUTS)
