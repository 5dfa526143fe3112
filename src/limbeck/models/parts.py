"""Building blocks and checks that the networks of the zoo share."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import nn

from limbeck.core import LimbeckError


def named(**children: nn.Module) -> nn.Sequential:
    """Return a sequence of the modules under the names of the arguments."""
    return nn.Sequential(OrderedDict(children))


def image(shape: tuple[int, ...], *, least: int = 1) -> tuple[int, int, int]:
    """Return the channels, height and width of a shape.

    Raises:
        LimbeckError: the shape is not (C, H, W), or a side is shorter than ``least`` pixels.
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


def check_count(name: str, value: int) -> None:
    """Raise LimbeckError unless the value is 1 or more."""
    if value < 1:
        raise LimbeckError(f"got {name} {value}, allowed are 1 and more")


def conv3x3(inside: int, outside: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)


def conv1x1(inside: int, outside: int, stride: int) -> nn.Conv2d:
    """Return a 1x1 convolution without bias, as in a shortcut that changes the shape."""
    return nn.Conv2d(inside, outside, 1, stride=stride, bias=False)


def activated(conv: nn.Conv2d, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return a convolution, BatchNorm and an activation."""
    return named(conv=conv, norm=nn.BatchNorm2d(conv.out_channels), relu=activation())


def stages(
    block: Callable[[int, int, int], nn.Module],
    counts: Sequence[int],
    widths: Sequence[int],
    *,
    inside: int,
    first_stride: int = 1,
) -> dict[str, nn.Module]:
    """Return ``stage1``, ``stage2`` and so on. Each is a sequence of blocks; all but the first halve the feature map.

    ``block`` builds a block from the input channels, the output channels and the stride.
    """
    children: dict[str, nn.Module] = {}
    for number, (count, outside) in enumerate(zip(counts, widths, strict=True), start=1):
        blocks = [block(inside, outside, first_stride if number == 1 else 2)]
        blocks += [block(outside, outside, 1) for _ in range(count - 1)]
        children[f"stage{number}"] = nn.Sequential(*blocks)
        inside = outside
    return children


def global_pool() -> nn.Sequential:
    """Return global average pooling: (N, C, H, W) to (N, C)."""
    return named(mean=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())


def kaiming(network: nn.Module) -> None:
    """Apply the normal initialisation of He et al. 2015 to every convolution, in fan-out mode."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def small_head(inside: int, classes: int) -> nn.Linear:
    """Return a linear classifier with initial weights from N(0, 0.01^2) and zero biases."""
    head = nn.Linear(inside, classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head
