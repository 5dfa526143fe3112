"""Relational distillation: the student matches distances and angles between samples."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core import Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.shared import label_terms, several_samples, unit

Average = Literal["mean", "sum"]

_CLOSEST = 1e-6  # the authors' least distance of two samples: where two coincide, the gradient is 0


def distance_loss(student: Tensor, teacher: Tensor, *, average: Average = "mean", normalise: bool = False) -> Tensor:
    """Huber distance of the samples' distances, in units of their mean over the pairs of the batch: RKD-D.

    The gradient flows through the student's mean distance too. A batch of one sample gives 0. None of the gradient
    reaches the teacher.

    Args:
        student: features (N, ...), each sample's taken as a vector.
        teacher: features (N, ...).
        average: "sum" is the paper's, over the N (N - 1) ordered pairs; "mean" is that over N², as lenscloth/RKD
            (metric/loss.py, 0a6c3c0) and RepDistiller (distiller_zoo/RKD.py, b84f547) have it.
        normalise: bring every feature to length 1 first.
    """
    mine, wanted = (_relative_distances(vectors) for vectors in _vectors(student, teacher, normalise))
    return F.smooth_l1_loss(mine, wanted, reduction=average)


def angle_loss(student: Tensor, teacher: Tensor, *, average: Average = "mean", normalise: bool = False) -> Tensor:
    """Huber distance of the cosines of the angles at the middle of every three samples: RKD-A.

    A batch of one or two samples gives 0. The memory grows with N³ and N² D. None of the gradient reaches the teacher.

    Args:
        student: features (N, ...), each sample's taken as a vector.
        teacher: features (N, ...).
        average: "sum" is the paper's, over the ordered triplets; "mean" is that over N³, as the authors' code has it.
        normalise: bring every feature to length 1 first.
    """
    mine, wanted = (_cosines(vectors) for vectors in _vectors(student, teacher, normalise))
    return F.smooth_l1_loss(mine, wanted, reduction=average)


def _vectors(student: Tensor, teacher: Tensor, normalise: bool) -> list[Tensor]:
    return [unit(one.flatten(1)) if normalise else one.flatten(1) for one in (student, teacher.detach())]


def _relative_distances(vectors: Tensor) -> Tensor:
    count = len(vectors)
    apart = 1 - torch.eye(count, dtype=vectors.dtype, device=vectors.device)
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").clamp_min(_CLOSEST) * apart
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
    """Relational distillation: the samples' distances and angles are those that the teacher sees.

    The published weights, 25 and 50, belong to the mean of the authors' code, which is therefore the default; the
    formulas of the paper have the sum. A zero weight leaves a relation out (RKD-D, RKD-A).

    Args:
        setup: epochs, optimizer and schedule; the batch size is part of the method.
        hard: weight of the cross-entropy with the labels.
        distance: weight of the distances between two samples.
        angle: weight of the angles between three samples.
        soft: weight of the soft targets, with the factor T².
        temperature: T of the soft targets.
        average: "mean" over all pairs and triplets, as in the authors' code, or the paper's "sum".
        normalise: bring the features to length 1 first, as the authors' classification script does.
        student_layer: the layer whose output is compared; the default is the feature that enters the classifier.
        teacher_layer: the same of the teacher.

    Raises:
        LimbeckError: the batch size is 1, the temperature is not above 0, or all weights are 0.
    """
    several_samples(setup, "rkd")
    pair = reading.features(setup, student_layer, teacher_layer)
    terms = label_terms(setup, hard=hard, soft=soft, temperature=temperature)
    terms["distance"] = Term(partial(distance_loss, average=average, normalise=normalise), pair, distance)
    terms["angle"] = Term(partial(angle_loss, average=average, normalise=normalise), pair, angle)
    return (Stage("rkd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # lenscloth/RKD, run_distill_classification.py: its kd_ratio 16 is T² for T = 4.
    "authors_kd": {"normalise": True, "soft": 1.0, "temperature": 4.0},
}


ABOUT = About(
    rkd, paper=Paper("Park, Kim, Lu, Cho", "Relational Knowledge Distillation", 2019, "1904.05068"), presets=PRESETS
)
