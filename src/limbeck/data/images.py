"""Images that stay on disk and are decoded when they are needed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import numpy
import torch
from PIL import Image
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.ahead import in_threads
from limbeck.data.decoding import Pixels, decode, fitted, is_grey, quiet
from limbeck.data.transforms import code_of, identity
from limbeck.data.trees import Reader

_HEAD = 4096  # bytes of each file that the fingerprint covers


@dataclass(frozen=True, eq=False)
class Images:
    """Image files that stand for a tensor (N, C, H, W) uint8, for a split that does not fit in memory.

    It has the ``shape``, ``dtype``, ``dim()`` and length of the tensor, and ``images[index]`` decodes images.

    Raises:
        LimbeckError: the transform's file does not exist, or cannot be read.
    """

    reader: Reader  # of the folder or zip file
    names: tuple[str, ...]  # of the files in it
    size: tuple[int, int]  # height and width in pixels
    channels: int = 3  # 3 (RGB), or 1 if all images are grey
    workers: int = 0  # processes that decode for `Batches`; 0: only this one
    transform: str | None = None  # of the training views, see `limbeck.data.transforms`
    exif_orientation: bool = True  # whether images are turned as their EXIF data says
    code: bytes = b""  # of the transform's file; read at once, because the file may change later

    dtype: ClassVar[torch.dtype] = torch.uint8

    def __post_init__(self) -> None:
        if self.transform is not None and not self.code:
            object.__setattr__(self, "code", code_of(self.transform))

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self.names), self.channels, *self.size))

    def dim(self) -> int:
        """4, the length of the shape."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Decode the images at these places, (M,) int64, to (M, C, H, W) uint8: fitted to the size, see `plain`.

        Raises:
            LimbeckError: an image cannot be read; the message names it.
        """
        names = [self.names[place] for place in index.tolist()]
        result = torch.empty(len(names), *self.shape[1:], dtype=self.dtype)
        grid = by_pixel(result)
        with quiet():
            for place, pixels in enumerate(in_threads(self._plain, ((name, self.reader(name)) for name in names))):
                grid[place] = pixels
        return result

    def select(self, index: Tensor) -> "Images":
        """The images at these places, (M,) int64, in this order; nothing is decoded."""
        return replace(self, names=tuple(self.names[place] for place in index.tolist()))

    def fingerprint(self) -> Iterator[bytes]:
        """What `Split.digest` covers of the images, piece by piece."""
        made_by = identity(self.transform, self.code) if self.transform is not None else b""
        yield repr((tuple(self.shape), self.exif_orientation, len(made_by))).encode() + made_by
        for name in self.names:
            size, head = self.reader.head(name, _HEAD)
            yield repr((name, size)).encode() + head

    def _plain(self, file: tuple[str, bytes]) -> Pixels:
        label = f"{file[0]} in {self.reader.place}"
        return plain(label, file[1], self.size, self.channels, exif_orientation=self.exif_orientation)


Inputs: TypeAlias = Tensor | Images
"""The inputs of a split, in memory or on disk."""


def plain(label: str, data: bytes, size: tuple[int, int], channels: int, *, exif_orientation: bool = True) -> Pixels:
    """Decode an image file to (H, W, C), `limbeck.data.decoding.fitted` to the size.

    Raises:
        LimbeckError: the file cannot be read, or is in colour and ``channels`` is 1.
    """
    image = decode(label, data, least=size, exif_orientation=exif_orientation)
    pixels = numpy.asarray(fitted(with_channels(label, image, channels), size))
    return pixels if channels > 1 else pixels[..., None]


def with_channels(label: str, image: Image.Image, channels: int) -> Image.Image:
    """Convert an image of mode L or RGB to RGB, or to L for one channel.

    Raises:
        LimbeckError: the image is in colour and ``channels`` is 1.
    """
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
