"""Small convolutional networks for 32 x 32 images of the demonstrations."""

import torch
from torch import Tensor, nn

from limbeck.models.parts import named


def block(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    """A 3 x 3 convolution, BatchNorm and ReLU."""
    convolution = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside), nn.ReLU())


def points(outputs: int, *, width: int, deep: bool, feature: int) -> nn.Sequential:
    """Grey images (N, 1, 32, 32) to numbers (N, outputs). The last map is not pooled, because places matter."""
    return named(
        stage1=_stage(1, width, deep),
        stage2=_stage(width, 2 * width, deep),
        stage3=_stage(2 * width, 4 * width, deep),
        flat=nn.Flatten(),
        hidden=nn.Sequential(nn.Linear(4 * width * 16, feature), nn.ReLU()),
        head=nn.Linear(feature, outputs),
    )


def labels(outputs: int, *, width: int, deep: bool) -> nn.Sequential:
    """Colour images (N, 3, 32, 32) to logits (N, outputs)."""
    return named(
        stage1=_stage(3, width, deep),
        stage2=_stage(width, 2 * width, deep),
        stage3=block(2 * width, 4 * width),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        head=nn.Linear(4 * width, outputs),
    )


def _stage(inside: int, outside: int, deep: bool) -> nn.Sequential:
    """Half the sides. A deep stage has one more convolution, before the one that halves them."""
    before = [block(inside, outside)] if deep else []
    return nn.Sequential(*before, block(outside if deep else inside, outside, 2))


class Segmenter(nn.Module):
    """Colour images (N, 3, H, W), with sides that are multiples of 4, to logits (N, outputs, H, W): a small U-Net."""

    def __init__(self, outputs: int, *, width: int, deep: bool) -> None:
        super().__init__()
        self.fine = nn.Sequential(block(3, width), *([block(width, width)] if deep else []))
        self.middle = _stage(width, 2 * width, deep)
        self.coarse = _stage(2 * width, 4 * width, deep)
        self.up = nn.Upsample(scale_factor=2)
        self.joined = block(6 * width, 2 * width)
        self.last = block(3 * width, width)
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        fine = self.fine(inputs)
        middle = self.middle(fine)
        joined = self.joined(torch.cat((middle, self.up(self.coarse(middle))), dim=1))
        logits: Tensor = self.head(self.last(torch.cat((fine, self.up(joined)), dim=1)))
        return logits
