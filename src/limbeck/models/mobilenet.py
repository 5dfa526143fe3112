"""MobileNets: SRRL's student for ImageNet, and two variants of MobileNet-v2 for CIFAR.

Howard et al. 2017 (arXiv 1704.04861) and Sandler et al. 2018 (arXiv 1801.04381).
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from limbeck.models.parts import activated, conv1x1, conv3x3, global_pool, image, kaiming, named, small_head, stages


def mobilenet_v1(*, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """MobileNet-v1, the student of SRRL on ImageNet; (N, C, H, W) to logits (N, classes).

    Source: jingyang2017/KD_SRRL, models/MobileNet.py at e3ca8ca. The stages have 1, 2, 2, 6 and 2 blocks of 64, 128,
    256, 512 and 1024 channels. The pooling is global; the source pools 7x7 windows, which is the same for the paper's
    224x224 pixels.
    """
    channels, _, _ = image(shape)
    children: dict[str, nn.Module] = {"stem": activated(conv3x3(channels, 32, 2))}
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

    (N, inside, H, W) to (N, outside, H / stride, W / stride). The 3x3 convolution has ``expansion * inside`` channels;
    the first convolution exists also for an expansion of 1. Biases have no effect before BatchNorm.
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


_WIDTHS = (16, 24, 32, 64, 96, 160, 320)
_BLOCKS = (1, 2, 3, 4, 3, 3, 1)
_LAST = 1280


def mobilenet_v2(*, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """MobileNet-v2 at full width for CIFAR, with the 2.37M parameters of SRRL; (N, C, H, W) to logits (N, classes).

    SRRL does not specify its variant. The public variant with this count for 100 classes is
    weiaicunzai/pytorch-cifar100, models/mobilenetv2.py at 03bbd58, whose convolutions have biases; the paper's network
    has 2,351,972. Its stem is a 1x1 convolution with a padding of one pixel. For a 32x32 image, the feature map before
    the pooling is 5x5. The outputs of the seven stages are linear; ``last`` ends with ReLU6.
    """
    channels, _, _ = image(shape)
    return _second(
        nn.Conv2d(channels, 32, 1, padding=1),
        _WIDTHS,
        strides=(1, 2, 2, 2, 1, 1, 1),
        activation=nn.ReLU6,
        head=nn.Linear(_LAST, classes),
    )


def mobilenet_v2_half(*, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """RepDistiller's ``MobileNetV2``: half the width, for CIFAR; (N, C, H, W) to logits (N, classes).

    Source: HobbitLong/RepDistiller, models/mobilenetv2.py at b13aecc, ``mobile_half``: width 0.5, expansion 6. It uses
    ReLU instead of the paper's ReLU6 and does not halve the last 1280 channels. The outputs of the seven stages are
    linear; ``last`` ends with ReLU.
    """
    channels, _, _ = image(shape)
    network = _second(
        conv3x3(channels, 16, 2),
        [width // 2 for width in _WIDTHS],
        strides=(1, 1, 2, 2, 1, 2, 1),
        activation=nn.ReLU,
        head=small_head(_LAST, classes),
    )
    kaiming(network)
    return network


def _second(
    stem: nn.Conv2d,
    widths: Sequence[int],
    *,
    strides: tuple[int, ...],
    activation: Callable[[], nn.Module],
    head: nn.Linear,
) -> nn.Module:
    bias = stem.bias is not None
    inside = stem.out_channels
    children: dict[str, nn.Module] = {"stem": activated(stem, activation)}
    for number, (outside, count, stride) in enumerate(zip(widths, _BLOCKS, strides, strict=True), start=1):
        block = partial(
            InvertedResidual, outside=outside, expansion=1 if number == 1 else 6, bias=bias, activation=activation
        )
        blocks = [block(inside, stride=stride), *(block(outside, stride=1) for _ in range(count - 1))]
        children[f"stage{number}"] = nn.Sequential(*blocks)
        inside = outside
    children["last"] = activated(nn.Conv2d(inside, _LAST, 1, bias=bias), activation)
    return named(**children, pool=global_pool(), head=head)
