"""Binary layers: the sign function in the forward pass, a straight-through estimator in the backward pass.

XNOR-Net: Rastegari, Ordonez, Redmon, Farhadi (2016), arXiv 1603.05279, sections 3.1 and 3.2.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return torch.where(inputs >= 0, 1.0, -1.0).to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (inputs,) = ctx.saved_tensors
        passes: Tensor = inputs.abs() <= 1
        return gradients[0] * passes


def sign(inputs: Tensor) -> Tensor:
    """Return -1 for negative inputs and +1 otherwise. 0 maps to +1, so every value fits into one bit.

    The gradient passes unchanged where |x| <= 1 and is 0 elsewhere.
    """
    return _Sign.apply(inputs)  # type: ignore[no-any-return]


class BinaryConv2d(nn.Conv2d):
    """A convolution without bias whose kernels are alpha * sign(W). alpha is the mean of |W| over each kernel.

    The real-valued W is the parameter: its gradient flows through `sign` and through alpha. The inputs are not
    binarised; apply `sign` before this layer for binary inputs. The zeros of the padding are neither -1 nor +1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)

    def binary_weight(self) -> Tensor:
        """Return the kernels of the forward pass, alpha * sign(W): (kernels, C, size, size)."""
        alpha = self.weight.abs().mean(dim=(1, 2, 3), keepdim=True)
        return alpha * sign(self.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) to (N, kernels, H', W')."""
        return F.conv2d(inputs, self.binary_weight(), stride=self.stride, padding=self.padding)
