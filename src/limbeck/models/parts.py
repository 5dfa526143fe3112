"""What the networks of the zoo share."""

from collections import OrderedDict

from torch import nn

from limbeck.core import LimbeckError


def named(**children: nn.Module) -> nn.Sequential:
    """The modules in order, each run once, under the names given."""
    return nn.Sequential(OrderedDict(children))


def image(shape: tuple[int, ...], *, least: int = 1) -> tuple[int, int, int]:
    """The channels, height and width of a shape.

    Raises:
        LimbeckError: it is not (C, H, W), or a side is shorter than ``least`` pixels.
    """
    if len(shape) != 3:
        raise LimbeckError(f"got samples of shape {tuple(shape)}, a convolutional network needs (C, H, W)")
    channels, height, width = shape
    if min(height, width) < least:
        raise LimbeckError(f"got images of {height}x{width} pixels, this network needs at least {least}x{least}")
    return channels, height, width


def check_share(name: str, value: float) -> None:
    """Raise LimbeckError unless the value is in [0, 1)."""
    if not 0 <= value < 1:
        raise LimbeckError(f"got {name} {value}, allowed is 0 <= {name} < 1")


def conv3x3(inside: int, outside: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (at stride 1), without bias."""
    return nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)


def conv1x1(inside: int, outside: int, stride: int) -> nn.Conv2d:
    """A 1x1 convolution without bias, for a shortcut whose shape changes."""
    return nn.Conv2d(inside, outside, 1, stride=stride, bias=False)


def global_pool() -> nn.Sequential:
    """(N, C, H, W) to (N, C): the mean over all places."""
    return named(mean=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())


def kaiming(network: nn.Module) -> None:
    """He et al. 2015's normal initialisation of every convolution, for the variance of gradients (fan-out)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
