"""The ShuffleNets for CIFAR of RepDistiller (models/ShuffleNetv1.py and ShuffleNetv2.py at eedab9d).

They follow Zhang et al. 2018 (arXiv 1707.01083) and Ma et al. 2018 (arXiv 1807.11164), but the stem is a 1x1
convolution without pooling.
"""

from functools import partial

import torch
from torch import Tensor, nn

from limbeck.models.parts import activated, conv1x1, global_pool, image, named, stages

_STEM = 24


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)


class GroupedBlock(nn.Module):
    """The unit of ShuffleNet-v1; (N, inside, H, W) to (N, outside, H / stride, W / stride).

    At stride 2, the average-pooled input is concatenated to the new channels; at stride 1, the input is added. The
    tensor before the last activation is the *input* of ``relu3``. The 1x1 convolutions have ``groups`` groups, but the
    first one after the stem has one.
    """

    def __init__(self, inside: int, outside: int, stride: int, *, groups: int) -> None:
        super().__init__()
        appends = stride == 2
        new = outside - inside if appends else outside
        middle = new // 4
        first = 1 if inside == _STEM else groups
        self.conv1 = nn.Conv2d(inside, middle, 1, groups=first, bias=False)
        self.norm1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(first)
        self.conv2 = _depthwise(middle, stride)
        self.norm2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(middle, new, 1, groups=groups, bias=False)
        self.norm3 = nn.BatchNorm2d(new)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if appends else nn.Identity()
        self.appends = appends
        self.relu3 = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, inside, H, W) to (N, outside, H / stride, W / stride)."""
        features = self.shuffle(self.relu1(self.norm1(self.conv1(inputs))))
        features = self.relu2(self.norm2(self.conv2(features)))
        features = self.norm3(self.conv3(features))
        shortcut = self.shortcut(inputs)
        return self.relu3(  # type: ignore[no-any-return]
            torch.cat([features, shortcut], 1) if self.appends else features + shortcut
        )


class SplitBlock(nn.Module):
    """The unit of ShuffleNet-v2 at stride 1: half of the channels are convolved; (N, C, H, W) to (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = _convolved(channels // 2, channels // 2, 1)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        passed, rest = inputs.chunk(2, dim=1)
        return self.shuffle(torch.cat([passed, self.branch(rest)], 1))  # type: ignore[no-any-return]


class DownBlock(nn.Module):
    """The unit of ShuffleNet-v2 at stride 2, with two branches; (N, inside, H, W) to (N, outside, H / 2, W / 2)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        half = outside // 2
        self.branch1 = named(
            conv1=_depthwise(inside, 2),
            norm1=nn.BatchNorm2d(inside),
            conv2=conv1x1(inside, half, 1),
            norm2=nn.BatchNorm2d(half),
            relu=nn.ReLU(),
        )
        self.branch2 = _convolved(inside, half, 2)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, inside, H, W) to (N, outside, H / 2, W / 2)."""
        features = torch.cat([self.branch1(inputs), self.branch2(inputs)], 1)
        return self.shuffle(features)  # type: ignore[no-any-return]


def _convolved(inside: int, outside: int, stride: int) -> nn.Sequential:
    return named(
        conv1=conv1x1(inside, outside, 1),
        norm1=nn.BatchNorm2d(outside),
        relu1=nn.ReLU(),
        conv2=_depthwise(outside, stride),
        norm2=nn.BatchNorm2d(outside),
        conv3=conv1x1(outside, outside, 1),
        norm3=nn.BatchNorm2d(outside),
        relu3=nn.ReLU(),
    )


def shufflenet_v1(*, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """RepDistiller's ``ShuffleV1``: stages of 240, 480 and 960 channels, 3 groups; (N, C, H, W) to (N, classes)."""
    channels, _, _ = image(shape)
    children: dict[str, nn.Module] = {"stem": activated(conv1x1(channels, _STEM, 1))}
    children |= stages(partial(GroupedBlock, groups=3), (4, 8, 4), (240, 480, 960), inside=_STEM, first_stride=2)
    return named(**children, pool=global_pool(), head=nn.Linear(960, classes))


def shufflenet_v2(*, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """RepDistiller's ``ShuffleV2``: stages of 116, 232 and 464 channels, then 1024; (N, C, H, W) to (N, classes)."""
    channels, _, _ = image(shape)

    def block(inside: int, outside: int, stride: int) -> nn.Module:
        return DownBlock(inside, outside) if stride == 2 else SplitBlock(outside)

    children: dict[str, nn.Module] = {"stem": activated(conv1x1(channels, _STEM, 1))}
    children |= stages(block, (4, 8, 4), (116, 232, 464), inside=_STEM, first_stride=2)
    children["last"] = activated(conv1x1(464, 1024, 1))
    return named(**children, pool=global_pool(), head=nn.Linear(1024, classes))
