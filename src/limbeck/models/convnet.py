"""The two CIFAR-10 networks of the TensorFlow 2 demonstration of Hinton's distillation.

Source: lsh3163/TF-2.0-Knowledge-Distillation at 93cf8c1, with the defaults of Keras: Glorot-uniform weights, zero
biases, and BatchNorm with epsilon 1e-3 and momentum 0.99 (0.01 in PyTorch's definition).
"""

from torch import Tensor, nn
from torch.nn import functional

from limbeck.models.parts import check_share, image, named

_MOMENTUM = 0.01
_EPSILON = 1e-3
_SLOPE = 0.1


def convnet_small(*, classes: int, shape: tuple[int, ...], dropout: float = 0.3) -> nn.Module:
    """The student of the demonstration, for at least 8x8 pixels; (N, C, H, W) to logits (N, classes).

    Stages of one 32-channel, one 64-channel and two 128-channel 3x3 convolutions, then 256 units. For (3, 32, 32) and
    10 classes it has 769,162 parameters. Keras prints 770,378, as it includes the running means and variances.
    ``dropout`` in [0, 1) is the probability after each pooling.
    """
    return _convnet(((32,), (64,), (128, 128)), hidden=256, classes=classes, shape=shape, dropout=dropout)


def convnet_big(
    *, classes: int, shape: tuple[int, ...], dropout: float = 0.3, dropout_in_eval: bool = False
) -> nn.Module:
    """The teacher of the demonstration, for at least 8x8 pixels; (N, C, H, W) to logits (N, classes).

    Stages of two 64-channel, two 128-channel and three 256-channel 3x3 convolutions, then 512 units. For (3, 32, 32)
    and 10 classes it has 3,841,610 parameters. Keras prints 3,844,938, as it includes the running means and variances.
    ``dropout`` in [0, 1) is the probability after each pooling. With ``dropout_in_eval``, dropout is also active in
    eval mode, as it is by mistake in the demonstration while the teacher teaches; the option measures that mistake.
    """
    widths = ((64, 64), (128, 128), (256, 256, 256))
    network = _convnet(widths, hidden=512, classes=classes, shape=shape, dropout=dropout)
    if dropout_in_eval:
        for number in range(1, len(widths) + 1):
            network.set_submodule(f"stage{number}.dropout", _AlwaysDropout(dropout))
    return network


class _AlwaysDropout(nn.Dropout):
    """Dropout in eval mode, too."""

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.dropout(inputs, self.p, training=True)


def _convnet(
    widths: tuple[tuple[int, ...], ...], *, hidden: int, classes: int, shape: tuple[int, ...], dropout: float
) -> nn.Module:
    check_share("dropout", dropout)
    scale = 2 ** len(widths)
    inside, height, width = image(shape, least=scale)
    children: dict[str, nn.Module] = {}
    for number, channels in enumerate(widths, start=1):
        children[f"stage{number}"] = _stage(inside, channels, dropout)
        inside = channels[-1]
    children["flatten"] = nn.Flatten()
    children["hidden"] = named(
        linear=nn.Linear(inside * (height // scale) * (width // scale), hidden),
        norm=nn.BatchNorm1d(hidden, momentum=_MOMENTUM, eps=_EPSILON),
        activation=nn.LeakyReLU(_SLOPE),
    )
    network = named(**children, head=nn.Linear(hidden, classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _stage(inside: int, channels: tuple[int, ...], dropout: float) -> nn.Sequential:
    children: dict[str, nn.Module] = {}
    for number, outside in enumerate(channels, start=1):
        children[f"conv{number}"] = nn.Conv2d(inside, outside, 3, padding=1)
        children[f"norm{number}"] = nn.BatchNorm2d(outside, momentum=_MOMENTUM, eps=_EPSILON)
        children[f"activation{number}"] = nn.LeakyReLU(_SLOPE)
        inside = outside
    return named(**children, pool=nn.MaxPool2d(2), dropout=nn.Dropout(dropout))
