"""Relational distillation: the student matches distances and angles between samples."""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core import Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import OF_OUTPUTS, About, Paper
from limbeck.methods.kd import label_terms
from limbeck.methods.shared import several_samples, unit

PAPER = Paper("Park, Kim, Lu, Cho", "Relational Knowledge Distillation", 2019, "1904.05068")

Average = Literal["mean", "sum"]

_CLOSEST = 1e-6  # the authors' smallest distance; the gradient is 0 where two samples coincide


def distance_loss(student: Tensor, teacher: Tensor, *, average: Average = "mean", normalise: bool = False) -> Tensor:
    """Huber loss of the distances between samples, each divided by the mean distance of the batch (RKD-D).

    The gradient also flows through the student's mean distance. A batch of one sample gives 0. No gradient flows to
    the teacher.

    Args:
        student: features (N, ...), flattened to one vector per sample.
        teacher: features (N, ...).
        average: "sum" is the paper's, over the N (N - 1) ordered pairs. "mean" divides it by N², as in lenscloth/RKD
            (metric/loss.py, 0a6c3c0) and RepDistiller (distiller_zoo/RKD.py, b84f547).
        normalise: first scale every feature to length 1.
    """
    student, teacher = (_relative_distances(vectors) for vectors in _vectors(student, teacher, normalise))
    return F.smooth_l1_loss(student, teacher, reduction=average)


def angle_loss(student: Tensor, teacher: Tensor, *, average: Average = "mean", normalise: bool = False) -> Tensor:
    """Huber loss of the cosines of the angles in every triplet of samples (RKD-A).

    A batch of one or two samples gives 0. The memory grows with N³ and N² D. No gradient flows to the teacher.

    Args:
        student: features (N, ...), flattened to one vector per sample.
        teacher: features (N, ...).
        average: "sum" is the paper's, over the ordered triplets. "mean" divides it by N³, as in the authors' code.
        normalise: first scale every feature to length 1.
    """
    student, teacher = (_cosines(vectors) for vectors in _vectors(student, teacher, normalise))
    return F.smooth_l1_loss(student, teacher, reduction=average)


def _vectors(student: Tensor, teacher: Tensor, normalise: bool) -> list[Tensor]:
    flat = [features.flatten(1) for features in (student, teacher.detach())]
    return [unit(vectors) for vectors in flat] if normalise else flat


def _relative_distances(vectors: Tensor) -> Tensor:
    count = len(vectors)
    off_diagonal = 1 - torch.eye(count, dtype=vectors.dtype, device=vectors.device)
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances.clamp_min(_CLOSEST) * off_diagonal
    mean = distances.sum() / max(count * (count - 1), 1)
    return distances / mean.clamp_min(_CLOSEST)


def _cosines(vectors: Tensor) -> Tensor:
    directions = unit(vectors.unsqueeze(0) - vectors.unsqueeze(1))  # (N, N, D): from the first index to the second
    return directions @ directions.transpose(1, 2)


def rkd(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    distance: float | Schedule = 25.0,
    angle: float | Schedule = 50.0,
    soft: float | Schedule = 0.0,
    temperature: float = 4.0,
    average: Average = "mean",
    normalise: bool = False,
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """Relational distillation: distances and angles between samples match the teacher's.

    The published weights, 25 and 50, belong to the mean of the authors' code, which is therefore the default; the
    formulas of the paper have the sum. Set the other weight to 0 for RKD-D or RKD-A alone.

    Args:
        setup: epochs, optimizer and schedule. The batch size affects the method.
        hard: weight of the cross-entropy with the labels.
        distance: weight of the distances between pairs of samples.
        angle: weight of the angles in triplets of samples.
        soft: weight of the soft targets, with the factor T².
        temperature: T of the soft targets.
        average: "mean" over all pairs and triplets, as in the authors' code, or "sum", as in the paper.
        normalise: first scale the features to length 1, as the authors' classification script does.
        student_layer: the layer whose output is compared; the default is the feature that enters the classifier.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: the batch size is 1, the temperature is not above 0, or all weights are 0.
    """
    several_samples(setup, "rkd")
    pair = reading.features(setup, student_layer, teacher_layer)
    terms = label_terms(setup, hard=hard, soft=soft, temperature=temperature)
    terms["distance"] = Term(partial(distance_loss, average=average, normalise=normalise), pair, distance)
    terms["angle"] = Term(partial(angle_loss, average=average, normalise=normalise), pair, angle)
    return (Stage("rkd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


PRESETS = {
    # lenscloth/RKD, run_distill_classification.py: its kd_ratio 16 is T² for T = 4.
    "authors_kd": {"normalise": True, "soft": 1.0, "temperature": 4.0},
}


ABOUT = About(rkd, PAPER, presets=PRESETS, tasks=OF_OUTPUTS)
