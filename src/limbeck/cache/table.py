"""Soft labels from elsewhere, for example from an API: a table with one row a file."""

import csv
import math
import tokenize
import zipfile
import zlib
from collections import Counter
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
from limbeck.files.paths import check_zip, file_size

Kind = Literal["probabilities", "log-probabilities", "logits"]

FLOOR = 1e-8
"""The least probability, because log 0 is not finite. Raising to it changes a probability by at most 1e-8 (C + 1)."""

_SUM = 1e-3  # how far the sum of a row of probabilities may be from 1, because they are rounded to few digits

_MOST = float(numpy.finfo(numpy.float32).max)

LARGEST = 2**30
"""The most bytes of a table's file, and of its strings when unpacked: 1 GiB."""

NUMBERS = 2**27
"""The most numbers of a table, rows times classes: 1 GiB in 64 bits. A store may hold more."""

LINE = 2**22
"""The most characters of a line of a CSV file: 4 MiB, enough for 200,000 classes."""

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
    _refuse_doubled(names, f"{path} has more than one row for")
    _refuse_doubled(classes or (), f"{path} has more than one column for")
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


def few(names: Sequence[str]) -> str:
    """How many names there are, and the first of them."""
    shown = [*names[:3], *(["..."] if len(names) > 3 else [])]
    return f"{len(names)} ({', '.join(shown)})" if names else "none"


def _where(names: Sequence[str], chosen: NDArray[numpy.bool_]) -> list[str]:
    return [name for name, taken in zip(names, chosen, strict=True) if taken]


def _refuse_doubled(names: Sequence[str], sentence: str) -> None:
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise LimbeckError(f"{sentence} {few(doubled)}: allowed is one each")


def _csv(path: Path) -> Read:
    names, values, number, place = [], [], 1, 0
    heads: list[str] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, line in enumerate(iter(lambda: file.readline(LINE), ""), 1):  # noqa: B007 (read in the except)
                row = _fields(line)
                if not heads:
                    heads = row
                    place = _heads(path, heads)[0] if heads else 0
                elif row:
                    if len(row) != len(heads):
                        raise ValueError(f"{len(row)} values under {len(heads)} columns")
                    names.append(row.pop(place))
                    values.append(numpy.array([float(text) for text in row]))
                    _check_count(path, len(names), len(row))
    except (ValueError, csv.Error, OSError) as error:  # bytes that are not UTF-8 raise a ValueError too
        raise LimbeckError(f"{path}, line {number}: {error}") from error
    return names, _heads(path, heads)[1], numpy.array(values)


def _fields(line: str) -> list[str]:
    """The fields of a line; an empty line has none.

    Raises:
        ValueError: the line is longer than `LINE`.
        csv.Error: the line ends within a field.
    """
    if len(line) == LINE and not line.endswith("\n"):
        raise ValueError(f"it is longer than {LINE:,} characters")
    return next(csv.reader([line], strict=True), [])


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
    version = npy.read_magic(stream)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"the array {name} has the version {version}, allowed are {', '.join(map(str, readers))}")
    shape, _, dtype = readers[version](stream)
    if dtype.hasobject:
        raise ValueError(f"the array {name} holds Python objects, which would be unpickled: allowed are strings")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize != size - stream.tell():
        raise ValueError(f"the array {name} says its shape is {shape}, but its entry does not have this size")
    if name == "values":
        _check_count(path, count, 1)
    elif size > LARGEST or count > NUMBERS:
        raise LimbeckError(f"{path} has {size:,} bytes of {name}, allowed are at most {LARGEST:,}")


def _check_count(path: Path, rows: int, columns: int) -> None:
    if rows * columns > NUMBERS:
        raise LimbeckError(
            f"{path} has {rows * columns:,} numbers or more, allowed are at most {NUMBERS:,} in a table. A store that "
            "limbeck builds from a teacher may hold more"
        )


def _parquet(path: Path) -> Read:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise LimbeckError(f"{path} needs pyarrow to be read: pip install 'limbeck[parquet]'") from error
    try:
        # A dictionary holds each name once, until the length of all names together is checked.
        with parquet.ParquetFile(path, read_dictionary=["file"]) as file:
            place, classes = _heads(path, file.schema_arrow.names)
            _check_count(path, file.metadata.num_rows, len(classes))
            _check_types(file.schema_arrow, place)
            table = file.read()
            names = _parquet_names(path, table.columns[place])
            columns = [column for number, column in enumerate(table.columns) if number != place]
            values = [column.to_numpy().astype(numpy.float64) for column in columns]
    except (ValueError, TypeError, OSError, OverflowError, MemoryError, pyarrow.ArrowException) as error:
        raise LimbeckError(f"{path} cannot be read: {error}") from error
    return names, classes, numpy.array(values).T


def _check_types(schema: Any, place: int) -> None:
    """Check the columns of a parquet file.

    Raises:
        ValueError: the column of the names does not hold strings, or another column does not hold numbers.
    """
    from pyarrow import types

    numbers = (types.is_floating, types.is_integer, types.is_decimal, types.is_boolean, types.is_null)
    texts = (types.is_string, types.is_large_string, types.is_integer, types.is_dictionary)
    for number, field in enumerate(schema):
        allowed = texts if number == place else numbers
        if not any(test(field.type) for test in allowed):
            raise ValueError(
                f"the column {field.name[:60]!r} is of {field.type}, needed are texts of file, else numbers"
            )


def _parquet_names(path: Path, column: Any) -> list[str]:
    from pyarrow import compute, types

    names: list[str] = []
    for chunk in column.chunks:
        if types.is_dictionary(chunk.type):
            lengths = compute.binary_length(chunk.dictionary).take(chunk.indices)
            if (compute.sum(lengths).as_py() or 0) > LARGEST:
                raise LimbeckError(f"{path} has more than {LARGEST:,} bytes of names")
        names += ["" if name is None else str(name) for name in chunk.to_pylist()]
    return names


def _heads(path: Path, heads: Sequence[str]) -> tuple[int, list[str]]:
    """The place of the column of the files' names, and the names of the other columns."""
    if heads.count("file") != 1:
        raise LimbeckError(f"{path} has the columns {few(heads)}: needed are one that is named file, and one a class")
    place = heads.index("file")
    return place, [head for number, head in enumerate(heads) if number != place]


_READERS: Mapping[str, Callable[[Path], Read]] = {".csv": _csv, ".npz": _npz, ".parquet": _parquet}
