"""Knowledge distillation with standardised logits."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from limbeck.core import Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.distributions import like, wide
from limbeck.methods.kd import soft_loss
from limbeck.methods.shared import check_above_zero

PAPER = Paper("Sun et al.", "Logit Standardization in Knowledge Distillation", 2024, "2403.01427")

Deviation = Literal["population", "sample"]


def standardise(logits: Tensor, *, deviation: Deviation = "population") -> Tensor:
    """The z-scores of each sample's logits: minus their mean, divided by their standard deviation.

    Args:
        logits: (N, K).
        deviation: "population", as published, divides by K inside the square root; equal logits give 0. "sample"
            divides by K - 1 and adds 1e-7 to the deviation, as in sunshangquan/logit-standardization-KD
            (mdistiller/distillers/KD.py, f6e5aa5).
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    freedom = logits.shape[1] - (1 if deviation == "sample" else 0)
    variance = centred.square().sum(dim=1, keepdim=True) / freedom
    constant = variance == 0  # where the square root has no gradient
    root = torch.where(constant, 1.0, variance).sqrt()
    if deviation == "sample":
        return centred / (torch.where(constant, 0.0, root) + 1e-7)
    return centred / root


def standardised_loss(
    student: Tensor, teacher: Tensor, *, temperature: float, deviation: Deviation = "population"
) -> Tensor:
    """T² * KL(p_T || p_S) of the softened z-scores (Algorithm 1): `soft_loss` after `standardise`.

    Summed over the classes, averaged over the batch. The loss does not change if the logits of a sample are multiplied
    by a positive number or shifted by a constant, in either network. The gradient also flows through the student's mean
    and deviation. No gradient flows to the teacher.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        temperature: T > 0, the paper's base temperature.
        deviation: see `standardise`.
    """
    scores = [standardise(wide(logits), deviation=deviation) for logits in (student, teacher.detach())]
    return like(soft_loss(*scores, temperature=temperature), student)


def kd_standardised(
    setup: Setup,
    *,
    temperature: float = 2.0,
    hard: float | Schedule = 0.1,
    soft: float | Schedule = 9.0,
    deviation: Deviation = "population",
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """Soft targets of standardised logits, so that the student matches only the relations between the logits.

    The defaults are the authors' for `kd` on CIFAR-100. With 2 classes the standardised logits are always 1 and -1, and
    the soft term has no gradient.

    Args:
        setup: epochs, optimizer and schedule.
        temperature: T of both networks' z-scores.
        hard: weight of the cross-entropy with the labels, which uses the logits as they are.
        soft: weight of the soft term, a number or a schedule.
        deviation: "population" as published, or "sample" as in the authors' code.
        student_layer: the layer read as the student's logits; the default is the network's output.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: the temperature is not above 0, both weights are 0, or the teacher is an ensemble
            averaged as distributions.
    """
    check_above_zero("temperature", temperature)
    student, teacher = reading.logits(setup, student_layer, teacher_layer)
    loss = partial(standardised_loss, temperature=temperature, deviation=deviation)
    terms = {
        "hard": hard_term(setup, student, hard),
        "soft": Term(loss, (student, teacher), soft),
    }
    return (Stage("kd_standardised", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


ABOUT = About(kd_standardised, PAPER)
