"""Metrics of predicted points, such as the landmarks of a face."""

import torch
from torch import Tensor

from limbeck.core import LimbeckError


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
    error = distances.mean(dim=1) / size.double()
    if not error.isfinite().all():
        raise LimbeckError("a point is NaN or infinite: the weights of the network are probably not finite")
    return error.mean().item()
