"""ResNets with binary weights and activations in all 3x3 convolutions but the first.

A block has the order of real-to-binary networks (Martinez et al. 2020, arXiv 2003.11535), BatchNorm, sign, binary
convolution and PReLU, and a shortcut around every convolution, as in Bi-Real Net (Liu et al. 2018, arXiv 1808.00278).
The weights are those of XNOR-Net (Rastegari et al. 2016, arXiv 1603.05279), alpha_c sign(W_c) with alpha_c = mean|W_c|.
Differences: shortcuts that change the shape are real-valued 1x1 convolutions of every second position, as in the other
ResNets here, without Bi-Real Net's pooling before them; and there is no gating as in real-to-binary networks.

``binary_resnet8`` and ``binary_resnet20`` have the widths of ``resnet8`` and ``resnet20``, ``binary_resnet18`` those of
``resnet18``. Parameters and files have W in 32 bits. Binary multiply-accumulates count like others: limbeck and the
backends that it exports to compute signs in floating point, so the networks become neither smaller nor faster.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.models.cifar_resnet import projection
from limbeck.models.parts import activated, conv3x3, global_pool, image, kaiming, named, stages

Kernels = Literal["binary", "real"]


class _SignFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return (inputs.sign() + 0.5).sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (inputs,) = ctx.saved_tensors
        bound = 1 + torch.finfo(inputs.dtype).eps  # the gradient of hardtanh is 0 at its bounds, this one is not at 1
        found: Tensor = torch.ops.aten.hardtanh_backward(gradient, inputs, -bound, bound)
        return found


def sign(inputs: Tensor) -> Tensor:
    """+1 where a value is 0 or more, else -1. The gradient passes where the value is in [-1, 1], and is 0 elsewhere.

    This is the straight-through estimator of Hubara et al. 2016 (arXiv 1602.02830, Eq. 4).
    """
    signs: Tensor = _SignFunction.apply(inputs)
    return signs


class Sign(nn.Module):
    """The `sign` of each activation, of any shape."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, ...) to -1 and +1, (N, ...)."""
        return sign(inputs)


class BinaryConv2d(nn.Conv2d):
    """A convolution with the weight alpha_c sign(W_c), alpha_c = mean|W_c| over the weights of an output channel c.

    W is the parameter ``weight``. Its gradient has two parts: that of ``sign``, and that of alpha.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        alpha = self.weight.abs().mean(dim=(1, 2, 3), keepdim=True)
        outputs: Tensor = self._conv_forward(inputs, alpha * sign(self.weight), self.bias)
        return outputs


class BinaryBlock(nn.Module):
    """Two binary 3x3 convolutions, each with a shortcut; (N, inside, H, W) to (N, outside, H / stride, W / stride).

    With ``kernels="real"``, only the activations are binary.
    """

    def __init__(self, inside: int, outside: int, stride: int, *, kernels: Kernels = "binary") -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inside)
        self.sign1 = Sign()
        self.conv1 = _conv(inside, outside, stride, kernels)
        self.prelu1 = nn.PReLU(outside)
        changes = stride != 1 or inside != outside
        self.shortcut = projection(inside, outside, stride) if changes else nn.Identity()
        self.norm2 = nn.BatchNorm2d(outside)
        self.sign2 = Sign()
        self.conv2 = _conv(outside, outside, 1, kernels)
        self.prelu2 = nn.PReLU(outside)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, inside, H, W) to (N, outside, H / stride, W / stride)."""
        features = self.prelu1(self.conv1(self.sign1(self.norm1(inputs)))) + self.shortcut(inputs)
        return self.prelu2(self.conv2(self.sign2(self.norm2(features)))) + features  # type: ignore[no-any-return]


def _conv(inside: int, outside: int, stride: int, kernels: Kernels) -> nn.Conv2d:
    if kernels == "real":
        return conv3x3(inside, outside, stride)
    return BinaryConv2d(inside, outside, 3, stride=stride, padding=1, bias=False)


def _sized(depth: int, counts: tuple[int, ...], width: int) -> Callable[..., nn.Module]:
    widths = [width * 2**number for number in range(len(counts))]

    def factory(*, classes: int, shape: tuple[int, ...], kernels: Kernels = "binary") -> nn.Module:
        channels, _, _ = image(shape)
        blocks = stages(partial(BinaryBlock, kernels=kernels), counts, widths, inside=width)
        head = nn.Linear(widths[-1], classes)
        network = named(stem=activated(conv3x3(channels, width)), **blocks, pool=global_pool(), head=head)
        kaiming(network)
        return network

    factory.__doc__ = f"""Binary ResNet-{depth}, widths {width} to {widths[-1]}; (N, C, H, W) to logits (N, classes).

    Args:
        kernels: the weights of the 3x3 convolutions behind the stem. ``real`` is for the first of two trainings: only
            the activations are binary, and the file of this student then initialises one with binary weights.
    """
    return factory


BINARY_RESNETS: dict[str, Callable[..., nn.Module]] = {
    "binary_resnet8": _sized(8, (1, 1, 1), 16),
    "binary_resnet20": _sized(20, (3, 3, 3), 16),
    "binary_resnet18": _sized(18, (2, 2, 2, 2), 64),
}
