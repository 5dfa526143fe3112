"""MNIST from its four original files."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy
import torch
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data import bounds
from limbeck.data.sources.base import HOW_TO_GIVE, Parts, data_root
from limbeck.data.split import Split

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def mnist(*, root: Path | None = None, download: bool = True) -> Parts:
    """60,000 + 10,000 handwritten digits, (N, 1, 28, 28) uint8.

    The files, plain or .gz, are looked for in ``mnist``, in ``MNIST/raw`` (torchvision's place) and in the root.

    Args:
        root: see `data_root`.
        download: download the files where they are not found.

    Raises:
        LimbeckError: the files are not there and cannot be downloaded; a file is damaged.
    """
    root = data_root(root)
    found = _find(root)
    if found is None and download:
        _download(root)
        found = _find(root)
    if found is None:
        raise LimbeckError(f"{_missing(root)}; {HOW_TO_GIVE}")
    images, labels, test_images, test_labels = (
        read_idx(path, dimensions) for path, dimensions in zip(found, (3, 1, 3, 1), strict=True)
    )
    return Parts(
        Split(images[:, None], labels.long()),
        test=Split(test_images[:, None], test_labels.long()),
        classes=tuple("0123456789"),
        origins={"train": "the MNIST training files", "test": "the MNIST test files"},
    )


def _folders(root: Path) -> tuple[Path, ...]:
    return root / "mnist", root / "MNIST" / "raw", root


def _find(root: Path) -> list[Path] | None:
    for folder in _folders(root):
        paths = [folder / f"{name}{suffix}" for name in _FILES for suffix in ("", ".gz")]
        present = {path.name.removesuffix(".gz"): path for path in reversed(paths) if path.is_file()}
        if len(present) == len(_FILES):
            return [present[name] for name in _FILES]
    return None


def _missing(root: Path) -> str:
    return f"MNIST not found: looked for {', '.join(_FILES)} (or .gz) in {', '.join(map(str, _folders(root)))}"


def _download(root: Path) -> None:
    from torchvision import datasets  # type: ignore[import-untyped]  # takes a second to import

    try:
        datasets.MNIST(root, download=True)
    except (OSError, RuntimeError) as error:
        raise LimbeckError(f"{_missing(root)}, and the download failed ({error}); {HOW_TO_GIVE}") from error


def read_idx(path: Path, dimensions: int) -> Tensor:
    """An IDX file of bytes, plain or gzipped, as a uint8 tensor of its shape; no more is read than it declares.

    Raises:
        LimbeckError: the file is not an IDX file of bytes, is damaged, has more or fewer values than its header says,
            or more than `limbeck.data.bounds` allows.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(4)
            zeros, kind, found = struct.unpack(">HBB", start) if len(start) == 4 else (0, 0, 0)
            sizes = file.read(4 * found)
            if zeros != 0 or kind != 8 or not 1 <= found <= 3 or len(sizes) < 4 * found:
                raise LimbeckError(f"{path} is not an IDX file of bytes: it begins with {start.hex(' ') or 'nothing'}")
            shape = struct.unpack(f">{found}I", sizes)
            if dimensions != found:
                raise LimbeckError(f"{path} has values of shape {shape}; allowed are {dimensions} dimensions")
            expected = math.prod(shape)
            if expected > bounds.IDX_BYTES:
                raise LimbeckError(f"{path} says it has {expected:,} values; allowed are {bounds.IDX_BYTES:,}")
            content = file.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise LimbeckError(f"{path} cannot be read: {error}") from error
    if len(content) != expected:
        there = f"{len(content)} values" if len(content) < expected else "more values"
        raise LimbeckError(f"{path} has {there}, but its header says {expected}: it is truncated or damaged")
    return torch.from_numpy(numpy.frombuffer(bytearray(content), dtype=numpy.uint8).reshape(shape))
