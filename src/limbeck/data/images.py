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
from limbeck.data.decoding import fitted, is_grey, picture, quiet
from limbeck.data.trees import Reader
from limbeck.user_code import contents, named

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
    exif_orientation: bool = True  # whether images are rotated or flipped according to their EXIF orientation
    code: bytes = b""  # of the transform's file; read at once, because the file may change later

    dtype: ClassVar[torch.dtype] = torch.uint8

    def __post_init__(self) -> None:
        if self.transform is not None and not self.code and (found := named(self.transform)) is not None:
            object.__setattr__(self, "code", contents(found[0]))

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
        """Decode the images at these places, (M,) int64, to (M, C, H, W) uint8: see `plain`.

        Raises:
            LimbeckError: an image cannot be read; the message names it.
        """
        names = [self.names[place] for place in index.tolist()]
        result = torch.empty(len(names), *self.shape[1:], dtype=self.dtype)
        with quiet():
            for place, pixels in enumerate(in_threads(self.plain, ((name, self.reader(name)) for name in names))):
                result[place] = pixels
        return result

    def select(self, index: Tensor) -> "Images":
        """The images at these places, (M,) int64, in this order; nothing is decoded."""
        return replace(self, names=tuple(self.names[place] for place in index.tolist()))

    def fingerprint(self) -> Iterator[bytes]:
        """What `Split.digest` covers of the images, piece by piece."""
        made_by = b""
        if self.transform is not None:
            made_by = self.transform.rpartition(":")[2].encode() + b":" + self.code  # wherever its file is
        yield repr((tuple(self.shape), self.exif_orientation, len(made_by))).encode() + made_by
        for name in self.names:
            size, head = self.reader.head(name, _HEAD)
            yield repr((name, size)).encode() + head

    def plain(self, file: tuple[str, bytes]) -> Tensor:
        """Decode a file, of a name and a content, to (C, H, W), `limbeck.data.decoding.fitted` to the size.

        Raises:
            LimbeckError: as `decoded`.
        """
        return as_tensor(fitted(self.decoded(*file, least=self.size), self.size))

    def decoded(self, name: str, data: bytes, *, least: tuple[int, int] | None = None) -> Image.Image:
        """Decode a file to an image of mode RGB, or L for one channel; ``least`` as in `limbeck.data.decoding.picture`.

        Raises:
            LimbeckError: the file cannot be read, or is in colour and the images have one channel.
        """
        label = f"{name} in {self.reader.place}"
        image = picture(label, data, least=least, exif_orientation=self.exif_orientation).image
        if self.channels == 1 and image.mode != "L":
            if not is_grey(numpy.asarray(image)):
                raise LimbeckError(f"{label} is in colour, but the images that were checked when loading are all grey")
            return image.getchannel(0)
        return image.convert("RGB") if self.channels == 3 and image.mode != "RGB" else image


Inputs: TypeAlias = Tensor | Images
"""The inputs of a split, in memory or on disk."""


def as_tensor(image: Image.Image) -> Tensor:
    """The pixels of an image of mode L or RGB, (C, H, W) uint8."""
    return torch.from_numpy(numpy.array(image)).view(image.height, image.width, -1).permute(2, 0, 1)
