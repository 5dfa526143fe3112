"""Soft labels from elsewhere, such as bought from an API: a table keyed by file name."""

import csv
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.core import LimbeckError

Kind = Literal["probabilities", "log-probabilities", "logits"]

FLOOR = 1e-8
"""The least probability: of a 0, log p is not finite. Raising to it moves a probability by at most 1e-8 times C + 1."""

_SUM = 1e-3  # how far from 1 the probabilities of a row may sum, as from rounding to few digits

_MOST = float(numpy.finfo(numpy.float32).max)

_NO_NPZ = (
    *(ValueError, TypeError, EOFError, OSError, NotImplementedError, zipfile.BadZipFile),
    *(zlib.error, SyntaxError, tokenize.TokenError),  # of a damaged one, the last two of its header
)
"""What numpy raises of a file that it cannot read."""

Read = tuple[Sequence[str], Sequence[str] | None, NDArray[numpy.float64]]  # names, classes, values (N, C)


@dataclass(frozen=True)
class Table:
    """Logits by file name."""

    names: tuple[str, ...]  # N different paths with "/" between their parts
    classes: tuple[str, ...] | None  # C names of the columns; None if the file has none
    values: Tensor  # (N, C) float32


def read_table(path: Path, kind: Kind | None = None) -> Table:
    """Read a table of one prediction a file.

    * ``.csv`` and ``.parquet``: a column ``file``, and one column a class under the class's name.
    * ``.npz``: ``files`` (N,) texts, ``values`` (N, C) and, if the columns are not in the data's order, ``classes``
      (C,) texts. Nothing pickled is read.

    Of probabilities p the logits are log p, so that softmax gives p again and a temperature acts on log p; p below
    `FLOOR` counts as it. Log-probabilities are logits already, and have the same floor.

    Args:
        path: the file.
        kind: what the numbers are. If it is not given: probabilities, if all are 0 or greater and every row sums to 1
            within 0.001; log-probabilities, if the same holds for their exponentials; logits, if there are numbers
            on both sides of 0.

    Raises:
        LimbeckError: the file is not there or not such a table; a file or class is in it twice; a number is missing,
            is none, or does not fit the kind; the kind is not given and not certain.
    """
    if path.suffix not in _READERS:
        raise LimbeckError(f"{path} is no table that can be read: allowed are {', '.join(_READERS)}")
    if not path.is_file():
        raise LimbeckError(f"there is no table {path}")
    written, classes, values = _READERS[path.suffix](path)
    if not all(written):
        raise LimbeckError(f"{path} has a row without a file's name")
    names = [PurePosixPath(name.replace("\\", "/")).as_posix() for name in written]
    _refuse_doubled(names, f"{path} has more than one row for")
    _refuse_doubled(classes or (), f"{path} has more than one column for")
    if values.ndim != 2 or len(values) != len(names) or values.shape[1] != len(classes or values.T) or not values.size:
        raise LimbeckError(
            f"{path} has values of shape {values.shape} for {len(names)} files"
            f"{f' and {len(classes)} classes' if classes else ''}: needed is one row a file and one column a class"
        )
    logits = torch.from_numpy(_logits(path, names, values, kind).astype(numpy.float32))
    return Table(tuple(names), None if classes is None else tuple(classes), logits)


def _logits(path: Path, names: Sequence[str], values: NDArray[numpy.float64], kind: Kind | None) -> NDArray[Any]:
    """The values as logits, checked."""
    if kind is not None and kind not in get_args(Kind):
        raise LimbeckError(f"a table of {kind!r}: allowed are {', '.join(get_args(Kind))}")
    _refuse_no_numbers(path, names, numpy.isnan(values) | (values > _MOST))
    kind = kind or _recognised(path, values)
    if kind != "log-probabilities":  # where a probability of 0 is -inf
        _refuse_no_numbers(path, names, values < -_MOST)
    if kind == "logits":
        return values
    probabilities = values if kind == "probabilities" else numpy.exp(numpy.minimum(values, 1))  # e is off as well
    off = (probabilities < 0).any(1) | ~_sums_to_one(probabilities)
    if off.any():
        raise LimbeckError(
            f"{path} has no {kind} that are 0 or greater and sum to 1 within {_SUM} for {few(_where(names, off))}: "
            "normalise them, or if they are scores whose softmax is meant, say logits (as teacher.values in a recipe)"
        )
    return numpy.log(numpy.maximum(probabilities, FLOOR))


def _refuse_no_numbers(path: Path, names: Sequence[str], wrong: NDArray[numpy.bool_]) -> None:
    if wrong.any():
        raise LimbeckError(f"{path} has an empty, NaN or infinite value for {few(_where(names, wrong.max(1)))}")


def _recognised(path: Path, values: NDArray[numpy.float64]) -> Kind:
    """What the numbers are, where there is no doubt."""
    if values.min() >= 0 and _sums_to_one(values).all():
        return "probabilities"
    if values.max() <= 0 and _sums_to_one(numpy.exp(values)).all():
        return "log-probabilities"
    if values.min() < 0 < values.max():
        return "logits"
    raise LimbeckError(
        f"{path} has values from {values.min():.6g} to {values.max():.6g} that could be several things: "
        f"say which (as teacher.values in a recipe): {', '.join(get_args(Kind))}; or a class's column is missing"
    )


def _sums_to_one(values: NDArray[numpy.float64]) -> NDArray[numpy.bool_]:
    near: NDArray[numpy.bool_] = numpy.abs(values.sum(1) - 1) <= _SUM
    return near


def few(names: Sequence[str]) -> str:
    """How many, and the first of them."""
    shown = [*names[:3], *(["..."] if len(names) > 3 else [])]
    return f"{len(names)} ({', '.join(shown)})" if names else "none"


def _where(names: Sequence[str], chosen: NDArray[numpy.bool_]) -> list[str]:
    return [name for name, taken in zip(names, chosen, strict=True) if taken]


def _refuse_doubled(names: Sequence[str], sentence: str) -> None:
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise LimbeckError(f"{sentence} {few(doubled)}: allowed is one each")


def _csv(path: Path) -> Read:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        names, values = [], []
        try:
            heads = next(lines, [])
            place, classes = _heads(path, heads)
            for line in filter(None, lines):
                if len(line) != len(heads):
                    raise ValueError(f"{len(line)} values under {len(heads)} columns")
                names.append(line.pop(place))
                values.append([float(text) for text in line])
        except (ValueError, csv.Error) as error:  # bytes that are no UTF-8 are a ValueError too
            raise LimbeckError(f"{path}, line {lines.line_num}: {error}") from error
    return names, classes, numpy.array(values)


def _npz(path: Path) -> Read:
    try:
        with path.open("rb") as file, numpy.load(file, allow_pickle=False) as held:
            arrays = dict(held)
        values = arrays["values"].astype(numpy.float64)
        names = arrays["files"].astype(str).tolist()
        classes = arrays["classes"].astype(str).tolist() if "classes" in arrays else None
    except KeyError as error:
        raise LimbeckError(f"{path} has no array {error}: needed are files and values, and classes if named") from error
    except _NO_NPZ as error:
        raise LimbeckError(f"{path} cannot be read: {error}") from error
    return names, classes, values


def _parquet(path: Path) -> Read:
    try:
        from pyarrow import parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise LimbeckError(f"{path} needs pyarrow to be read: pip install 'limbeck[parquet]'") from error
    try:
        table = parquet.ParquetFile(path).read()
        place, classes = _heads(path, table.column_names)
        names = ["" if name is None else str(name) for name in table.columns[place].to_pylist()]
        columns = [column for number, column in enumerate(table.columns) if number != place]
        values = [column.to_numpy().astype(numpy.float64) for column in columns]
    except (ValueError, TypeError, OSError, NotImplementedError) as error:  # pyarrow's own are among them
        raise LimbeckError(f"{path} cannot be read: {error}") from error
    return names, classes, numpy.array(values).T


def _heads(path: Path, heads: Sequence[str]) -> tuple[int, list[str]]:
    """Where the files' names are, and the names of the other columns."""
    if heads.count("file") != 1:
        raise LimbeckError(f"{path} has the columns {few(heads)}: needed are one named file, and one a class")
    place = heads.index("file")
    return place, [head for number, head in enumerate(heads) if number != place]


_READERS: Mapping[str, Callable[[Path], Read]] = {".csv": _csv, ".npz": _npz, ".parquet": _parquet}
