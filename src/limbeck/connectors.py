"""The learnable maps between a student's and a teacher's space.

A connector learns with the student and is dropped afterwards: it never counts as part of the student.
Shapes are those of one sample, without N: ``(C, H, W)`` or ``(D,)``.
"""

from collections.abc import Sequence

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
