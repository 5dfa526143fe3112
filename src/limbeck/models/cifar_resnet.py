"""The CIFAR ResNets of He et al. 2016 (arXiv 1512.03385, section 4.2), in the form of the distillation benchmarks.

RepDistiller and mdistiller differ from the paper in the shortcuts that change the shape: they use a 1x1 convolution
with BatchNorm instead of zero padding. Their published accuracies are for this form, which is ``resnet8`` to
``resnet32x4`` here. ``fsp_resnet8`` to ``fsp_resnet32`` are the networks of FSP (Yim et al., CVPR 2017, section 4):
they have the paper's shortcuts and normalise their input, and the option ``width`` multiplies their channels.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from limbeck.models.parts import (
    activated,
    check_count,
    conv1x1,
    conv3x3,
    global_pool,
    image,
    kaiming,
    named,
    stages,
)

Shortcut = Literal["projection", "identity"]


class PaddedIdentity(nn.Module):
    """Every ``stride``-th position, with channels of zeros appended: option A of He et al., section 4.2."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.extra = outside - inside
        self.stride = stride

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, inside, H, W) to (N, outside, H / stride, W / stride)."""
        return nn.functional.pad(inputs[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))

    def extra_repr(self) -> str:
        """Return the number of appended channels and the stride."""
        return f"extra={self.extra}, stride={self.stride}"


def projection(inside: int, outside: int, stride: int) -> nn.Module:
    """A 1x1 convolution and BatchNorm: option B of He et al., section 4.1."""
    return named(conv=conv1x1(inside, outside, stride), norm=nn.BatchNorm2d(outside))


SHORTCUTS: dict[str, Callable[[int, int, int], nn.Module]] = {"projection": projection, "identity": PaddedIdentity}
"""The shortcuts that change the shape, by the name of the option."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; (N, inside, H, W) to (N, outside, H / stride, W / stride).

    The tensor before the last activation is the *input* of ``relu2``.
    """

    def __init__(
        self, inside: int, outside: int, stride: int, shortcut: Callable[[int, int, int], nn.Module] = projection
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(inside, outside, stride)
        self.norm1 = nn.BatchNorm2d(outside)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(outside, outside)
        self.norm2 = nn.BatchNorm2d(outside)
        changes = stride != 1 or inside != outside
        self.shortcut = shortcut(inside, outside, stride) if changes else nn.Identity()
        self.relu2 = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, inside, H, W) to (N, outside, H / stride, W / stride)."""
        features = self.relu1(self.norm1(self.conv1(inputs)))
        features = self.norm2(self.conv2(features))
        return self.relu2(features + self.shortcut(inputs))  # type: ignore[no-any-return]


def cifar_resnet(
    *,
    depth: int,
    widths: tuple[int, int, int, int],
    classes: int,
    shape: tuple[int, ...],
    shortcut: Shortcut = "projection",
    input_norm: bool = False,
) -> nn.Module:
    """A ResNet of basic blocks; (N, C, H, W) to logits (N, classes).

    Args:
        depth: 6n + 2, with n blocks in each of three stages.
        widths: channels of the stem and of the stages.
        classes: the number of logits.
        shape: (C, H, W); the pooling is global, so H and W are free.
        shortcut: the shortcut of blocks that change the shape: a 1x1 convolution with BatchNorm (``projection``), or
            every second position with channels of zeros appended (``identity``, option A of the paper).
        input_norm: whether BatchNorm precedes the stem.
    """
    channels, _, _ = image(shape)
    stem, *rest = widths
    children: dict[str, nn.Module] = {"input_norm": nn.BatchNorm2d(channels)} if input_norm else {}
    children["stem"] = activated(conv3x3(channels, stem))
    children |= stages(partial(BasicBlock, shortcut=SHORTCUTS[shortcut]), [(depth - 2) // 6] * 3, rest, inside=stem)
    network = named(**children, pool=global_pool(), head=nn.Linear(rest[-1], classes))
    kaiming(network)
    return network


def _sized(depth: int, widths: tuple[int, int, int, int]) -> Callable[..., nn.Module]:
    def factory(*, classes: int, shape: tuple[int, ...]) -> nn.Module:
        return cifar_resnet(depth=depth, widths=widths, classes=classes, shape=shape)

    factory.__doc__ = f"CIFAR ResNet of depth {depth}, widths {widths}; (N, C, H, W) to logits (N, classes)."
    return factory


def _fsp(depth: int) -> Callable[..., nn.Module]:
    def factory(
        *,
        classes: int,
        shape: tuple[int, ...],
        width: int = 1,
        shortcut: Shortcut = "identity",
        input_norm: bool = True,
    ) -> nn.Module:
        check_count("width", width)
        widths = (16 * width, 16 * width, 32 * width, 64 * width)
        return cifar_resnet(
            depth=depth, widths=widths, classes=classes, shape=shape, shortcut=shortcut, input_norm=input_norm
        )

    factory.__doc__ = f"""FSP's CIFAR ResNet of depth {depth}; (N, C, H, W) to logits (N, classes).

    Args:
        width: factor on the 16, 16, 32 and 64 channels; the paper uses 4 for CIFAR-100.
        shortcut: see `cifar_resnet`; the paper uses zero padding.
        input_norm: whether BatchNorm precedes the stem, as in the paper's figure 2.
    """
    return factory


_NARROW = (16, 16, 32, 64)
_WIDE = (32, 64, 128, 256)

CIFAR_RESNETS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": _sized(depth, _NARROW) for depth in (8, 14, 20, 26, 32, 44, 56, 110)},
    "resnet8x4": _sized(8, _WIDE),
    "resnet32x4": _sized(32, _WIDE),
    **{f"fsp_resnet{depth}": _fsp(depth) for depth in (8, 14, 26, 32)},
}
