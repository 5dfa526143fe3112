"""The wide ResNets of Zagoruyko & Komodakis 2016 (arXiv 1605.07146), for CIFAR.

``wrn_D_K`` has depth D = 6n + 4 and width factor K.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from limbeck.models.parts import check_share, conv1x1, conv3x3, global_pool, image, kaiming, named, stages


class PreactivationBlock(nn.Module):
    """BN-ReLU-conv, BN-ReLU-dropout-conv and a shortcut; (N, inside, H, W) to (N, outside, H / stride, W / stride).

    If the shape changes, the shortcut is a 1x1 convolution of the activated input, as in the authors' code. Otherwise
    it is the input.
    """

    def __init__(self, inside: int, outside: int, stride: int, *, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inside)
        self.relu1 = nn.ReLU()
        self.conv1 = conv3x3(inside, outside, stride)
        self.norm2 = nn.BatchNorm2d(outside)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(outside, outside)
        changes = stride != 1 or inside != outside
        self.shortcut = conv1x1(inside, outside, stride) if changes else None

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, inside, H, W) to (N, outside, H / stride, W / stride)."""
        active = self.relu1(self.norm1(inputs))
        shortcut = inputs if self.shortcut is None else self.shortcut(active)
        features = self.relu2(self.norm2(self.conv1(active)))
        return shortcut + self.conv2(self.dropout(features))  # type: ignore[no-any-return]


def wide_resnet(*, depth: int, factor: int, classes: int, shape: tuple[int, ...], dropout: float = 0.0) -> nn.Module:
    """A wide ResNet; (N, C, H, W) to logits (N, classes).

    Args:
        depth: 6n + 4, with n blocks in each of three stages.
        factor: k; the stages have 16k, 32k and 64k channels.
        classes: the number of logits.
        shape: (C, H, W); the pooling is global, so H and W are free.
        dropout: probability between the convolutions of a block, in [0, 1); the paper uses 0 or 0.3 (section 3.3).
    """
    check_share("dropout", dropout)
    channels, _, _ = image(shape)
    widths = (16 * factor, 32 * factor, 64 * factor)
    children: dict[str, nn.Module] = {"stem": conv3x3(channels, 16)}
    children |= stages(partial(PreactivationBlock, dropout=dropout), [(depth - 4) // 6] * 3, widths, inside=16)
    children |= {"norm": nn.BatchNorm2d(widths[-1]), "relu": nn.ReLU(), "pool": global_pool()}
    head = nn.Linear(widths[-1], classes)
    nn.init.zeros_(head.bias)
    network = named(**children, head=head)
    kaiming(network)
    return network


def _sized(depth: int, factor: int) -> Callable[..., nn.Module]:
    def factory(*, classes: int, shape: tuple[int, ...], dropout: float = 0.0) -> nn.Module:
        return wide_resnet(depth=depth, factor=factor, classes=classes, shape=shape, dropout=dropout)

    factory.__doc__ = f"Wide ResNet of depth {depth}, width factor {factor}; (N, C, H, W) to logits (N, classes)."
    return factory


_SIZES = ((10, 10), (16, 1), (16, 2), (16, 4), (16, 10), (28, 4), (28, 10), (40, 1), (40, 2), (40, 4))

WIDE_RESNETS: dict[str, Callable[..., nn.Module]] = {
    f"wrn_{depth}_{factor}": _sized(depth, factor) for depth, factor in _SIZES
}
