"""Connectors: learnable maps from a student's feature space to a teacher's.

A connector is trained with the student and dropped afterwards; it is not a part of the student. Shapes are those of
one sample, without N: ``(C, H, W)`` or ``(D,)``.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError, Loss


class Through(nn.Module):
    """A loss of the student's tensor after a connector: ``loss(connector(student), *others)``."""

    def __init__(self, connector: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.connector = connector
        self.loss = loss

    def forward(self, student: Tensor, *others: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        return self.loss(self.connector(student), *others)


def linear(source: Sequence[int], target: Sequence[int]) -> nn.Module:
    """Return a linear map of vectors, ``(N, D) -> (N, D')``."""
    if len(source) != 1 or len(target) != 1:
        raise LimbeckError(f"a linear connector maps vectors (D,), got {tuple(source)} -> {tuple(target)}")
    return nn.Linear(source[0], target[0])


class AsMap(nn.Module):
    """`as_map` as a layer."""

    def forward(self, feature: Tensor) -> Tensor:
        """(N, C, H, W), (N, L, D) or (N, D) to (N, C, H, W)."""
        return as_map(feature)


_BESIDE_PATCHES = (0, 1, 2, 5)
"""The numbers of extra tokens before the patches in transformers: none, a class token, two in DeiT, five in DINOv2."""


def map_shape(shape: Sequence[int]) -> tuple[int, int, int] | None:
    """Return the shape (C, H, W) after `as_map` for a map, a vector (D,) or tokens (L, D); None if it fails."""
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    if len(shape) == 1:
        return shape[0], 1, 1
    side = math.isqrt(shape[0])
    return (shape[1], side, side) if len(shape) == 2 and shape[0] - side**2 in _BESIDE_PATCHES else None


def as_map(feature: Tensor) -> Tensor:
    """Return a feature as a map (N, C, H, W): a map unchanged, a vector (N, D) with H = W = 1, tokens as their patches.

    Tokens (N, L, D) are a square of patches in row-major order. A class token and its like before them are dropped.

    Raises:
        LimbeckError: the tokens do not form a square, or the tensor has another number of dimensions.
    """
    shape = map_shape(feature.shape[1:])
    if shape is None:
        raise LimbeckError(f"a feature of shape {tuple(feature.shape[1:])} is not a map: its tokens form no square")
    if feature.dim() != 3:
        return feature.reshape(len(feature), *shape)
    return feature[:, -shape[1] * shape[2] :].mT.reshape(len(feature), *shape)


class Maxout(nn.Module):
    """The maximum over each group of ``pieces`` consecutive channels; (N, C * pieces, ...) to (N, C, ...)."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C * pieces, ...) to (N, C, ...)."""
        return torch.unflatten(inputs, 1, (-1, self.pieces)).amax(dim=2)

    def extra_repr(self) -> str:
        """Return the number of pieces."""
        return f"pieces={self.pieces}"


def valid_conv(source: Sequence[int], target: Sequence[int], *, pieces: int = 1) -> nn.Conv2d:
    """Return a convolution without padding that maps the source's spatial size to the target's: N_s - k + 1 = N_t.

    It has ``pieces`` times the target's channels; the pieces of one unit are consecutive.

    Raises:
        LimbeckError: a shape is not (C, H, W), or the target is larger than the source.
    """
    if len(source) != 3 or len(target) != 3:
        raise LimbeckError(f"a convolution maps (C, H, W) to (C, H, W), got {tuple(source)} -> {tuple(target)}")
    kernel = (source[1] - target[1] + 1, source[2] - target[2] + 1)
    if min(kernel) < 1:
        raise LimbeckError(
            f"a convolution without padding cannot map {source[1]}x{source[2]} to the larger size "
            f"{target[1]}x{target[2]}"
        )
    return nn.Conv2d(source[0], target[0] * pieces, kernel)
