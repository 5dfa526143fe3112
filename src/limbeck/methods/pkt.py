"""Probabilistic knowledge transfer: the student matches the teacher's similarities as probabilities."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from limbeck.core import Schedule, Setup, Stage, Term, from_student, weighted
from limbeck.methods import reading
from limbeck.methods.about import OF_OUTPUTS, About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.distributions import like, wide
from limbeck.methods.shared import several_samples

PAPER = Paper(
    "Passalis, Tefas", "Learning Deep Representations with Probabilistic Knowledge Transfer", 2018, "1803.10837"
)

Form = Literal["code", "paper"]

_LEAST = 1e-7  # the authors' epsilon


def probability_loss(student: Tensor, teacher: Tensor, *, form: Form = "code") -> Tensor:
    """KL(p_T || p_S) of the probabilities p_ij that sample i picks sample j, proportional to (cosine + 1) / 2.

    "paper" is the sum over i and j != i of p_T log(p_T / p_S), where each p_i is a distribution over the other samples
    and probabilities are clamped to at least 1e-7 inside the logarithm. "code" is the mean over all N² pairs, where a
    sample may pick itself and 1e-7 is added to the lengths and inside the logarithm, as in passalis/probabilistic_kt
    (nn/pkt.py, a58fd1b) and RepDistiller (distiller_zoo/PKT.py, b84f547). The two are not proportional. A batch of one
    sample gives 0, and in the form "paper" also a batch of two. No gradient flows to the teacher.

    Args:
        student: features (N, ...), flattened to one vector per sample.
        teacher: features (N, ...).
        form: "code" or "paper".
    """
    q, p = (_probabilities(features.flatten(1), form) for features in (student, teacher.detach()))
    if form == "code":
        return like((p * ((p + _LEAST) / (q + _LEAST)).log()).mean(), student)
    return like((p * (p.clamp_min(_LEAST) / q.clamp_min(_LEAST)).log()).sum(), student)


def _probabilities(vectors: Tensor, form: Form) -> Tensor:
    directions = vectors / (torch.linalg.vector_norm(vectors, dim=1, keepdim=True) + _LEAST)
    similarities = (wide(directions @ directions.T) + 1) / 2  # in 32 bits the rows would not sum to 1 accurately
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
    """Probabilistic knowledge transfer: the student matches the probabilities that samples are neighbours.

    The paper trains with this term only and with Adam, where its scale does not matter; that is the preset. The only
    published weight for use with labels, 30000, is that of the CRD benchmark (Tian et al. 2020) for the mean of the
    authors' code, so that form is the default.

    Args:
        setup: epochs, optimizer and schedule. The batch size affects the method.
        hard: weight of the cross-entropy with the labels.
        probabilities: weight of the divergence; the form "paper" needs a far smaller one, 1.
        form: "code" is the authors' mean over all pairs. "paper" is the sum over pairs of different samples, which is
            larger by about the square of the batch size.
        student_layer: the layer whose output is compared; the default is the feature that enters the classifier.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: the batch size is 1, or both weights are 0.
    """
    several_samples(setup, "pkt")
    pair = reading.features(setup, student_layer, teacher_layer)
    terms = {
        "hard": hard_term(setup, from_student(), hard),
        "probabilities": Term(partial(probability_loss, form=form), pair, probabilities),
    }
    return (Stage("pkt", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


PRESETS = {
    # The paper's objective without labels: only the feature is trained, not the classifier.
    "paper": {"form": "paper", "probabilities": 1.0, "hard": 0.0},
}


ABOUT = About(pkt, PAPER, presets=PRESETS, tasks=OF_OUTPUTS)
