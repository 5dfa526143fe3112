"""Images that stay on disk and are decoded when they are needed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy
import torch
from PIL import Image
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.ahead import in_threads
from limbeck.data.decoding import Pixels, is_grey, quiet
from limbeck.data.pixels import converted, decoded
from limbeck.data.transforms import code_of, identity
from limbeck.data.trees import Reader

_HEAD = 4096  # bytes of each file that the fingerprint covers


@dataclass(frozen=True, eq=False)
class Images:
    """Image files that stand for a tensor (N, C, H, W), for a split that does not fit in memory.

    It has the ``shape``, ``dtype``, ``dim()`` and length of the tensor, and ``images[index]`` decodes images.

    Raises:
        LimbeckError: the transform's file does not exist, or cannot be read.
    """

    reader: Reader  # of the folder or zip file
    names: tuple[str, ...]  # of the files in it
    size: tuple[int, int]  # height and width in pixels
    channels: int = 3  # 3 (RGB), or 1 if all images are grey, or those of arrays
    workers: int = 0  # processes that decode for `Batches`; 0: only this one
    transform: str | None = None  # of the training views, see `limbeck.data.transforms`
    exif_orientation: bool = True  # whether images are turned as their EXIF data says
    code: bytes = b""  # of the transform's file; read at once, because the file may change later
    deep: bool = False  # whether they are float32, because some have more than 8 bits a channel

    def __post_init__(self) -> None:
        if self.transform is not None and not self.code:
            object.__setattr__(self, "code", code_of(self.transform))

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self.names), self.channels, *self.size))

    @property
    def dtype(self) -> torch.dtype:
        """uint8, or float32 if they are deep."""
        return torch.float32 if self.deep else torch.uint8

    def dim(self) -> int:
        """4, the length of the shape."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Decode the images at these places, (M,) int64, to (M, C, H, W), fitted to the size, see `plain`.

        Raises:
            LimbeckError: an image cannot be read; the message names it.
        """
        names = [self.names[place] for place in index.tolist()]
        result = torch.empty(len(names), *self.shape[1:], dtype=self.dtype)
        grid = by_pixel(result)
        files = ((name, self.reader(name)) for name in names)
        with quiet():
            for place, pixels in enumerate(in_threads(lambda file: self.plain(*file), files)):
                grid[place] = pixels
        return result

    def select(self, index: Tensor) -> "Images":
        """The images at these places, (M,) int64, in this order; nothing is decoded."""
        return replace(self, names=tuple(self.names[place] for place in index.tolist()))

    def fingerprint(self) -> Iterator[bytes]:
        """What `Split.digest` covers of the images, piece by piece."""
        made_by = identity(self.transform, self.code) if self.transform is not None else b""
        yield repr((tuple(self.shape), self.exif_orientation, len(made_by))).encode() + made_by + b"deep" * self.deep
        for name in self.names:
            size, head = self.reader.head(name, _HEAD)
            yield repr((name, size)).encode() + head

    def plain(self, name: str, data: bytes) -> Pixels:
        """Decode an image file to (H, W, C), `limbeck.data.decoding.fitted` to the size.

        Raises:
            LimbeckError: the file cannot be read, or does not fit the channels or the type.
        """
        label = f"{name} in {self.reader.place}"
        pixels = decoded(label, data, self.size, exif_orientation=self.exif_orientation).pixels
        return converted(label, pixels, self.channels, deep=self.deep)


Inputs: TypeAlias = Tensor | Images
"""The inputs of a split, in memory or on disk."""


def with_channels(label: str, image: Image.Image, channels: int) -> Image.Image:
    """Convert an image of mode L or RGB to RGB, or to L for one channel.

    Raises:
        LimbeckError: the image is in colour and ``channels`` is 1, or it has more than 8 bits.
    """
    if image.mode == "F":
        raise LimbeckError(f"{label} has more than 8 bits a channel, but those that were checked when loading do not")
    if channels == 1 and image.mode != "L":
        if not is_grey(numpy.asarray(image)):
            raise LimbeckError(f"{label} is in colour, but the images that were checked when loading are all grey")
        return image.getchannel(0)
    return image.convert("RGB") if channels == 3 and image.mode != "RGB" else image


def by_pixel(images: Tensor) -> Pixels:
    """The same memory as (N, H, W, C), the order in which decoders write."""
    grid: Pixels = images.permute(0, 2, 3, 1).numpy()
    return grid


def pieces(values: Tensor, size: int) -> Iterator[Tensor]:
    """The parts of a tensor along its first dimension, ``size`` at a time; an empty tensor has no parts."""
    return (values[start : start + size] for start in range(0, len(values), size))
