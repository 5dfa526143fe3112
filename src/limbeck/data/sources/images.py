"""Decode the image files of a folder or zip file to one tensor."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias, TypeVar

import numpy
import torch
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.ahead import in_threads
from limbeck.data.bounds import check_memory, fits_in_memory
from limbeck.data.decoding import Header, Pixels, is_grey, quiet
from limbeck.data.pixels import Decoded, converted, decoded, looked_at
from limbeck.data.sources.base import Progress
from limbeck.data.trees import Files

Size: TypeAlias = tuple[int, int]  # height and width in pixels
File: TypeAlias = tuple[str, bytes]  # its name and its content

_Item = TypeVar("_Item")

DEFAULT_SIDE = 224
"""The largest side to which images of different sizes are resized by default: that of most networks."""

_CHUNK, _CHUNK_BYTES = 64, 2**22  # images that a thread decodes at a time, fewer if they are large
_SMALL = 10_000  # bytes of a file below which threads are slower: CIFAR took 30 % longer
_HEAD = 2**16  # bytes that hold most headers


def read_images(
    reader: Files,
    names: Sequence[str],
    size: Size | None,
    *,
    exif_orientation: bool = True,
    progress: Progress | None = None,
) -> tuple[Tensor, list[str]]:
    """Decode images to (N, C, H, W), and notes: C is 1 if all are grey, else 3 (RGB); transparency is dropped.

    Each image is resized when it is decoded, so that memory holds the result and a few images. If an image has more
    than 8 bits a channel, all become float32, see `limbeck.data.pixels.decoded`, and those of 8 bits are divided by
    255. Arrays of another number of channels keep it; it must be the same for all.

    Args:
        reader: reads the files.
        names: the names of the files, at least one.
        size: the size to which images are `limbeck.data.decoding.fitted`; None: their own if all have the same, else
            `common_size`.
        exif_orientation: turn images as their EXIF data says.
        progress: is called for each file. Where sizes differ and none is given, a file is read more than once.

    Raises:
        LimbeckError: a file cannot be read or has another number of channels (the message names it); the images do not
            fit in memory.
    """
    notes: list[str] = []
    made = None
    with quiet():
        if size is None:
            size = look(reader, names[0], exif_orientation).size
            if fits_in_memory(3 * len(names) * size[0] * size[1]):
                made = _made(reader, names, size, exif_orientation, progress, exact=True)
            if made is None:
                looked = (look(reader, name, exif_orientation).size for name in names)
                size, notes = common_size(_counted(looked, len(names), progress))
        if made is None:
            made = _made(reader, names, size, exif_orientation, progress, exact=False)
    if made is None:
        raise LimbeckError(f"the images in {reader.place} changed while they were read")
    pixels, turned, deep = made
    if turned:
        notes.append(f"{were(turned, 'image')} rotated or flipped according to their EXIF orientation")
    if deep:
        notes.append(deep_note(deep, len(names)))
    return pixels, notes


def deep_note(count: int, total: int) -> str:
    """The note on images with more than 8 bits a channel."""
    more = f"{count:,} of {total:,} images have more than 8 bits a channel"
    return f"{more}: all images become float32, integers are divided by the value of white"


def were(count: int, what: str) -> str:
    """The beginning of a sentence: "1 file was", "2 files were"."""
    return f"1 {what} was" if count == 1 else f"{count:,} {what}s were"


def look_at(reader: Files, names: Sequence[str], *, exif_orientation: bool) -> list[Header]:
    """The headers of the files that can be read."""
    found = []
    with quiet():
        for name in names:
            try:
                found.append(look(reader, name, exif_orientation))
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


def look(reader: Files, name: str, exif_orientation: bool) -> Header:
    """The header of a file.

    Raises:
        LimbeckError: it cannot be read.
    """
    label = reader.label(name)
    size, head = reader.head(name, _HEAD)
    try:
        return looked_at(label, head, size, exif_orientation=exif_orientation)
    except LimbeckError:  # the header may be longer
        return looked_at(label, reader(name), size, exif_orientation=exif_orientation)


def _counted(items: Iterable[_Item], total: int, progress: Progress | None) -> Iterator[_Item]:
    """The same items; each is counted once it is there."""
    for done, item in enumerate(items, start=1):
        if progress is not None:
            progress(done, total)
        yield item


def _made(
    reader: Files,
    names: Sequence[str],
    size: Size,
    exif_orientation: bool,
    progress: Progress | None,
    *,
    exact: bool,
) -> tuple[Tensor, int, int] | None:
    """The images at this size, and how many EXIF data turned and how many have more than 8 bits a channel.

    With ``exact``, None if an image has another size.
    """

    def made(chunk: Sequence[File]) -> list[Decoded | None]:
        labelled = ((reader.label(name), data) for name, data in chunk)
        fit = None if exact else size
        found = (decoded(*file, fit, exif_orientation=exif_orientation) for file in labelled)
        return [one if one.pixels.shape[:2] == size else None for one in found]

    files = ((name, reader(name)) for name in names)
    first = next(files)
    chunks = _chunks(itertools.chain([first], files))  # read in this thread, because a zip file has a lock
    run = map(made, chunks) if len(first[1]) < _SMALL else in_threads(made, chunks)
    pixels, turned, deep = _empty(reader, len(names), 1, size), 0, 0
    results = _counted(itertools.chain.from_iterable(run), len(names), progress)
    for place, found in enumerate(results):
        if found is None:
            return None
        one, was_turned = found
        channels, floating = 1 if is_grey(one) else one.shape[2], one.dtype != numpy.uint8
        wider = pixels.shape[1] == 1 and channels > 1 and (place == 0 or channels == 3)
        if wider or (floating and not deep):
            before = pixels[:place]
            pixels = _empty(reader, len(names), channels if wider else pixels.shape[1], size, deep=floating or deep > 0)
            if floating and not deep:
                numpy.divide(before, numpy.float32(255), out=pixels[:place])
            else:
                pixels[:place] = before
        deep += floating
        grid = converted(reader.label(names[place]), one, pixels.shape[1], deep=deep > 0)
        pixels[place] = grid.transpose(2, 0, 1)
        turned += was_turned
    return torch.from_numpy(pixels), turned, deep


def _empty(reader: Files, count: int, channels: int, size: Size, *, deep: bool = False) -> Pixels:
    kind = numpy.dtype(numpy.float32 if deep else numpy.uint8)
    needed = count * channels * size[0] * size[1] * kind.itemsize
    text = f"{count:,} images of {size[0]} x {size[1]} from {reader.place}"
    check_memory(needed, text, "give a smaller size, or leave them on disk with streaming")
    return numpy.empty((count, channels, *size), dtype=kind)


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
