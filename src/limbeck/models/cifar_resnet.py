"""The CIFAR ResNets of He et al. 2016 (arXiv 1512.03385, section 4.2), in the form of the distillation benchmarks.

RepDistiller and mdistiller differ from the paper in the shortcut where the shape changes: a 1x1 convolution with
BatchNorm instead of zero padding. Their published accuracies are of this form.

Parameters for 3 channels:

=========== ========== ===========
network     10 classes 100 classes
=========== ========== ===========
resnet8         78,042      83,892
resnet14       175,258     181,108
resnet20       272,474     278,324
resnet26       369,690     375,540
resnet32       466,906     472,756
resnet44       661,338     667,188
resnet56       855,770     861,620
resnet110    1,730,714   1,736,564
resnet8x4    1,210,410   1,233,540
resnet32x4   7,410,730   7,433,860
=========== ========== ===========
"""

from collections.abc import Callable

from torch import Tensor, nn

from limbeck.models.parts import conv1x1, conv3x3, global_pool, image, kaiming, named


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; (N, inside, H, W) to (N, outside, H / stride, W / stride).

    The tensor before the last activation is the *input* of ``relu2``.
    """

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inside, outside, stride)
        self.norm1 = nn.BatchNorm2d(outside)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(outside, outside)
        self.norm2 = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = named(conv=conv1x1(inside, outside, stride), norm=nn.BatchNorm2d(outside))
        self.relu2 = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, inside, H, W) to (N, outside, H / stride, W / stride)."""
        features = self.relu1(self.norm1(self.conv1(inputs)))
        features = self.norm2(self.conv2(features))
        return self.relu2(features + self.shortcut(inputs))  # type: ignore[no-any-return]


def cifar_resnet(*, depth: int, widths: tuple[int, int, int, int], classes: int, shape: tuple[int, ...]) -> nn.Module:
    """A ResNet of basic blocks; (N, C, H, W) to logits (N, classes).

    Args:
        depth: 6n + 2, with n blocks in each of three stages.
        widths: channels of the stem and of the stages.
        classes: the number of logits.
        shape: (C, H, W); the pooling is global, so H and W are free.

    Raises:
        LimbeckError: the shape is not (C, H, W).
    """
    channels, _, _ = image(shape)
    stem, *stages = widths
    children: dict[str, nn.Module] = {
        "stem": named(conv=conv3x3(channels, stem), norm=nn.BatchNorm2d(stem), relu=nn.ReLU())
    }
    inside = stem
    for number, outside in enumerate(stages, start=1):
        blocks = [BasicBlock(inside, outside, stride=1 if number == 1 else 2)]
        blocks += [BasicBlock(outside, outside, stride=1) for _ in range((depth - 2) // 6 - 1)]
        children[f"stage{number}"] = nn.Sequential(*blocks)
        inside = outside
    network = named(**children, pool=global_pool(), head=nn.Linear(inside, classes))
    kaiming(network)
    return network


def _sized(depth: int, widths: tuple[int, int, int, int]) -> Callable[..., nn.Module]:
    def factory(*, classes: int, shape: tuple[int, ...]) -> nn.Module:
        return cifar_resnet(depth=depth, widths=widths, classes=classes, shape=shape)

    factory.__doc__ = f"CIFAR ResNet of depth {depth}, widths {widths}; (N, C, H, W) to logits (N, classes)."
    return factory


_NARROW = (16, 16, 32, 64)
_WIDE = (32, 64, 128, 256)

CIFAR_RESNETS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": _sized(8, _NARROW),
    "resnet14": _sized(14, _NARROW),
    "resnet20": _sized(20, _NARROW),
    "resnet26": _sized(26, _NARROW),
    "resnet32": _sized(32, _NARROW),
    "resnet44": _sized(44, _NARROW),
    "resnet56": _sized(56, _NARROW),
    "resnet110": _sized(110, _NARROW),
    "resnet8x4": _sized(8, _WIDE),
    "resnet32x4": _sized(32, _WIDE),
}
