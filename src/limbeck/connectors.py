"""The learnable maps between a student's and a teacher's space.

A connector learns with the student and is dropped afterwards: it never counts as part of the student.
Shapes are those of one sample, without N: ``(C, H, W)`` or ``(D,)``.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError, Loss


class Through(nn.Module):
    """A loss on the student's tensor after a connector: ``loss(connector(student), *others)``."""

    def __init__(self, connector: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.connector = connector
        self.loss = loss

    def forward(self, student: Tensor, *others: Tensor) -> Tensor:
        """The loss, a scalar."""
        value: Tensor = self.loss(self.connector(student), *others)
        return value


def linear(source: Sequence[int], target: Sequence[int]) -> nn.Module:
    """A linear map of vectors, ``(N, D) -> (N, D')``."""
    if len(source) != 1 or len(target) != 1:
        raise LimbeckError(f"a linear connector maps vectors (D,), got {tuple(source)} -> {tuple(target)}")
    return nn.Linear(source[0], target[0])


def conv1x1(source: Sequence[int], target: Sequence[int]) -> nn.Module:
    """A 1x1 convolution of maps of one spatial size, ``(N, C, H, W) -> (N, C', H, W)``."""
    if len(source) != 3 or len(target) != 3 or tuple(source[1:]) != tuple(target[1:]):
        raise LimbeckError(
            f"a 1x1 connector maps (C, H, W) to (C', H, W) of the same size, got {tuple(source)} -> {tuple(target)}"
        )
    return nn.Conv2d(source[0], target[0], kernel_size=1)


class AsMap(nn.Module):
    """`as_map` as a layer, before those of maps."""

    def forward(self, feature: Tensor) -> Tensor:
        """(N, C, H, W), (N, L, D) or (N, D) to (N, C, H, W)."""
        return as_map(feature)


_BESIDE_PATCHES = (0, 1, 2, 5)
"""Tokens that transformers have before those of the patches: none, a class token, DeiT's two, DINOv2's five."""


def map_shape(shape: Sequence[int]) -> tuple[int, int, int] | None:
    """The shape (C, H, W) of what `as_map` makes of a map, a vector (D,) or tokens (L, D); None where it cannot."""
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    if len(shape) == 1:
        return shape[0], 1, 1
    side = math.isqrt(shape[0])
    return (shape[1], side, side) if len(shape) == 2 and shape[0] - side**2 in _BESIDE_PATCHES else None


def as_map(feature: Tensor) -> Tensor:
    """A map (N, C, H, W) as it is, a vector (N, D) as a map of one place, tokens (N, L, D) as the map of their patches.

    Patches are taken to lie in a square, row by row, after the class token and its like, which are left out.

    Raises:
        LimbeckError: the tokens are not those of a square, or the tensor is none of the three.
    """
    shape = map_shape(feature.shape[1:])
    if shape is None:
        raise LimbeckError(f"what gives {tuple(feature.shape[1:])} cannot be taken as a map: its tokens form no square")
    if feature.dim() != 3:
        return feature.reshape(len(feature), *shape)
    return feature[:, -shape[1] * shape[2] :].mT.reshape(len(feature), *shape)


class Maxout(nn.Module):
    """The largest of each run of ``pieces`` channels; (N, C * pieces, ...) to (N, C, ...)."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C * pieces, ...) to (N, C, ...)."""
        return torch.unflatten(inputs, 1, (-1, self.pieces)).amax(dim=2)

    def extra_repr(self) -> str:
        """The pieces."""
        return f"pieces={self.pieces}"


def valid_conv(source: Sequence[int], target: Sequence[int], *, pieces: int = 1) -> nn.Conv2d:
    """A convolution without padding whose kernel takes the source's size to the target's: N_s - k + 1 = N_t.

    It gives ``pieces`` times the target's channels, in runs of one unit's pieces.

    Raises:
        LimbeckError: these are not maps, or the target is larger than the source.
    """
    if len(source) != 3 or len(target) != 3:
        raise LimbeckError(f"a convolution maps (C, H, W) to (C, H, W), got {tuple(source)} -> {tuple(target)}")
    kernel = (source[1] - target[1] + 1, source[2] - target[2] + 1)
    if min(kernel) < 1:
        raise LimbeckError(
            f"a convolution without padding cannot take a map of {source[1]}x{source[2]} to the larger "
            f"{target[1]}x{target[2]}"
        )
    return nn.Conv2d(source[0], target[0] * pieces, kernel)
