"""MobileNets: SRRL's student for ImageNet, and two variants of MobileNet-v2 for CIFAR.

Howard et al. 2017 (arXiv 1704.04861) and Sandler et al. 2018 (arXiv 1801.04381). Parameters for 3 channels:

================= ========== =========== =============
network           10 classes 100 classes 1,000 classes
================= ========== =========== =============
mobilenet_v1       3,217,226   3,309,476     4,231,976
mobilenet_v2       2,254,090   2,369,380     3,522,280
mobilenet_v2_half    697,546     812,836     1,965,736
================= ========== =========== =============
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from limbeck.models.parts import conv1x1, conv3x3, global_pool, image, kaiming, named, small_head, stages


def mobilenet_v1(*, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """MobileNet-v1, the student of SRRL on ImageNet; (N, C, H, W) to logits (N, classes).

    Source: jingyang2017/KD_SRRL, models/MobileNet.py at e3ca8ca. The stages have 1, 2, 2, 6 and 2 blocks of 64, 128,
    256, 512 and 1024 channels.

    Args:
        classes: the number of logits.
        shape: (C, H, W), in the paper 224x224 pixels. The pooling is global, so H and W are free. The source pools
            7x7 windows, which is the same for 224x224 pixels.

    Raises:
        LimbeckError: the shape is not (C, H, W).
    """
    channels, _, _ = image(shape)
    children: dict[str, nn.Module] = {
        "stem": named(conv=conv3x3(channels, 32, 2), norm=nn.BatchNorm2d(32), relu=nn.ReLU())
    }
    children |= stages(_separable, (1, 2, 2, 6, 2), (64, 128, 256, 512, 1024), inside=32)
    return named(**children, pool=global_pool(), head=nn.Linear(1024, classes))


def _separable(inside: int, outside: int, stride: int) -> nn.Sequential:
    return named(
        depthwise=nn.Conv2d(inside, inside, 3, stride=stride, padding=1, groups=inside, bias=False),
        norm1=nn.BatchNorm2d(inside),
        relu1=nn.ReLU(),
        pointwise=conv1x1(inside, outside, 1),
        norm2=nn.BatchNorm2d(outside),
        relu2=nn.ReLU(),
    )


class InvertedResidual(nn.Module):
    """An expanding 1x1, a depthwise 3x3 and a linear 1x1 convolution, and a shortcut if the shape stays the same.

    (N, inside, H, W) to (N, outside, H / stride, W / stride).

    Args:
        inside: the number of input channels.
        outside: the number of output channels.
        stride: stride of the 3x3 convolution.
        expansion: the 3x3 convolution has ``expansion * inside`` channels. The first convolution exists also for 1.
        bias: whether the convolutions have biases, which have no effect before BatchNorm.
        activation: returns a new activation module.
    """

    def __init__(
        self, inside: int, outside: int, *, stride: int, expansion: int, bias: bool, activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        middle = inside * expansion
        self.conv1 = nn.Conv2d(inside, middle, 1, bias=bias)
        self.norm1 = nn.BatchNorm2d(middle)
        self.relu1 = activation()
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle, bias=bias)
        self.norm2 = nn.BatchNorm2d(middle)
        self.relu2 = activation()
        self.conv3 = nn.Conv2d(middle, outside, 1, bias=bias)
        self.norm3 = nn.BatchNorm2d(outside)
        self.has_shortcut = stride == 1 and inside == outside

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, inside, H, W) to (N, outside, H / stride, W / stride)."""
        features = self.relu1(self.norm1(self.conv1(inputs)))
        features = self.relu2(self.norm2(self.conv2(features)))
        features = self.norm3(self.conv3(features))
        return inputs + features if self.has_shortcut else features  # type: ignore[no-any-return]


class _Stage(NamedTuple):
    expansion: int
    outside: int
    blocks: int


_STAGES = (
    _Stage(1, 16, 1),
    _Stage(6, 24, 2),
    _Stage(6, 32, 3),
    _Stage(6, 64, 4),
    _Stage(6, 96, 3),
    _Stage(6, 160, 3),
    _Stage(6, 320, 1),
)
_LAST = 1280


def mobilenet_v2(*, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """MobileNet-v2 at full width for CIFAR, with the 2.37M parameters of SRRL; (N, C, H, W) to logits (N, classes).

    SRRL does not specify its variant. The public variant with this count for 100 classes is
    weiaicunzai/pytorch-cifar100, models/mobilenetv2.py at 03bbd58, whose convolutions have biases; the paper's network
    has 2,351,972. Its stem is a 1x1 convolution with a padding of one pixel. For a 32x32 image, the feature map before
    the pooling is 5x5. The outputs of the seven stages are linear; ``last`` ends with ReLU6.

    Args:
        classes: the number of logits.
        shape: (C, H, W); the pooling is global, so H and W are free.

    Raises:
        LimbeckError: the shape is not (C, H, W).
    """
    channels, _, _ = image(shape)
    return _second(
        nn.Conv2d(channels, 32, 1, padding=1),
        [stage.outside for stage in _STAGES],
        strides=(1, 2, 2, 2, 1, 1, 1),
        activation=nn.ReLU6,
        head=nn.Linear(_LAST, classes),
    )


def mobilenet_v2_half(*, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """RepDistiller's ``MobileNetV2``: half the width, for CIFAR; (N, C, H, W) to logits (N, classes).

    Source: HobbitLong/RepDistiller, models/mobilenetv2.py at b13aecc, ``mobile_half``: width 0.5, expansion 6. It uses
    ReLU instead of the paper's ReLU6 and does not halve the last 1280 channels. The outputs of the seven stages are
    linear; ``last`` ends with ReLU.

    Args:
        classes: the number of logits.
        shape: (C, H, W); the pooling is global, so H and W are free.

    Raises:
        LimbeckError: the shape is not (C, H, W).
    """
    channels, _, _ = image(shape)
    network = _second(
        conv3x3(channels, 16, 2),
        [stage.outside // 2 for stage in _STAGES],
        strides=(1, 1, 2, 2, 1, 2, 1),
        activation=nn.ReLU,
        head=small_head(_LAST, classes),
    )
    kaiming(network)
    return network


def _second(
    stem: nn.Conv2d,
    widths: list[int],
    *,
    strides: tuple[int, ...],
    activation: Callable[[], nn.Module],
    head: nn.Linear,
) -> nn.Module:
    bias = stem.bias is not None
    inside = stem.out_channels
    children: dict[str, nn.Module] = {"stem": named(conv=stem, norm=nn.BatchNorm2d(inside), relu=activation())}
    for number, (stage, outside, stride) in enumerate(zip(_STAGES, widths, strides, strict=True), start=1):
        blocks = []
        for place in range(stage.blocks):
            blocks.append(
                InvertedResidual(
                    inside,
                    outside,
                    stride=stride if place == 0 else 1,
                    expansion=stage.expansion,
                    bias=bias,
                    activation=activation,
                )
            )
            inside = outside
        children[f"stage{number}"] = nn.Sequential(*blocks)
    children["last"] = named(conv=nn.Conv2d(inside, _LAST, 1, bias=bias), norm=nn.BatchNorm2d(_LAST), relu=activation())
    return named(**children, pool=global_pool(), head=head)
