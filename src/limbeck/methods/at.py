"""Attention transfer: the student matches the teacher's spatial attention maps."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.reading import in_order
from limbeck.methods.shared import label_terms, over_layers, pooled_alike, unit


def attention_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    form: Literal["paper", "code"] = "paper",
    average: Literal["batch", "places"] = "places",
    power: float = 2.0,
) -> Tensor:
    """The distance of the normalised attention maps q = Q / ||Q||_2, Q = vec(sum over C of |A|^power).

    "paper" is 1/2 ||q_S - q_T||_2 (Eq. 2 with beta = 1), the norm not squared; "code" is ||q_S - q_T||_2^2 with no
    1/2, as `at_loss` of szagoruyko/attention-transfer (utils.py, 893df54) and RepDistiller (distiller_zoo/AT.py,
    b84f547) have it. No constant links the two. torchdistill's "paper" mode is twice the "paper" form averaged over
    the batch. Where the sizes differ, the larger map is pooled first. None of the gradient reaches the teacher.

    Args:
        student: maps (N, C, H, W).
        teacher: maps (N, C', H', W').
        form: "paper" or "code".
        average: "batch" is the mean over N; "places" the mean over N and over the H * W places, which is part of the
            paper's beta (10^3 divided by the map's places and the batch size) and of the code's mean.
        power: of the absolute activations, at least 1; it favours the places of the strongest ones.
    """
    student, teacher = pooled_alike(student, teacher.detach())
    mine, wanted = (unit(one.abs().pow(power).sum(dim=1).flatten(1)) for one in (student, teacher))
    lengths = torch.linalg.vector_norm(mine - wanted, dim=1)
    values = lengths / 2 if form == "paper" else (mine - wanted).square().sum(dim=1)
    return values.mean() / mine.shape[1] if average == "places" else values.mean()


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
    """Attention transfer: where the student's activations are strong follows where the teacher's are.

    Activation-based, as published: labels, and the attention of the maps that the sections (the paper's groups) give,
    summed over them. The authors' totals with their code's form, alone and beside soft targets, are in `PRESETS`.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        attention: weight of the attention term; the paper's beta is this number over the places and the batch size.
        soft: weight of the soft targets, with the factor T².
        temperature: T of the soft targets.
        form: "paper", half the norm; or "code", the squared norm.
        average: mean of the attention term over the "batch" alone, or over the map's "places" too.
        power: of the absolute activations that are summed over the channels; at least 1.
        student_layers: the layers whose maps are compared, shallow to deep; the default is every section's last.
        teacher_layers: the same of the teacher.

    Raises:
        LimbeckError: the power is below 1, the temperature not above 0, or all weights are 0; a network has no maps.
    """
    if not power >= 1:
        raise LimbeckError(f"power is {power}: it must be 1 or more, or the gradient has no bound where a map is 0")
    pairs = reading.maps(setup, student_layers, teacher_layers, method="at")
    loss = partial(over_layers, partial(attention_loss, form=form, average=average, power=power))
    terms = label_terms(setup, hard=hard, soft=soft, temperature=temperature)
    terms["attention"] = Term(loss, in_order(pairs), attention)
    return (Stage("at", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # szagoruyko/attention-transfer, cifar.py with --beta 1e+3 and alpha 0; RepDistiller's is the same.
    "authors": {"form": "code", "hard": 1.0, "attention": 1000.0},
    # The same with --alpha 0.9 --temperature 4.
    "authors_kd": {"form": "code", "hard": 0.1, "soft": 0.9, "temperature": 4.0, "attention": 1000.0},
}


ABOUT = About(
    at,
    paper=Paper(
        "Zagoruyko, Komodakis",
        "Paying More Attention to Attention",
        2017,
        "1612.03928",
    ),
    presets=PRESETS,
)
