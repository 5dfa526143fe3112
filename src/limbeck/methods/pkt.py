"""Probabilistic knowledge transfer: the student matches the teacher's similarities as probabilities."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.core import TARGETS, Schedule, Setup, Stage, Term, from_student, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_loss
from limbeck.methods.distributions import like, wide
from limbeck.methods.shared import several_samples

Form = Literal["code", "paper"]

_LEAST = 1e-7  # the authors' epsilon


def probability_loss(student: Tensor, teacher: Tensor, *, form: Form = "code") -> Tensor:
    """KL divergence of the probabilities p_ij that sample i picks sample j, from (cosine + 1) / 2.

    "paper" is the sum over i and j != i of p_T log(p_T / p_S), each p_i a distribution over the other samples, its
    members no less than 1e-7 inside the logarithm. "code" is the mean over all N², the sample itself among those to
    pick, and 1e-7 added to lengths and inside the logarithm, as passalis/probabilistic_kt (nn/pkt.py, a58fd1b) and
    RepDistiller (distiller_zoo/PKT.py, b84f547) have it. No constant links the two. A batch of one sample gives 0, in
    the paper's form one of two as well. None of the gradient reaches the teacher.

    Args:
        student: features (N, ...), each sample's taken as a vector.
        teacher: features (N, ...).
        form: "code" or "paper".
    """
    mine, wanted = (_probabilities(one.flatten(1), form) for one in (student, teacher.detach()))
    if form == "code":
        return like((wanted * ((wanted + _LEAST) / (mine + _LEAST)).log()).mean(), student)
    return like((wanted * (wanted.clamp_min(_LEAST) / mine.clamp_min(_LEAST)).log()).sum(), student)


def _probabilities(vectors: Tensor, form: Form) -> Tensor:
    directions = vectors / (torch.linalg.vector_norm(vectors, dim=1, keepdim=True) + _LEAST)
    similarities = (wide(directions @ directions.T) + 1) / 2  # whose rows would not sum to 1 well enough in 32 bits
    if form == "paper":
        others = 1 - torch.eye(len(vectors), dtype=similarities.dtype, device=vectors.device)
        similarities = similarities * others
    return torch.div(similarities, similarities.sum(dim=1, keepdim=True).clamp_min(_LEAST))


def pkt(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    probabilities: float | Schedule = 30000.0,
    form: Form = "code",
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """Probabilistic knowledge transfer: a sample's neighbours are as likely as the teacher has them.

    The paper trains with this term alone and Adam, where its size does not matter. Its only published weight beside
    the labels, 30000, is the CRD benchmark's (Tian et al. 2020) for the mean of the authors' code, so that form is the
    default. `PRESETS` holds the paper's.

    Args:
        setup: epochs, optimizer and schedule; the batch size is part of the method.
        hard: weight of the cross-entropy with the labels.
        probabilities: weight of the divergence of the probabilities; the form "paper" wants a far smaller one, 1.
        form: "code", the authors' mean over all pairs; or "paper", the sum over pairs of different samples, which is
            larger by about the square of the batch size.
        student_layer: the layer whose output is compared; the default is the feature that enters the classifier.
        teacher_layer: the same of the teacher.

    Raises:
        LimbeckError: the batch size is 1, or both weights are 0.
    """
    several_samples(setup, "pkt")
    pair = reading.features(setup, student_layer, teacher_layer)
    terms = {
        "hard": Term(hard_loss, (from_student(), TARGETS), hard),
        "probabilities": Term(partial(probability_loss, form=form), pair, probabilities),
    }
    return (Stage("pkt", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The paper's objective: no labels. The classifier then learns nothing: the feature is what is trained.
    "paper": {"form": "paper", "probabilities": 1.0, "hard": 0.0},
}


ABOUT = About(
    pkt,
    paper=Paper(
        "Passalis, Tefas", "Learning Deep Representations with Probabilistic Knowledge Transfer", 2018, "1803.10837"
    ),
    presets=PRESETS,
)
