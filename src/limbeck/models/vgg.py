"""The VGG networks for CIFAR of RepDistiller (models/vgg.py at eedab9d), with BatchNorm.

They follow Simonyan & Zisserman 2015 (arXiv 1409.1556), but have one linear layer. The authors' code pools once more if
H is 64; these networks do not.
"""

from torch import nn

from limbeck.models.parts import global_pool, image, kaiming, named, small_head

_WIDTHS = (64, 128, 256, 512, 512)
_POOLED = (2, 3, 4)  # the stages that begin with pooling; the fifth does not, as in the authors' code


def vgg8(*, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """Five stages of one 3x3 convolution each, for at least 8x8 pixels; (N, C, H, W) to logits (N, classes)."""
    return _vgg(1, classes, shape)


def vgg13(*, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """Five stages of two 3x3 convolutions each, for at least 8x8 pixels; (N, C, H, W) to logits (N, classes)."""
    return _vgg(2, classes, shape)


def _vgg(count: int, classes: int, shape: tuple[int, ...]) -> nn.Module:
    inside, _, _ = image(shape, least=2 ** len(_POOLED))
    children: dict[str, nn.Module] = {}
    for number, outside in enumerate(_WIDTHS, start=1):
        stage: dict[str, nn.Module] = {"pool": nn.MaxPool2d(2)} if number in _POOLED else {}
        for place in range(1, count + 1):
            stage[f"conv{place}"] = nn.Conv2d(inside, outside, 3, padding=1)
            stage[f"norm{place}"] = nn.BatchNorm2d(outside)
            stage[f"relu{place}"] = nn.ReLU()
            inside = outside
        children[f"stage{number}"] = named(**stage)
    network = named(**children, pool=global_pool(), head=small_head(inside, classes))
    kaiming(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return network
