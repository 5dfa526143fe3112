"""Metrics of predicted points, such as the landmarks of a face."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.evaluate.outputs import check_outputs

FAILURE = 0.10
"""A face with an error above this part of its size is a failure."""


@dataclass(frozen=True)
class LandmarkFigures:
    """The metrics of a network on one split. The error of a face is the mean distance of its points over its size."""

    nme: float  # mean error of the faces
    failure_rate: float  # fraction of faces with an error above 0.10, in [0, 1]
    auc: float  # area under the cumulative distribution of errors from 0 to 0.10, divided by 0.10, in [0, 1]
    samples: int
    nme_to_teacher: float | None = None  # nme with the teacher's points for the true ones; None without a teacher


def landmark_metrics(
    outputs: Tensor,
    targets: Tensor,
    *,
    teacher_logits: Tensor | None = None,
    name: str = "network",
    split: str = "",
    files: Sequence[str] | None = None,
    eyes: tuple[int, int] | None = None,
) -> LandmarkFigures:
    """Compute the metrics of a landmark network on one split in 64 bits.

    Args:
        outputs: (N, 2L), the points x0, y0, x1, y1, ...
        targets: (N, L, 2), the true points in the same coordinates.
        teacher_logits: the outputs (N, 2L) of the teacher, of the same samples in the same order.
        name: the name of the network in errors.
        split: the name of the split in errors, such as ``test``.
        files: the names of the samples, for errors.
        eyes: the indices of two points, such as the outer corners of the eyes, whose true distance is the size of a
            face (inter-ocular). With None, the size is the diagonal of the bounding box of the true points. Results for
            different sizes are not comparable.

    Raises:
        LimbeckError: the shapes do not match, an output is not finite, a face has size 0, or an index is out of range.
    """
    check_outputs(outputs, targets.flatten(1).shape, teacher_logits, name=name, split=split, files=files)
    size = face_size(targets, eyes)
    errors = _errors(outputs, targets.flatten(1), size)
    return LandmarkFigures(
        nme=errors.mean().item(),
        failure_rate=(errors > FAILURE).double().mean().item(),
        auc=(1 - errors / FAILURE).clamp_min(0).mean().item(),  # the exact integral of the step function
        samples=len(targets),
        nme_to_teacher=None if teacher_logits is None else normalised_mean_error(outputs, teacher_logits, size),
    )


def face_size(points: Tensor, eyes: tuple[int, int] | None = None) -> Tensor:
    """Return the size (N,) of faces with points (N, L, 2) in 64 bits; see `landmark_metrics`.

    Raises:
        LimbeckError: an index is out of range.
    """
    points = points.double()
    if eyes is None:
        span = points.amax(dim=1) - points.amin(dim=1)
    else:
        if not all(0 <= index < points.shape[1] for index in eyes) or eyes[0] == eyes[1]:
            raise LimbeckError(f"eyes is {eyes}: allowed are two different indices from 0 to {points.shape[1] - 1}")
        span = points[:, eyes[0]] - points[:, eyes[1]]
    size: Tensor = torch.linalg.vector_norm(span, dim=1)
    return size


def normalised_mean_error(predicted: Tensor, truth: Tensor, size: Tensor) -> float:
    """Return the NME: the mean distance between predicted and true points in units of the face size, in 64 bits.

    (1/N) sum_i 1/(L d_i) sum_l ||p_il - g_il||_2.

    Args:
        predicted: (N, L, 2), the points of each face, or (N, 2L) with alternating x and y.
        truth: the true points, with the same shape and coordinates.
        size: (N,), d of each face, above 0: by convention the distance between the outer corners of the eyes
            (inter-ocular), or the square root of the area of the box. Results for different sizes are not comparable.

    Raises:
        LimbeckError: the shapes do not match, there is no point, a size is not above 0, or a number is not finite.
    """
    return _errors(predicted, truth, size).mean().item()


def _errors(predicted: Tensor, truth: Tensor, size: Tensor) -> Tensor:
    """The error of each face, (N,)."""
    if predicted.shape != truth.shape or truth.shape[:1] != size.shape or not truth.numel() or truth[0].numel() % 2:
        raise LimbeckError(
            f"points have shapes {tuple(predicted.shape)} and {tuple(truth.shape)}, sizes {tuple(size.shape)}: allowed "
            "are (N, L, 2) or (N, 2L) for both, and (N,), with at least one point"
        )
    if truth.dim() not in (2, 3) or (truth.dim() == 3 and truth.shape[2] != 2):
        raise LimbeckError(f"points have shape {tuple(truth.shape)}: allowed are (N, L, 2) and (N, 2L)")
    if not (size > 0).all():
        raise LimbeckError(f"the smallest size is {size.min().item()}: allowed are sizes above 0")
    points = (predicted.double() - truth.double()).reshape(len(truth), -1, 2)
    distances: Tensor = torch.linalg.vector_norm(points, dim=2)
    error: Tensor = distances.mean(dim=1) / size.double()
    if not error.isfinite().all():
        raise LimbeckError("a point is NaN or infinite: the weights of the network are probably not finite")
    return error
