"""Images that stay on disk and are decoded when they are needed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from limbeck.data.ahead import in_threads
from limbeck.data.decoding import Pixels, quiet
from limbeck.data.pixels import as_tensor, converted, decoded
from limbeck.data.trees import Files
from limbeck.user_code import contents, named


@dataclass(frozen=True, eq=False)
class Images:
    """Image files that stand for a tensor (N, C, H, W), for a split that does not fit in memory.

    It has the ``shape``, ``dtype``, ``dim()`` and length of the tensor, and ``images[index]`` decodes images.

    Raises:
        LimbeckError: the transform's file does not exist, or cannot be read.
    """

    reader: Files  # of the folder, zip file or tar files
    names: tuple[str, ...]  # of the files in it
    size: tuple[int, int]  # height and width in pixels
    channels: int = 3  # 3 (RGB), or 1 if all images are grey, or those of arrays
    workers: int = 0  # processes that decode for `Batches`; 0: only this one
    transform: str | None = None  # of the training views, see `limbeck.data.transforms`
    exif_orientation: bool = True  # whether images are rotated or flipped according to their EXIF orientation
    code: bytes = b""  # of the transform's file; read at once, because the file may change later
    deep: bool = False  # whether they are float32, because some have more than 8 bits a channel
    together: int = 0  # tar files whose samples are shuffled with each other; 0: all

    def __post_init__(self) -> None:
        if self.transform is not None and not self.code and (found := named(self.transform)) is not None:
            object.__setattr__(self, "code", contents(found[0]))

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
        """Decode the images at these places, (M,) int64, to (M, C, H, W): see `plain`.

        Raises:
            LimbeckError: an image cannot be read; the message names it.
        """
        names = [self.names[place] for place in index.tolist()]
        result = torch.empty(len(names), *self.shape[1:], dtype=self.dtype)
        with quiet():
            for place, pixels in enumerate(in_threads(self.plain, self.reader.several(names))):
                result[place] = pixels
        return result

    def select(self, index: Tensor) -> "Images":
        """The images at these places, (M,) int64, in this order; nothing is decoded."""
        return replace(self, names=tuple(self.names[place] for place in index.tolist()))

    def shards(self) -> Tensor:
        """The number of the tar file of each image, (N,) int64."""
        numbers: dict[str, int] = {}
        return torch.tensor([numbers.setdefault(name.partition(":")[0], len(numbers)) for name in self.names])

    def fingerprint(self) -> Iterator[bytes]:
        """What `Split.digest` covers of the images, piece by piece."""
        made_by = b""
        if self.transform is not None:
            made_by = self.transform.rpartition(":")[2].encode() + b":" + self.code  # wherever its file is
        yield repr((tuple(self.shape), self.exif_orientation, len(made_by))).encode() + made_by + b"deep" * self.deep
        for name in self.names:
            size, head = self.reader.beginning(name)
            yield repr((self.reader.identity(name), size)).encode() + head

    def plain(self, file: tuple[str, bytes]) -> Tensor:
        """Decode a file, of a name and a content, to (C, H, W), `limbeck.data.decoding.fitted` to the size.

        Raises:
            LimbeckError: as `decoded`.
        """
        return as_tensor(self.decoded(*file, self.size))

    def decoded(self, name: str, data: bytes, size: tuple[int, int] | None = None) -> Pixels:
        """Decode a file to (H, W, C), fitted to the size if one is given.

        Raises:
            LimbeckError: the file cannot be read, or does not have the channels or the type of the images.
        """
        label = self.reader.label(name)
        pixels = decoded(label, data, size, exif_orientation=self.exif_orientation).pixels
        return converted(label, pixels, self.channels, deep=self.deep)


Inputs: TypeAlias = Tensor | Images
"""The inputs of a split, in memory or on disk."""
