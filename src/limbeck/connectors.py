"""The learnable maps between a student's and a teacher's space.

A connector learns with the student and is dropped afterwards: it never counts as part of the student.
Shapes are those of one sample, without N: ``(C, H, W)`` or ``(D,)``.
"""

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
