"""Image files of a folder or a zip file, as one tensor."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.sources.base import near_path

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""The names of image files end like this, in small or capital letters."""

Pixels: TypeAlias = NDArray[numpy.uint8]  # (H, W), or (H, W, 3) of a colour image
Size: TypeAlias = tuple[int, int] | None

_CHUNK = 64  # images a thread takes at a time
_THREADS = 4
_SMALL = 10_000  # bytes of a file below which threads only wait for each other: CIFAR's took 30 % longer
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Tree:
    """The files of a folder or zip file."""

    place: Path
    names: Sequence[str]  # sorted, relative to the top, with "/"; a folder's name ends with one; nothing hidden
    read: Callable[[str], bytes]


@contextmanager
def open_tree(path: Path) -> Iterator[Tree]:
    """Open a folder or zip file; a name is hidden if any part of it begins with a dot or is __MACOSX.

    Raises:
        LimbeckError: it does not exist, or is neither folder nor a sound zip file.
    """
    if path.is_dir():
        yield Tree(path, _visible(_walk(path)), lambda name: (path / name).read_bytes())
        return
    if not path.exists():
        raise LimbeckError(f"{path} does not exist{near_path(path)}")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise LimbeckError(f"{path} is neither a folder nor a sound zip file: {error}") from error
    with archive:
        yield Tree(path, _visible(archive.namelist()), archive.read)


def _walk(path: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(path, followlinks=True):
        inside = Path(folder).relative_to(path)
        yield from ((inside / name).as_posix() + "/" for name in folders)
        yield from ((inside / name).as_posix() for name in files)


def _visible(names: Iterator[str] | Sequence[str]) -> list[str]:
    return sorted(name for name in names if not any(_hidden(part) for part in name.split("/")))


def _hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def read_images(tree: Tree, names: Sequence[str], size: Size) -> Tensor:
    """Decode images to (N, C, H, W) uint8: C is 1 if all are grey, else 3 (RGB); transparency is dropped.

    An image with three equal channels is grey too: webp and gif have no other way to store one.

    Args:
        tree: where they are.
        names: which, at least one.
        size: height and width to resize to (bilinear, antialiased); None where all have the same.

    Raises:
        LimbeckError: a file cannot be read or has more than 8 bits a channel, or sizes differ; the message names it.
    """
    chunks = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        # Reading stays in this thread: a zip file's lock makes threads that read slower than one.
        encoded = ([(name, _read(tree, name)) for name in chunk] for chunk in chunks)
        run = map if len(_read(tree, names[0])) < _SMALL else pool.map
        decoded = run(lambda chunk: [_decode(tree, name, data, size) for name, data in chunk], encoded)
        pictures = [picture for chunk in decoded for picture in chunk]
    _check_sizes(tree, names, pictures)
    channels = 1 if all(_is_grey(picture) for picture in pictures) else 3
    pixels = numpy.empty((len(pictures), channels, *pictures[0].shape[:2]), dtype=numpy.uint8)
    for place, picture in enumerate(pictures):
        pixels[place] = picture.transpose(2, 0, 1)[:channels] if picture.ndim == 3 else picture
    return torch.from_numpy(pixels)


def _is_grey(picture: Pixels) -> bool:
    return picture.ndim == 2 or bool((picture == picture[..., :1]).all())


def _read(tree: Tree, name: str) -> bytes:
    try:
        return tree.read(name)
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise LimbeckError(f"{name} in {tree.place} cannot be read: {error}") from error


def _decode(tree: Tree, name: str, data: bytes, size: Size) -> Pixels:
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode, picture = image.mode, _eight_bits(image)
    except _UNREADABLE as error:
        raise LimbeckError(f"{name} in {tree.place} cannot be read as an image: {error}") from error
    if picture is None:
        raise LimbeckError(f"{name} in {tree.place} has Pillow's mode {mode}; allowed are images of 8 bits a channel")
    if size is not None:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return numpy.asarray(picture)


def _eight_bits(image: Image.Image) -> Image.Image | None:
    if image.mode.startswith(("I", "F")):
        return None  # Pillow would clip the values
    if image.mode in ("1", "L", "LA", "La"):
        return image.convert("L")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB it warns of a transparent palette
    return image.convert("RGB")


def _check_sizes(tree: Tree, names: Sequence[str], pictures: Sequence[NDArray[Any]]) -> None:
    first = pictures[0].shape[:2]
    for name, picture in zip(names, pictures, strict=True):
        if picture.shape[:2] != first:
            raise LimbeckError(
                f"images in {tree.place} have different sizes: {names[0]} is {_text(first)}, {name} is "
                f"{_text(picture.shape[:2])} (height x width); give size=(height, width) to resize them all"
            )


def _text(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
