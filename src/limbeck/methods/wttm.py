"""Transformed teacher matching: only the teacher's distribution is softened, and flat ones weigh more."""

from functools import partial

from torch import Tensor

from limbeck.core import Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.distributions import divergence, like, wide
from limbeck.methods.shared import check_above_zero

PAPER = Paper("Zheng, Yang", "Knowledge Distillation Based on Transformed Teacher Matching", 2024, "2402.11148")


def transformed_loss(student: Tensor, teacher: Tensor, *, gamma: float, sample_weights: bool = True) -> Tensor:
    """The mean over the batch of U * KL(q || p_S), where U = sum_k p_T[k]^gamma and q = p_T^gamma / U.

    p_S and p_T are the softmaxes of the logits at T = 1, so q is the teacher's softmax at T = 1 / gamma. For gamma
    below 1, U is larger for a flatter p_T: it is 1 if one class has all probability, and K^(1 - gamma) if all classes
    are equally likely. KL is the sum over the classes. It is 0 for p_S = q, so equal logits give 0 only if gamma is 1.
    Source: `WTTM` and `TTM` of zkxufo/TTM (distiller_zoo/wttm.py and ttm.py, 2de9060). No gradient flows to the
    teacher.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        gamma: the exponent, above 0; below 1 it softens the teacher's distribution.
        sample_weights: multiply by U (WTTM); False gives TTM.
    """
    scaled = gamma * wide(teacher.detach()).log_softmax(dim=1)
    values = wide(divergence(student, scaled))
    return like((scaled.logsumexp(dim=1).exp() * values if sample_weights else values).mean(), student)


def wttm(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    soft: float | Schedule = 4.0,
    gamma: float = 0.2,
    sample_weights: bool = True,
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """Transformed teacher matching: the student at T = 1 matches the teacher's softened distribution.

    The default weight and exponent are those of the authors' command for WTTM beside CRD (VGG-13 to VGG-8, CIFAR-100).
    For TTM alone, with the same networks, they use ``soft: 45`` and ``gamma: 0.1``. The size of the term grows with the
    number of classes, up to K^(1 - gamma), so the weight needs tuning.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        soft: beta, weight of the divergence; a number or a schedule.
        gamma: exponent of the teacher's probabilities, 1 / T.
        sample_weights: multiply the divergence of each sample by U (WTTM); ``false`` gives TTM.
        student_layer: the layer read as the student's logits; the default is the network's output.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: gamma is not above 0, both weights are 0, or the teacher is an ensemble averaged as distributions.
    """
    check_above_zero("gamma", gamma)
    student, teacher = reading.logits(setup, student_layer, teacher_layer)
    loss = partial(transformed_loss, gamma=gamma, sample_weights=sample_weights)
    terms = {"hard": hard_term(setup, student, hard), "soft": Term(loss, (student, teacher), soft)}
    return (Stage("wttm", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


ABOUT = About(wttm, PAPER)
