"""MNIST from its four original files."""

import gzip
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.sources.base import HOW_TO_GIVE, Parts, Request, data_root
from limbeck.data.split import Split

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def mnist(request: Request) -> Parts:
    """60,000 + 10,000 handwritten digits, (N, 1, 28, 28) uint8.

    The files are looked for, plain or .gz, in ``mnist``, ``MNIST/raw`` (torchvision's place) and the root itself.

    Raises:
        LimbeckError: they are not there and could not be downloaded; a file is damaged.
    """
    root = data_root(request.root)
    found = _find(root)
    if found is None and request.download:
        _download(root)
        found = _find(root)
    if found is None:
        raise LimbeckError(f"{_missing(root)}; {HOW_TO_GIVE}")
    images, labels, test_images, test_labels = (read_idx(path) for path in found)
    return Parts(
        Split(images[:, None], labels.long()),
        test=Split(test_images[:, None], test_labels.long()),
        classes=tuple("0123456789"),
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


def read_idx(path: Path) -> Tensor:
    """An IDX file of bytes, plain or gzipped, as a uint8 tensor of its own shape.

    Raises:
        LimbeckError: it is no such file, is damaged, or has more or fewer values than its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise LimbeckError(f"{path} cannot be read: {error}") from error
    zeros, kind, dimensions = struct.unpack(">HBB", content[:4]) if len(content) >= 4 else (0, 0, 0)
    start = 4 + 4 * dimensions
    if zeros != 0 or kind != 8 or not 1 <= dimensions <= 3 or len(content) < start:
        raise LimbeckError(f"{path} is no IDX file of bytes: it begins with {content[:4].hex(' ') or 'nothing'}")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:]
    expected = torch.Size(shape).numel()
    if len(values) != expected:
        raise LimbeckError(
            f"{path} has {len(values)} values, but its header says {expected}: it is truncated or damaged"
        )
    return values.view(shape)
