"""Attention transfer: the student matches the teacher's spatial attention maps."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import EVERY_TASK, About, Paper
from limbeck.methods.kd import label_terms
from limbeck.methods.shared import over_layers, pooled_alike, unit

PAPER = Paper("Zagoruyko, Komodakis", "Paying More Attention to Attention", 2017, "1612.03928")


def attention_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    form: Literal["paper", "code"] = "paper",
    average: Literal["batch", "places"] = "places",
    power: float = 2.0,
) -> Tensor:
    """The distance between the normalised attention maps q = Q / ||Q||_2, Q = vec(sum over C of |A|^power).

    "paper" is 1/2 ||q_S - q_T||_2 (Eq. 2 with beta = 1), with the norm not squared. "code" is ||q_S - q_T||_2^2 without
    the 1/2, as in `at_loss` of szagoruyko/attention-transfer (utils.py, 893df54) and in RepDistiller
    (distiller_zoo/AT.py, b84f547). The two are not proportional. The "paper" mode of torchdistill is twice the form
    "paper" with the average "batch". If the sizes differ, the larger map is average-pooled first. No gradient flows to
    the teacher.

    Args:
        student: maps (N, C, H, W).
        teacher: maps (N, C', H', W').
        form: "paper" or "code".
        average: "batch" averages over N. "places" averages over N and the H * W positions; this is part of the paper's
            beta (10^3 divided by the number of positions and the batch size) and of the code's mean.
        power: exponent of the absolute activations, at least 1; a larger one emphasises the strongest activations.
    """
    student, teacher = pooled_alike(student, teacher.detach())
    student, teacher = (unit(maps.abs().pow(power).sum(dim=1).flatten(1)) for maps in (student, teacher))
    lengths = torch.linalg.vector_norm(student - teacher, dim=1)
    values = lengths / 2 if form == "paper" else (student - teacher).square().sum(dim=1)
    return values.mean() / student.shape[1] if average == "places" else values.mean()


def at(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    attention: float | Schedule = 1000.0,
    soft: float | Schedule = 0.0,
    temperature: float = 4.0,
    form: Literal["paper", "code"] = "paper",
    average: Literal["batch", "places"] = "places",
    power: float = 2.0,
    student_layers: tuple[str, ...] = (),
    teacher_layers: tuple[str, ...] = (),
) -> tuple[Stage, ...]:
    """Attention transfer: the student's spatial attention maps match the teacher's.

    The activation-based form of the paper: cross-entropy, plus the attention term summed over the output maps of the
    sections (the paper's groups). The presets are the settings of the authors' code, without and with soft targets.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        attention: weight of the attention term. The paper's beta is this weight divided by the number of positions and
            the batch size.
        soft: weight of the soft targets, with the factor T².
        temperature: T of the soft targets.
        form: "paper" is half the norm, "code" is the squared norm.
        average: mean of the attention term over the "batch" only, or also over the "places" (positions) of the map.
        power: exponent of the absolute activations before the sum over the channels; at least 1.
        student_layers: the layers whose maps are compared, shallow to deep; the default is each section's last map.
        teacher_layers: the same for the teacher.

    Raises:
        LimbeckError: the power is below 1, the temperature not above 0, or all weights are 0; a network has no maps.
    """
    if not power >= 1:
        raise LimbeckError(f"power is {power}: it must be at least 1, or the gradient is unbounded where a map is 0")
    pairs = reading.maps(setup, student_layers, teacher_layers, method="at")
    loss = partial(over_layers, partial(attention_loss, form=form, average=average, power=power))
    terms = label_terms(setup, hard=hard, soft=soft, temperature=temperature)
    terms["attention"] = Term(loss, reading.in_order(pairs), attention)
    return (Stage("at", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


PRESETS = {
    # szagoruyko/attention-transfer, cifar.py with --beta 1e+3 and alpha 0; RepDistiller uses the same.
    "authors": {"form": "code", "hard": 1.0, "attention": 1000.0},
    # The same with --alpha 0.9 --temperature 4.
    "authors_kd": {"form": "code", "hard": 0.1, "soft": 0.9, "temperature": 4.0, "attention": 1000.0},
}


ABOUT = About(at, PAPER, presets=PRESETS, tasks=EVERY_TASK)
