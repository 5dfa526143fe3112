"""Image files of a folder or a zip file, as one tensor."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.decoding import Pixels, decode, is_grey, stretched
from limbeck.data.trees import Reader

Size: TypeAlias = tuple[int, int] | None

_CHUNK = 64  # images a thread takes at a time
_THREADS = 4
_SMALL = 10_000  # bytes of a file below which threads only wait for each other: CIFAR's took 30 % longer


def read_images(reader: Reader, names: Sequence[str], size: Size) -> Tensor:
    """Decode images to (N, C, H, W) uint8: C is 1 if all are grey, else 3 (RGB); transparency is dropped.

    An image with three equal channels is grey too: webp and gif have no other way to store one.

    Args:
        reader: of the place where they are.
        names: which, at least one.
        size: height and width to resize to (bilinear, antialiased); None where all have the same.

    Raises:
        LimbeckError: a file cannot be read or has more than 8 bits a channel, or sizes differ; the message names it.
    """
    chunks = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        # Reading stays in this thread: a zip file's lock makes threads that read slower than one.
        encoded = ([(name, reader(name)) for name in chunk] for chunk in chunks)
        run = map if len(reader(names[0])) < _SMALL else pool.map
        decoded = run(lambda chunk: [_decode(reader, name, data, size) for name, data in chunk], encoded)
        pictures = [picture for chunk in decoded for picture in chunk]
    _check_sizes(reader, names, pictures)
    channels = 1 if all(is_grey(picture) for picture in pictures) else 3
    pixels = numpy.empty((len(pictures), channels, *pictures[0].shape[:2]), dtype=numpy.uint8)
    for place, picture in enumerate(pictures):
        pixels[place] = picture.transpose(2, 0, 1)[:channels] if picture.ndim == 3 else picture
    return torch.from_numpy(pixels)


def _decode(reader: Reader, name: str, data: bytes, size: Size) -> Pixels:
    image = decode(f"{name} in {reader.place}", data)
    return numpy.asarray(image if size is None else stretched(image, size))


def _check_sizes(reader: Reader, names: Sequence[str], pictures: Sequence[NDArray[Any]]) -> None:
    first = pictures[0].shape[:2]
    for name, picture in zip(names, pictures, strict=True):
        if picture.shape[:2] != first:
            raise LimbeckError(
                f"images in {reader.place} have different sizes: {names[0]} is {_text(first)}, {name} is "
                f"{_text(picture.shape[:2])} (height x width); give size=(height, width) to resize them all"
            )


def _text(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
