"""What a network expects of its inputs, and the conversion of a batch that was normalised for other networks.

A batch is normalised with the mean and deviation of the data. A network that was trained with another normalisation,
size, range or order of channels gets a forward pre-hook, `Bridge`, that converts the batch: teacher and student then
read the same augmented view, each in its own form. The names of the layers and the state dict do not change.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from limbeck.core import LimbeckError
from limbeck.errors import nearest

Channels = Literal["rgb", "bgr", "gray"]

STATISTICS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "none": ((0.0,), (1.0,)),
}
"""Means and deviations by name, of RGB values in [0, 1]; the first three as in timm (timm/data/constants.py)."""

LUMA = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in a grey value (ITU-R BT.601), as Pillow converts to mode L."""


@dataclass(frozen=True)
class Input:
    """What a network was trained to read. What is None is as in the data.

    A value v in [0, 1] (a pixel divided by 255; values of floating inputs are taken as they are) reaches the network as
    ``(v * range - mean) / std``.

    Args:
        mean: a number for each channel of the network or for all, or a name in `STATISTICS`.
        std: likewise, greater than 0. Give both or neither.
        size: height and width in pixels, or one number for a square. The view is resized to cover it (bilinear,
            antialiased), and the centre is cut out.
        channels: "rgb", "bgr" or "gray". Colour becomes grey by `LUMA`; grey is repeated.
        range: the greatest value of a pixel before mean and std are applied, 1 or 255.

    Raises:
        LimbeckError: a value is out of range, or there are no statistics of that name.
    """

    mean: str | float | tuple[float, ...] | None = None
    std: str | float | tuple[float, ...] | None = None
    size: int | tuple[int, int] | None = None
    channels: Channels | None = None
    range: float = 1.0

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise LimbeckError("an input has a mean and a std, or neither: only one of them is given")
        if self.channels is not None and self.channels not in get_args(Channels):
            raise LimbeckError(f"channels is {self.channels!r}: {nearest(self.channels, get_args(Channels))}")
        if not self.range > 0:
            raise LimbeckError(f"range is {self.range}: allowed are numbers greater than 0, such as 1 and 255")
        sides = self.sides
        if sides is not None and (len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides)):
            raise LimbeckError(f"size is {self.size}: allowed are a height and a width of at least 1 pixel")
        mean, std = self.statistics or ((), ())
        if not all(value > 0 for value in std) or not all(abs(value) < float("inf") for value in (*mean, *std)):
            raise LimbeckError(f"std is {self.std}: allowed are finite numbers greater than 0")

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width; None as in the data."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and std as numbers, of values in [0, range]; None as in the data."""
        if self.mean is None or self.std is None:
            return None
        return self._numbers("mean", self.mean, 0), self._numbers("std", self.std, 1)

    def _numbers(self, key: str, value: str | float | Sequence[float], which: int) -> tuple[float, ...]:
        if isinstance(value, str):
            if value not in STATISTICS:
                raise LimbeckError(f"{key} is {value!r}: {nearest(value, STATISTICS)}, and numbers")
            return tuple(self.range * one for one in STATISTICS[value][which])
        return (float(value),) if isinstance(value, int | float) else tuple(map(float, value))

    def shape(self, data: Sequence[int]) -> tuple[int, ...]:
        """The shape of one sample that the network reads, for data of this shape.

        Raises:
            LimbeckError: the data are no images, and the input has a size or channels; or they have neither 1 nor 3
                channels, and the input names its channels.
        """
        if self.sides is None and self.channels is None:
            return tuple(data)
        if len(data) != 3:
            raise LimbeckError(f"an input with a size or channels is an image, but the samples have shape {(*data,)}")
        if self.channels is not None and data[0] not in (1, 3):
            raise LimbeckError(f"channels is {self.channels!r}, but the data has {data[0]}; allowed are 1 and 3")
        count = data[0] if self.channels is None else 1 if self.channels == "gray" else 3
        return (count, *(self.sides or data[1:]))


AS_THE_DATA = Input()


class Bridge:
    """A forward pre-hook that converts a batch of the data, normalised, to what the network reads.

    Every step is affine and works on each channel, or mixes three channels to one, so the whole is
    ``scale * resized(x) + shift``. While ``active`` is False, inputs pass as they are.

    Args:
        expected: what the network reads.
        shape: of one sample of the data, without N.
        mean: of the data's normalisation, see `limbeck.data.normalise`.
        std: its deviation.

    Attributes:
        own: the shape of one sample of the network. mean, std: its normalisation of values in [0, 1].

    Raises:
        LimbeckError: the number of means does not fit the network's channels; see also `Input.shape`.
    """

    def __init__(self, expected: Input, shape: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
        self.expected, self.own, self.active = expected, expected.shape(shape), True
        given, count = (one[0] if len(one) > 1 else 1 for one in (shape, self.own))
        self._given, self._count = given, count
        mix = _mix(expected.channels, given)
        data_mean, data_std = (torch.tensor(one, dtype=torch.float64) for one in (mean, std))
        if expected.statistics is not None:
            its_mean, its_std = (torch.tensor(_each(one, count), dtype=torch.float64) for one in expected.statistics)
        elif expected.range == 1:
            its_mean, its_std = (data_mean, data_std) if len(mix) == given else (mix @ data_mean, mix @ data_std)
            its_mean, its_std = (one.flip(0) if expected.channels == "bgr" else one for one in (its_mean, its_std))
        else:
            its_mean, its_std = torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
        self.mean, self.std = (tuple((one / expected.range).tolist()) for one in (its_mean, its_std))
        scale = expected.range / its_std[:, None] * mix * data_std
        shift = (expected.range * mix @ data_mean - its_mean) / its_std
        self._flip = expected.channels == "bgr" and given > 1
        self._sum = given > count
        self._size = self.own[1:] if len(self.own) == 3 and self.own[1:] != tuple(shape[1:]) else None
        each = (1, -1, *[1] * (len(shape) - 1))
        summands = scale[0] if self._sum else scale.flip(1).diagonal() if self._flip else scale.sum(dim=1)
        self._exact = self._ready = summands.view(each), shift.view(each)

    def __str__(self) -> str:
        size = f"{' x '.join(map(str, self.own))}, " if self._size or self._count != self._given else ""
        order = f"{self.expected.channels.upper()}, " if self.expected.channels else ""
        top = self.expected.range
        mean, std = (", ".join(f"{value * top:.4g}" for value in one) for one in (self.mean, self.std))
        return f"{size}{order}values from 0 to {top:g} normalised with mean {mean} and std {std}"

    def __repr__(self) -> str:
        return f"Bridge({self.own}, {self._flip}, {[one.flatten().tolist() for one in self._exact]})"

    @property
    def changes(self) -> bool:
        """Whether any batch is changed."""
        scale, shift = self._exact
        plain = torch.allclose(scale, torch.ones_like(scale), rtol=1e-6) and bool((shift.abs() < 1e-6).all())
        return not plain or self._size is not None or self._flip or self._sum or scale.numel() != self._given

    def install(self, network: nn.Module) -> RemovableHandle:
        """Let a network convert every batch that it gets, before its other hooks."""
        return network.register_forward_pre_hook(self, prepend=True)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Replace the first argument of the forward (N, ...)."""
        if not self.active:
            return None
        return (self.convert(args[0]), *args[1:])

    def convert(self, inputs: Tensor) -> Tensor:
        """A normalised batch (N, *shape) of the data as a batch of the network, (N, *own)."""
        if self._ready[0].device != inputs.device or self._ready[0].dtype != inputs.dtype:
            self._ready = self._exact[0].to(inputs), self._exact[1].to(inputs)
        scale, shift = self._ready
        if self._size is not None:
            inputs = resized(inputs, self._size)
        if self._sum:
            return (inputs * scale).sum(dim=1, keepdim=True) + shift
        return torch.addcmul(shift, inputs.flip(1) if self._flip else inputs, scale)


def _each(values: Sequence[float], count: int) -> list[float]:
    if len(values) not in (1, count):
        raise LimbeckError(
            f"an input has {len(values)} means or deviations for {count} channels; allowed are 1 and {count}"
        )
    return [*values] * (count if len(values) == 1 else 1)


def _mix(channels: Channels | None, given: int) -> Tensor:
    """The matrix from the data's channels in [0, 1] to the network's."""
    if channels == "gray" and given == 3:
        return torch.tensor([LUMA], dtype=torch.float64)
    if channels in ("rgb", "bgr") and given == 1:
        return torch.ones(3, 1, dtype=torch.float64)
    plain = torch.eye(given, dtype=torch.float64)
    return plain.flip(0) if channels == "bgr" else plain


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (N, C, H, W) resized to cover a height and width, and the centre cut out (bilinear, antialiased)."""
    height, width = images.shape[2:]
    factor = max(size[0] / height, size[1] / width)
    cover = max(size[0], round(height * factor)), max(size[1], round(width * factor))
    whole = F.interpolate(images, cover, mode="bilinear", antialias=True, align_corners=False)
    top, left = (cover[0] - size[0]) // 2, (cover[1] - size[1]) // 2
    return whole[:, :, top : top + size[0], left : left + size[1]]


def bridge_of(network: nn.Module) -> Bridge | None:
    """The bridge that a network has."""
    return next((hook for hook in network._forward_pre_hooks.values() if isinstance(hook, Bridge)), None)


@contextmanager
def as_deployed(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block the networks read batches of their own form, as without limbeck."""
    bridges = [bridge for network in networks if (bridge := bridge_of(network)) is not None]
    for bridge in bridges:
        bridge.active = False
    try:
        yield
    finally:
        for bridge in bridges:
            bridge.active = True
