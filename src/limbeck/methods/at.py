"""Attention transfer: Zagoruyko, Komodakis, "Paying More Attention to Attention" (2017), arXiv:1612.03928."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from limbeck.core import TARGETS, LimbeckError, Loss, Schedule, Setup, Stage, Tap, Term, from_student, weighted
from limbeck.methods import reading
from limbeck.methods.alone import hard_loss
from limbeck.methods.kd import soft_loss


def unit(vectors: Tensor) -> Tensor:
    """The vectors of the last dimension at length 1; one of length 0 (up to 1e-12) stays, and so does its gradient."""
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.div(vectors, lengths.where(lengths > 1e-12, 1.0))


def pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps (N, C, H, W) at the smaller height and the smaller width, by adaptive average pooling.

    Square maps are treated as in RepDistiller, where the higher of the two is pooled to the other's size.

    Raises:
        LimbeckError: a tensor is no map.
    """
    for one in (student, teacher):
        if one.dim() != 4:
            raise LimbeckError(f"a map (N, C, H, W) is compared here, got {tuple(one.shape)}")
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    pooled = [one if one.shape[2:] == size else F.adaptive_avg_pool2d(one, size) for one in (student, teacher)]
    return pooled[0], pooled[1]


def over_layers(loss: Loss, *features: Tensor) -> Tensor:
    """The loss summed over pairs of layers: first the student's tensors, shallow to deep, then the teacher's."""
    half = len(features) // 2
    pairs = zip(features[:half], features[half:], strict=True)
    return torch.stack([loss(student, teacher) for student, teacher in pairs]).sum()


def in_order(pairs: Sequence[reading.Pair]) -> tuple[Tap, ...]:
    """The taps of `over_layers`: the student's, then the teacher's."""
    return tuple(pair[side] for side in (0, 1) for pair in pairs)


def label_terms(setup: Setup, *, hard: float | Schedule, soft: float | Schedule, temperature: float) -> dict[str, Term]:
    """The terms on the logits that stand beside a term on features: labels, and soft targets.

    Raises:
        LimbeckError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise LimbeckError(f"temperature is {temperature}: it must be above 0")
    return {
        "hard": Term(hard_loss, (from_student(), TARGETS), hard),
        "soft": Term(partial(soft_loss, temperature=temperature), (from_student(), *setup.teacher_logits), soft),
    }


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
