"""The ResNets with four stages of He et al. 2016 (arXiv 1512.03385, table 1).

``resnet10`` to ``resnet50`` have the stem of the CIFAR networks, one 3x3 convolution, as in SRRL (ICLR 2021) and
RepDistiller. Parameters for 3 channels:

=================== ========== ===========
network             10 classes 100 classes
=================== ========== ===========
resnet10             4,903,242   4,949,412
resnet18            11,173,962  11,220,132
resnet34            21,282,122  21,328,292
resnet50            23,520,842  23,705,252
resnet10, width: 16    308,826     320,436
resnet18, width: 16    701,466     713,076
resnet34, width: 16  1,334,618   1,346,228
resnet50, width: 16  1,484,186   1,530,356
=================== ========== ===========

For CIFAR-10, SRRL reports 0.7M and 1.4M for its thin ResNet-18 and ResNet-34, which match the networks above. For
CIFAR-100 it reports 0.34M, 0.75M, 1.39M and 1.99M for its thin ResNet-10, 18, 34 and 50, which do not match; the
difference is not published.

``imagenet_resnet34`` is FSP's teacher for CUB-200-2011 and ``imagenet_resnet20`` its student (Yim et al. 2017,
section 4.3). They have the stem of the ImageNet networks. The teacher has 21,797,672 parameters for 1,000 classes, like
torchvision's resnet34, whose weights fit after renaming. For CUB's 200 classes they have 21,387,272 and 12,459,784.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from limbeck.models.cifar_resnet import SHORTCUTS, BasicBlock, Shortcut, projection
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

_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; (N, inside, H, W) to (N, outside, H / stride, W / stride).

    The 3x3 convolution has a quarter of the output channels and applies the stride. The tensor before the last
    activation is the *input* of ``relu3``.
    """

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        middle = outside // _EXPANSION
        self.conv1 = conv1x1(inside, middle, 1)
        self.norm1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(middle, middle, stride)
        self.norm2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = conv1x1(middle, outside, 1)
        self.norm3 = nn.BatchNorm2d(outside)
        changes = stride != 1 or inside != outside
        self.shortcut = projection(inside, outside, stride) if changes else nn.Identity()
        self.relu3 = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, inside, H, W) to (N, outside, H / stride, W / stride)."""
        features = self.relu1(self.norm1(self.conv1(inputs)))
        features = self.relu2(self.norm2(self.conv2(features)))
        features = self.norm3(self.conv3(features))
        return self.relu3(features + self.shortcut(inputs))  # type: ignore[no-any-return]


def _assembled(
    first: dict[str, nn.Module],
    block: Callable[[int, int, int], nn.Module],
    counts: tuple[int, ...],
    *,
    width: int,
    expansion: int = 1,
    classes: int,
) -> nn.Module:
    widths = [expansion * width * 2**number for number in range(len(counts))]
    children = first | stages(block, counts, widths, inside=width)
    network = named(**children, pool=global_pool(), head=nn.Linear(widths[-1], classes))
    kaiming(network)
    return network


def _cifar(
    depth: int, counts: tuple[int, ...], block: Callable[[int, int, int], nn.Module] = BasicBlock, expansion: int = 1
) -> Callable[..., nn.Module]:
    def factory(*, classes: int, shape: tuple[int, ...], width: int = 64) -> nn.Module:
        check_count("width", width)
        channels, _, _ = image(shape)
        stem = activated(conv3x3(channels, width))
        return _assembled({"stem": stem}, block, counts, width=width, expansion=expansion, classes=classes)

    factory.__doc__ = f"""ResNet-{depth} with a stem for CIFAR; (N, C, H, W) to logits (N, classes).

    Args:
        width: channels of the stem; the stages have {expansion}, {2 * expansion}, {4 * expansion} and {8 * expansion} \
times as many. 16 is the thin network of SRRL.
    """
    return factory


def _imagenet(depth: int, counts: tuple[int, ...]) -> Callable[..., nn.Module]:
    def factory(
        *,
        classes: int,
        shape: tuple[int, ...],
        width: int = 64,
        shortcut: Shortcut = "projection",
        input_norm: bool = False,
    ) -> nn.Module:
        check_count("width", width)
        channels, _, _ = image(shape)
        block = partial(BasicBlock, shortcut=SHORTCUTS[shortcut])
        first: dict[str, nn.Module] = {"input_norm": nn.BatchNorm2d(channels)} if input_norm else {}
        first["stem"] = activated(nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False))
        first["stem_pool"] = nn.MaxPool2d(3, stride=2, padding=1)
        return _assembled(first, block, counts, width=width, classes=classes)

    factory.__doc__ = f"""ResNet-{depth} with a stem for ImageNet; (N, C, H, W) to logits (N, classes).

    The papers use 224x224 pixels.

    Args:
        width: channels of the stem and the first stage; the others have 2, 4 and 8 times as many.
        shortcut: see `cifar_resnet`; networks trained on ImageNet have projections.
        input_norm: whether BatchNorm precedes the stem, as in FSP's CIFAR networks.
    """
    return factory


RESNETS: dict[str, Callable[..., nn.Module]] = {
    "resnet10": _cifar(10, (1, 1, 1, 1)),
    "resnet18": _cifar(18, (2, 2, 2, 2)),
    "resnet34": _cifar(34, (3, 4, 6, 3)),
    "resnet50": _cifar(50, (3, 4, 6, 3), Bottleneck, _EXPANSION),
    "imagenet_resnet20": _imagenet(20, (2, 2, 3, 2)),
    "imagenet_resnet34": _imagenet(34, (3, 4, 6, 3)),
}
