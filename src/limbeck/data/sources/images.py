"""Image files of a folder or a zip file, as one tensor."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

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
"""The most that images of different sizes are brought to unless a size is given: what most networks are made for."""

_CHUNK, _CHUNK_BYTES = 64, 2**22  # images that a thread takes at a time, unless they are large
_SMALL = 10_000  # bytes of a file below which threads only wait for each other: CIFAR's took 30 % longer
_HEAD = 2**16  # bytes in which most headers end


class Held(NamedTuple):
    """Decoded images, and what a user should know of how they were decoded."""

    pixels: Tensor  # (N, C, H, W) uint8
    notes: tuple[str, ...]


class _Made(NamedTuple):
    pixels: Tensor
    turned: int  # of them, by their EXIF data


def read_images(
    reader: Reader,
    names: Sequence[str],
    size: Size | None,
    *,
    exif_orientation: bool = True,
    progress: Progress | None = None,
) -> Held:
    """Decode images to (N, C, H, W) uint8: C is 1 if all are grey, else 3 (RGB); transparency is dropped.

    An image with three equal channels is grey too: webp and gif have no other way to store one. Each is brought to its
    final size as soon as it is decoded, so that memory holds the result and a few images.

    Args:
        reader: of the place where they are.
        names: which, at least one.
        size: what they are `limbeck.data.decoding.fitted` to; None: their own where all have the same, else
            `common_size`.
        exif_orientation: whether each is turned as its EXIF data says.
        progress: is called for each file. Where sizes differ and none is given, a file is read more than once.

    Raises:
        LimbeckError: a file cannot be read or has more than 8 bits a channel; the message names it. Or they do not fit
            in memory.
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
    if made.turned:
        notes.append(f"{were(made.turned, 'image')} turned as their EXIF data says")
    return Held(made.pixels, tuple(notes))


def were(count: int, what: str) -> str:
    """So many of something, to begin a sentence with."""
    return f"1 {what} was" if count == 1 else f"{count:,} {what}s were"


def look_at(reader: Reader, names: Sequence[str], *, exif_orientation: bool) -> list[Header]:
    """What these files say of themselves, but for those that cannot be read."""
    found = []
    with quiet():
        for name in names:
            try:
                found.append(_look(reader, name, exif_orientation))
            except LimbeckError:  # told, and by name, when it is decoded
                continue
    return found


def common_size(sizes: Iterable[Size]) -> tuple[Size, list[str]]:
    """The size of all images, or one for images of different sizes, and a note that says so.

    It is square: the median of the shorter sides, at most `DEFAULT_SIDE`.
    """
    counted = Counter(sizes)
    if len(counted) == 1:
        return next(iter(counted)), []
    sides = sorted(min(size) for size in counted.elements())
    side = min(DEFAULT_SIDE, sides[(len(sides) - 1) // 2])
    note = (
        f"images of {len(counted):,} different sizes are brought to {side} x {side}, as no size is given: the shorter "
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
) -> _Made | None:
    """The images at this size; with ``exact`` None as soon as one has another."""

    def decoded(chunk: Sequence[File]) -> list[tuple[Pixels | None, bool]]:
        return [_decoded(reader, file, size, exif_orientation, exact) for file in chunk]

    files = ((name, reader(name)) for name in names)
    first = next(files)
    chunks = _chunks(itertools.chain([first], files))  # read in this thread: a zip file's lock makes others wait
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
    return _Made(torch.from_numpy(pixels), turned)


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
    """So many at a time, fewer where they are large."""
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
