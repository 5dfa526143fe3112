"""Maxout layers (Goodfellow et al. 2013, arXiv 1302.4389) and networks of them.

A layer computes several pieces for each channel or unit and returns the largest. Biases are shared over positions, and
pooling rounds its output size up (``ceil_mode``).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.connectors import Maxout
from limbeck.models.mlp import linear
from limbeck.models.parts import check_share, image, named

Init = Literal["paper", "modern"]

FIRST_NORM, FULL_NORM, HEAD_NORM = 0.9, 1.9, 1.9365
"""The authors' bounds on the norms of the first kernels, of the fully connected layer, and of all other layers."""

INITIAL = 0.005
"""The papers initialise the weights from U(-INITIAL, INITIAL)."""


class MaxNormConv2d(nn.Conv2d):
    """A convolution with a bound on the L2 norm of each (C, size, size) kernel, applied as in `MaxNormLinear`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, padding: int, max_norm: float) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=padding)
        self.max_norm = max_norm

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) to (N, kernels, H', W')."""
        if self.training:
            with torch.no_grad():
                self.weight.renorm_(2, 0, self.max_norm)
        return super().forward(inputs)

    def extra_repr(self) -> str:
        """Return the sizes and the bound."""
        return f"{super().extra_repr()}, max_norm={self.max_norm}"  # type: ignore[no-untyped-call]


class Convolution(NamedTuple):
    """One layer of a maxout network."""

    channels: int
    kernel: int
    padding: int
    max_norm: float
    pool: tuple[int, int] | None = None  # size and stride
    pieces: int = 2

    def side(self, before: int) -> int:
        """Return the height or width of its output; below 1 if the input is too small."""
        after = before + 2 * self.padding - self.kernel + 1
        if self.pool is None or after < 1:
            return after
        size, stride = self.pool
        return -((size - after) // stride) + 1


def maxout_network(
    convolutions: Sequence[Convolution],
    full: tuple[int, int] | None,
    *,
    classes: int,
    shape: tuple[int, ...],
    init: Init,
    biases: float = 0.0,
    max_norm: bool,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    pools_all: bool = False,
) -> nn.Sequential:
    """Build a maxout network of ``layer1`` and so on, ``fc`` and ``head``; (N, C, H, W) to logits (N, classes).

    ``full`` has the units and pieces of ``fc``. With ``pools_all``, global max pooling follows the last convolution.
    With ``max_norm``, the norms of weights are bounded, see `MaxNormConv2d`. Dropout follows each layer.

    With ``init: paper``, weights are drawn from U(-0.005, 0.005) and biases from U(-biases, biases). ``modern`` draws
    weights from He et al.'s normal distribution and sets biases to zero. Its gain is 1, at which maxout with two pieces
    keeps the second moment.

    Raises:
        LimbeckError: the shape is not (C, H, W) or too small, or a dropout is not in [0, 1).
    """
    check_share("dropout", dropout)
    check_share("input_dropout", input_dropout)
    inside, *sides = image(shape, least=_least(convolutions))
    children: dict[str, nn.Module] = {"input_dropout": nn.Dropout(input_dropout)} if input_dropout else {}
    for number, convolution in enumerate(convolutions, start=1):
        children[f"layer{number}"] = _layer(inside, convolution, bounded=max_norm, dropout=dropout)
        inside = convolution.channels
        sides = [convolution.side(side) for side in sides]
    if pools_all:
        children["pool"] = named(max=nn.AdaptiveMaxPool2d(1), flatten=nn.Flatten())
    else:
        children["flatten"] = nn.Flatten()
        inside *= math.prod(sides)
    if full is not None:
        units, pieces = full
        layer = linear(inside, units * pieces, FULL_NORM if max_norm else None)
        children["fc"] = _dropping(dropout, linear=layer, maxout=Maxout(pieces))
        inside = units
    network = named(**children, head=linear(inside, classes, HEAD_NORM if max_norm else None))
    _start(network, init, biases)
    return network


def _start(network: nn.Module, init: Init, biases: float) -> None:
    for module in network.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if init == "paper":
            nn.init.uniform_(module.weight, -INITIAL, INITIAL)
        else:
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            edge = biases if init == "paper" else 0.0
            nn.init.uniform_(module.bias, -edge, edge)


def _least(convolutions: Sequence[Convolution]) -> int:
    """Return the smallest image side for which every layer has a non-empty output."""

    def fits(side: int) -> bool:
        for convolution in convolutions:
            side = convolution.side(side)
            if side < 1:
                return False
        return True

    return next(side for side in itertools.count(1) if fits(side))


def _layer(inside: int, convolution: Convolution, *, bounded: bool, dropout: float) -> nn.Sequential:
    channels, kernel, padding, max_norm, pool, pieces = convolution
    outside = channels * pieces
    children: dict[str, nn.Module] = {
        "conv": MaxNormConv2d(inside, outside, kernel, padding=padding, max_norm=max_norm)
        if bounded
        else nn.Conv2d(inside, outside, kernel, padding=padding),
        "maxout": Maxout(pieces),
    }
    if pool is not None:
        size, stride = pool
        children["pool"] = nn.MaxPool2d(size, stride=stride, ceil_mode=True)
    return _dropping(dropout, **children)


def _dropping(dropout: float, **children: nn.Module) -> nn.Sequential:
    return named(**children, dropout=nn.Dropout(dropout)) if dropout else named(**children)
