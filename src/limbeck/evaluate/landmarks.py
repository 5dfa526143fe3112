"""How well points are placed, such as the landmarks of a face."""

import torch
from torch import Tensor

from limbeck.core import LimbeckError


def normalised_mean_error(predicted: Tensor, truth: Tensor, size: Tensor) -> float:
    """NME: the mean distance between a predicted and a true point in units of the face's size, in 64 bits.

    (1/N) sum_i 1/(L d_i) sum_l ||p_il - g_il||_2.

    Args:
        predicted: (N, L, 2), the points of each face, or (N, 2L) with x and y in turns.
        truth: likewise, in the same coordinates.
        size: (N,), d of each face, above 0: by convention the distance of the eyes' outer corners (inter-ocular), or
            the square root of the box's area. Figures of different sizes do not compare.

    Raises:
        LimbeckError: the shapes do not fit, there is no point, a size is not above 0, a number is not finite.
    """
    if predicted.shape != truth.shape or truth.shape[:1] != size.shape or not truth.numel() or truth[0].numel() % 2:
        raise LimbeckError(
            f"points are {tuple(predicted.shape)} and {tuple(truth.shape)}, sizes {tuple(size.shape)}: allowed are "
            "(N, L, 2) or (N, 2L) twice, and (N,), of at least one point"
        )
    if truth.dim() not in (2, 3) or (truth.dim() == 3 and truth.shape[2] != 2):
        raise LimbeckError(f"points are {tuple(truth.shape)}: allowed are (N, L, 2) and (N, 2L)")
    if not (size > 0).all():
        raise LimbeckError(f"the smallest size is {size.min().item()}: a face's size is above 0")
    points = (predicted.double() - truth.double()).reshape(len(truth), -1, 2)
    distances: Tensor = torch.linalg.vector_norm(points, dim=2)
    error = distances.mean(dim=1) / size.double()
    if not error.isfinite().all():
        raise LimbeckError("a point is NaN or infinite: the network's weights are most likely not finite")
    return error.mean().item()
