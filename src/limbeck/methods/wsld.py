"""Weighted soft labels: soft targets with a weight for each sample."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core import TARGETS, Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.distributions import like, wide
from limbeck.methods.shared import check_above_zero, class_indices

PAPER = Paper(
    "Zhou, Song, Chen et al.",
    "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective",
    2021,
    "2102.00650",
)


def sample_weights(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """1 - exp(-CE(student) / CE(teacher)) of each sample at T = 1, (N,), without gradient.

    The weight is near 1 where the student's cross-entropy is much larger than the teacher's, and near 0 where it is
    much smaller. 1e-7 is added to the teacher's cross-entropy, as in the authors' code.
    """
    student, teacher = (F.cross_entropy(logits.detach(), targets, reduction="none") for logits in (student, teacher))
    return -torch.expm1(-student / (teacher + 1e-7))


def weighted_soft_loss(student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: float = 2.0) -> Tensor:
    """T² * the mean over the batch of w * the cross-entropy with the teacher's softened distribution.

    Summed over the classes; w is `sample_weights`. As in bellymonster/Weighted-Soft-Label-Distillation
    (knowledge_distiller.py, 67820dd) and `WSLD` of open-mmlab/mmrazor (90c7af1). With KL in place of the cross-entropy
    the value would be lower by the weighted entropy of the teacher, and the gradient would be the same. No gradient
    flows to the teacher or through w.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        targets: class indices (N,), int64.
        temperature: T > 0.
    """
    z_student, z_teacher = wide(student), wide(teacher.detach())  # for the gradient at a high temperature
    soft = F.cross_entropy(z_student / temperature, (z_teacher / temperature).softmax(1), reduction="none")
    return like(temperature**2 * (sample_weights(z_student, z_teacher, targets) * soft).mean(), student)


def wsld(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    soft: float | Schedule = 2.5,
    temperature: float = 2.0,
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """Soft targets with less weight on the samples on which the student is already better than the teacher.

    The defaults are the authors' for ImageNet.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels; the authors use 1.
        soft: alpha, weight of the weighted soft term; a number or a schedule.
        temperature: T of the soft term; the weights of the samples use T = 1.
        student_layer: the layer read as the student's logits; the default is the network's output.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: the temperature is not above 0, both weights are 0, the targets are not class indices, or the
            teacher is an ensemble averaged as distributions.
    """
    class_indices(setup, "wsld")
    check_above_zero("temperature", temperature)
    student, teacher = reading.logits(setup, student_layer, teacher_layer)
    terms = {
        "hard": hard_term(setup, student, hard),
        "soft": Term(partial(weighted_soft_loss, temperature=temperature), (student, teacher, TARGETS), soft),
    }
    return (Stage("wsld", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


ABOUT = About(wsld, PAPER)
