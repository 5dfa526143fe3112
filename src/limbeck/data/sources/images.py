"""Decode the image files of a folder or zip file to one tensor."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias, TypeVar

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.ahead import in_threads
from limbeck.data.bounds import check_memory, fits_in_memory
from limbeck.data.decoding import Header, Pixels, fitted, header, is_grey, picture, quiet
from limbeck.data.sources.base import Progress
from limbeck.data.trees import Reader

Size: TypeAlias = tuple[int, int]  # height and width in pixels
File: TypeAlias = tuple[str, bytes]  # its name and its content

_Item = TypeVar("_Item")

DEFAULT_SIDE = 224
"""The largest side to which images of different sizes are resized by default: that of most networks."""

_CHUNK, _CHUNK_BYTES = 64, 2**22  # images that a thread decodes at a time, fewer if they are large
_SMALL = 10_000  # bytes of a file below which threads are slower: CIFAR took 30 % longer
_HEAD = 2**16  # bytes that hold most headers


def read_images(
    reader: Reader,
    names: Sequence[str],
    size: Size | None,
    *,
    exif_orientation: bool = True,
    progress: Progress | None = None,
) -> tuple[Tensor, list[str]]:
    """Decode images to (N, C, H, W) uint8, and notes: C is 1 if all are grey, else 3 (RGB); transparency is dropped.

    Each image is resized when it is decoded, so that memory holds the result and a few images.

    Args:
        reader: reads the files.
        names: the names of the files, at least one.
        size: the size to which images are `limbeck.data.decoding.fitted`; None: their own if all have the same, else
            `common_size`.
        exif_orientation: turn images as their EXIF data says.
        progress: is called for each file. Where sizes differ and none is given, a file is read more than once.

    Raises:
        LimbeckError: a file cannot be read or has more than 8 bits a channel (the message names it); the images do not
            fit in memory.
    """
    notes: list[str] = []
    made = None
    with quiet():
        if size is None:
            size = _look(reader, names[0], exif_orientation).size
            if fits_in_memory(3 * len(names) * size[0] * size[1]):
                made = _made(reader, names, size, exif_orientation, progress, exact=True)
            if made is None:
                looked = (_look(reader, name, exif_orientation).size for name in names)
                size, notes = common_size(_counted(looked, len(names), progress))
        if made is None:
            made = _made(reader, names, size, exif_orientation, progress, exact=False)
    if made is None:
        raise LimbeckError(f"the images in {reader.place} changed while they were read")
    pixels, turned = made
    if turned:
        notes.append(f"{were(turned, 'image')} rotated or flipped according to their EXIF orientation")
    return pixels, notes


def were(count: int, what: str) -> str:
    """The beginning of a sentence: "1 file was", "2 files were"."""
    return f"1 {what} was" if count == 1 else f"{count:,} {what}s were"


def look_at(reader: Reader, names: Sequence[str], *, exif_orientation: bool) -> list[Header]:
    """The headers of the files that can be read."""
    found = []
    with quiet():
        for name in names:
            try:
                found.append(_look(reader, name, exif_orientation))
            except LimbeckError:  # is an error when the image is decoded
                continue
    return found


def common_size(sizes: Iterable[Size]) -> tuple[Size, list[str]]:
    """The size of all images; for images of different sizes a square, and a note that says so.

    The side of the square is the median of the shorter sides, at most `DEFAULT_SIDE`.
    """
    counted = Counter(sizes)
    if len(counted) == 1:
        return next(iter(counted)), []
    sides = sorted(min(size) for size in counted.elements())
    side = min(DEFAULT_SIDE, sides[(len(sides) - 1) // 2])
    note = (
        f"images of {len(counted):,} different sizes are resized to {side} x {side}, as no size is given: the shorter "
        "side is resized, the centre is cut out"
    )
    return (side, side), [note]


def _look(reader: Reader, name: str, exif_orientation: bool) -> Header:
    label = f"{name} in {reader.place}"
    try:
        return header(label, reader.head(name, _HEAD)[1], exif_orientation=exif_orientation)
    except LimbeckError:  # the header may be longer
        return header(label, reader(name), exif_orientation=exif_orientation)


def _counted(items: Iterable[_Item], total: int, progress: Progress | None) -> Iterator[_Item]:
    """The same items; each is counted once it is there."""
    for done, item in enumerate(items, start=1):
        if progress is not None:
            progress(done, total)
        yield item


def _made(
    reader: Reader,
    names: Sequence[str],
    size: Size,
    exif_orientation: bool,
    progress: Progress | None,
    *,
    exact: bool,
) -> tuple[Tensor, int] | None:
    """The images at this size, and how many EXIF data turned; with ``exact`` None where an image has another size."""

    def decoded(chunk: Sequence[File]) -> list[tuple[Pixels | None, bool]]:
        return [_decoded(reader, file, size, exif_orientation, exact) for file in chunk]

    files = ((name, reader(name)) for name in names)
    first = next(files)
    chunks = _chunks(itertools.chain([first], files))  # read in this thread, because a zip file has a lock
    run = map(decoded, chunks) if len(first[1]) < _SMALL else in_threads(decoded, chunks)
    pixels, turned = _empty(reader, len(names), 1, size), 0
    results = _counted(itertools.chain.from_iterable(run), len(names), progress)
    for place, (one, was_turned) in enumerate(results):
        if one is None:
            return None
        if pixels.shape[1] == 1 and not is_grey(one):
            grey, pixels = pixels, _empty(reader, len(names), 3, size)
            pixels[:place] = grey[:place]
        pixels[place] = one if one.ndim == 2 else one.transpose(2, 0, 1)[: pixels.shape[1]]
        turned += was_turned
    return torch.from_numpy(pixels), turned


def _decoded(reader: Reader, file: File, size: Size, exif_orientation: bool, exact: bool) -> tuple[Pixels | None, bool]:
    image, turned = picture(f"{file[0]} in {reader.place}", file[1], least=size, exif_orientation=exif_orientation)
    if exact and image.size != size[::-1]:
        return None, turned
    return numpy.asarray(fitted(image, size)), turned


def _empty(reader: Reader, count: int, channels: int, size: Size) -> NDArray[numpy.uint8]:
    needed = count * channels * size[0] * size[1]
    text = f"{count:,} images of {size[0]} x {size[1]} from {reader.place}"
    check_memory(needed, text, "give a smaller size, or leave them on disk with streaming")
    return numpy.empty((count, channels, *size), dtype=numpy.uint8)


def _chunks(files: Iterable[File]) -> Iterator[list[File]]:
    """The files in chunks of at most `_CHUNK` files and about `_CHUNK_BYTES` bytes."""
    chunk: list[File] = []
    held = 0
    for file in files:
        chunk.append(file)
        held += len(file[1])
        if len(chunk) == _CHUNK or held > _CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk
