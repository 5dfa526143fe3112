"""Soft labels from elsewhere, for example from an API: a table with one row a file."""

import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, get_args

import numpy
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.files.columns import LARGEST, NUMBERS, check_count, few, read_columns, read_heads, refuse_doubled
from limbeck.files.npy import array_header
from limbeck.files.paths import check_zip, file_size

Kind = Literal["probabilities", "log-probabilities", "logits"]

FLOOR = 1e-8
"""The least probability, because log 0 is not finite. Raising to it changes a probability by at most 1e-8 (C + 1)."""

_SUM = 1e-3  # how far the sum of a row of probabilities may be from 1, because they are rounded to few digits

_MOST = float(numpy.finfo(numpy.float32).max)

_NO_NPZ = (
    *(ValueError, TypeError, EOFError, OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile),
    *(zlib.error, SyntaxError, tokenize.TokenError, MemoryError, OverflowError),  # from a damaged file or header
)
"""What numpy and zipfile raise if they cannot read a file."""

Read = tuple[Sequence[str], Sequence[str] | None, NDArray[numpy.float64]]  # names, classes, values (N, C)


@dataclass(frozen=True)
class Table:
    """Logits by file name."""

    names: tuple[str, ...]  # N different paths, with "/" between their parts
    classes: tuple[str, ...] | None  # C names of the columns; None if the file has none
    values: Tensor  # (N, C) float32


def read_table(path: Path, kind: Kind | None = None) -> Table:
    """Read a table with one prediction a file.

    * ``.csv`` and ``.parquet``: a column ``file``, and one column a class, named as the class.
    * ``.npz``: ``files`` (N,) strings, ``values`` (N, C) and, if the columns are not in the data's order, ``classes``
      (C,) strings. Nothing pickled is read.

    The logits of probabilities p are log p, so that their softmax is p, and a temperature acts on log p. A p below
    `FLOOR` is raised to it. Log-probabilities are logits already, and have the same floor.

    Args:
        path: the file.
        kind: what the numbers are. If it is None: probabilities, if all are 0 or greater and every row sums to 1 within
            0.001; log-probabilities, if the same holds for their exponentials; logits, if there are positive and
            negative numbers.

    Raises:
        LimbeckError: the file does not exist, is not a regular file, is larger than `LARGEST`, or is not such a table;
            it has more than `NUMBERS` numbers, or its header says so; a file or class is in it twice; a number is
            missing, not finite, or does not fit the kind; the kind is None and cannot be told from the numbers.
    """
    if path.suffix not in _READERS:
        raise LimbeckError(f"{path} cannot be read as a table: allowed are {', '.join(_READERS)}")
    if not file_size(path, most=LARGEST, endings=tuple(_READERS)):
        raise LimbeckError(f"{path} cannot be read: it is empty")
    written, classes, values = _READERS[path.suffix](path)
    if not all(written):
        raise LimbeckError(f"{path} has a row without the name of a file")
    names = [PurePosixPath(name.replace("\\", "/")).as_posix() for name in written]
    refuse_doubled(names, f"{path} has more than one row for")
    refuse_doubled(classes or (), f"{path} has more than one column for")
    if values.ndim != 2 or len(values) != len(names) or values.shape[1] != len(classes or values.T) or not values.size:
        raise LimbeckError(
            f"{path} has values of shape {values.shape} for {len(names)} files"
            f"{f' and {len(classes)} classes' if classes else ''}: needed are one row a file and one column a class"
        )
    logits = torch.from_numpy(_logits(path, names, values, kind).astype(numpy.float32))
    return Table(tuple(names), None if classes is None else tuple(classes), logits)


def _logits(path: Path, names: Sequence[str], values: NDArray[numpy.float64], kind: Kind | None) -> NDArray[Any]:
    """The values as logits, checked."""
    if kind is not None and kind not in get_args(Kind):
        raise LimbeckError(f"a table of {kind!r}: allowed are {', '.join(get_args(Kind))}")
    _refuse_no_numbers(path, names, numpy.isnan(values) | (values > _MOST))
    kind = kind or _recognised(path, values)
    if kind != "log-probabilities":  # the logarithm of a probability of 0 is -inf
        _refuse_no_numbers(path, names, values < -_MOST)
    if kind == "logits":
        return values
    probabilities = values if kind == "probabilities" else numpy.exp(numpy.minimum(values, 1))  # e is off as well
    off = (probabilities < 0).any(1) | ~_sums_to_one(probabilities)
    if off.any():
        raise LimbeckError(
            f"the {kind} in {path} are not 0 or greater with a sum of 1 within {_SUM} for {few(_where(names, off))}: "
            "normalise them, or, if they are scores before a softmax, say logits (teacher.values in a recipe)"
        )
    return numpy.log(numpy.maximum(probabilities, FLOOR))


def _refuse_no_numbers(path: Path, names: Sequence[str], wrong: NDArray[numpy.bool_]) -> None:
    if wrong.any():
        raise LimbeckError(f"{path} has an empty, NaN or infinite value for {few(_where(names, wrong.max(1)))}")


def _recognised(path: Path, values: NDArray[numpy.float64]) -> Kind:
    """What the numbers are, if there is no doubt."""
    if values.min() >= 0 and _sums_to_one(values).all():
        return "probabilities"
    if values.max() <= 0 and _sums_to_one(numpy.exp(values)).all():
        return "log-probabilities"
    if values.min() < 0 < values.max():
        return "logits"
    raise LimbeckError(
        f"{path} has values from {values.min():.6g} to {values.max():.6g} that could be of several kinds: "
        f"say which (teacher.values in a recipe): {', '.join(get_args(Kind))}. Or the column of a class is missing"
    )


def _sums_to_one(values: NDArray[numpy.float64]) -> NDArray[numpy.bool_]:
    near: NDArray[numpy.bool_] = numpy.abs(values.sum(1) - 1) <= _SUM
    return near


def _where(names: Sequence[str], chosen: NDArray[numpy.bool_]) -> list[str]:
    return [name for name, taken in zip(names, chosen, strict=True) if taken]


def _columns(path: Path) -> Read:
    heads = read_heads(path)
    if "file" not in heads:
        raise LimbeckError(f"{path} has the columns {few(heads)}: needed are one that is named file, and one a class")
    classes = [head for head in heads if head != "file"]
    texts, values = read_columns(path, texts=("file",), numbers=classes)
    return texts["file"], classes, values


def _npz(path: Path) -> Read:
    check_zip(path)
    try:
        with zipfile.ZipFile(path) as held:
            entries = {entry.filename.removesuffix(".npy"): entry for entry in held.infolist()}
            arrays = {}
            for name in ("files", "values", "classes")[: 3 if "classes" in entries else 2]:
                with held.open(entries[name]) as stream:
                    _check_array(path, name, stream, entries[name].file_size)
                with held.open(entries[name]) as stream:
                    arrays[name] = npy.read_array(stream, allow_pickle=False)
        values = arrays["values"].astype(numpy.float64)
        names = arrays["files"].astype(str).tolist()
        classes = arrays["classes"].astype(str).tolist() if "classes" in arrays else None
    except KeyError as error:
        raise LimbeckError(f"{path} has no array {error}: needed are files and values") from error
    except _NO_NPZ as error:
        raise LimbeckError(f"{path} cannot be read: {error}") from error
    if any(array.ndim != 1 for name, array in arrays.items() if name != "values"):
        raise LimbeckError(f"{path} cannot be read: files and classes must be lists of strings")
    return names, classes, values


def _check_array(path: Path, name: str, stream: IO[bytes], size: int) -> None:
    """Check the header of an array before numpy allocates memory for what it says.

    Raises:
        ValueError: the header is damaged, or does not fit the size of the entry; the array holds Python objects, which
            would be unpickled.
        LimbeckError: the array is larger than a table may be.
    """
    count = math.prod(array_header(stream, size, name)[0])
    if name == "values":
        check_count(path, 1, count)
    elif size > LARGEST or count > NUMBERS:
        raise LimbeckError(f"{path} has {size:,} bytes of {name}, allowed are at most {LARGEST:,}")


_READERS: Mapping[str, Callable[[Path], Read]] = {".csv": _columns, ".npz": _npz, ".parquet": _columns}
