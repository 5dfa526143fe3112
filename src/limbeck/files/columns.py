"""Read columns of a CSV or parquet file in bounded memory. Nothing in the file is run. This module needs no torch."""

import csv
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

from limbeck.errors import LimbeckError

LARGEST = 2**30
"""The most bytes of a table's file, and of each column of texts when unpacked: 1 GiB."""

NUMBERS = 2**27
"""The most numbers of a table, rows times columns: 1 GiB in 64 bits."""

ROWS = 2**24
"""The most rows of a table; ImageNet-21k has 14 million."""

LINE = 2**22
"""The most characters of a line of a CSV file: 4 MiB, enough for 200,000 numbers."""


class Columns(NamedTuple):
    """Columns of a table of N rows."""

    texts: Mapping[str, list[str]]  # by the name of the column; "" where a parquet file has no value
    numbers: NDArray[numpy.float64]  # (N, D); NaN where a parquet file has no value


def read_heads(path: Path) -> list[str]:
    """Read the names of the columns; an empty CSV file has none.

    Args:
        path: a regular file that ends with .csv or .parquet, of at most `LARGEST` bytes.

    Raises:
        LimbeckError: the file cannot be read; two columns have the same name.
    """
    if path.suffix == ".parquet":
        with _parquet(path) as file:
            heads = list[str](file.schema_arrow.names)
    else:
        heads = next((row for _, row in _csv_rows(path)), [])
    refuse_doubled(heads, f"{path} has more than one column for")
    return heads


def read_columns(path: Path, *, texts: Sequence[str], numbers: Sequence[str]) -> Columns:
    """Read these columns, which are among `read_heads`.

    Raises:
        LimbeckError: the file cannot be read; a column does not hold what it should; the table is larger than `ROWS`
            and `NUMBERS` allow.
    """
    return (_from_parquet if path.suffix == ".parquet" else _from_csv)(path, texts, numbers)


def check_count(path: Path, rows: int, columns: int) -> None:
    """Raise LimbeckError if a table has too many rows or numbers."""
    if rows * columns > NUMBERS:
        raise LimbeckError(f"{path} has {rows * columns:,} numbers or more, allowed are at most {NUMBERS:,} in a table")
    if rows > ROWS:
        raise LimbeckError(f"{path} has {rows:,} rows or more, allowed are at most {ROWS:,}")


def few(names: Sequence[str]) -> str:
    """How many names there are, and the first of them."""
    shown = [*names[:3], *(["..."] if len(names) > 3 else [])]
    return f"{len(names)} ({', '.join(shown)})" if names else "none"


def refuse_doubled(names: Iterable[str], sentence: str) -> None:
    """Raise LimbeckError if a name occurs twice; the message begins with the sentence."""
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise LimbeckError(f"{sentence} {few(doubled)}: allowed is one each")


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of each line that is not empty."""
    number, columns = 1, 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, line in enumerate(iter(lambda: file.readline(LINE), ""), 1):
                row = _fields(line)
                if row and columns not in (0, len(row)):
                    raise ValueError(f"{len(row)} values under {columns} columns")
                if row:
                    columns = len(row)
                    yield number, row
    except (ValueError, csv.Error, OSError) as error:  # bytes that are not UTF-8 raise a ValueError too
        raise LimbeckError(f"{path}, line {number}: {error}") from error


def _fields(line: str) -> list[str]:
    """The fields of a line; an empty line has none. Raises csv.Error if the line ends within a field."""
    if len(line) == LINE and not line.endswith("\n"):
        raise ValueError(f"it is longer than {LINE:,} characters")
    return next(csv.reader([line], strict=True), [])


def _from_csv(path: Path, texts: Sequence[str], numbers: Sequence[str]) -> Columns:
    rows = _csv_rows(path)
    heads = {name: place for place, name in enumerate(next(rows)[1])}
    places = [heads[name] for name in numbers]
    kept: dict[str, list[str]] = {name: [] for name in texts}
    values, count = array("d"), 0
    for count, (_, row) in enumerate(rows, 1):
        for name, column in kept.items():
            column.append(row[heads[name]])
        try:
            values.extend([float(row[place]) for place in places])
        except ValueError:
            for name in numbers:
                _check_number(f"{path}, row {count}: the column {name!r}", row[heads[name]])
        check_count(path, count, len(places))
    return Columns(kept, numpy.asarray(values).reshape(count, len(places)))


def _check_number(column: str, text: str) -> None:
    """Raise LimbeckError if a cell is not a number."""
    try:
        float(text)
    except ValueError as error:
        raise LimbeckError(f"{column} is {repr(text[:60]) if text else 'empty'}; allowed are numbers") from error


@contextmanager
def _parquet(path: Path, texts: Sequence[str] = ()) -> Iterator[Any]:
    """An open parquet file; what goes wrong while it is open becomes a LimbeckError."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise LimbeckError(f"{path} needs pyarrow to be read: pip install 'limbeck[parquet]'") from error
    try:
        # A dictionary holds each text once, until the length of all texts together is checked.
        with parquet.ParquetFile(path, read_dictionary=list(texts)) as file:
            yield file
    except (ValueError, TypeError, OSError, OverflowError, MemoryError, pyarrow.ArrowException) as error:
        raise LimbeckError(f"{path} cannot be read: {error}") from error


def _from_parquet(path: Path, texts: Sequence[str], numbers: Sequence[str]) -> Columns:
    with _parquet(path, texts) as file:
        check_count(path, file.metadata.num_rows, len(numbers))
        _check_types(file.schema_arrow, texts, numbers)
        table = file.read(columns=[*texts, *numbers])
        kept = {name: _texts(path, name, table[name]) for name in texts}
        values = [table[name].to_numpy().astype(numpy.float64) for name in numbers]
        return Columns(kept, numpy.array(values).T.reshape(file.metadata.num_rows, len(numbers)))


def _check_types(schema: Any, texts: Sequence[str], numbers: Sequence[str]) -> None:
    """Raise ValueError if a column of a parquet file does not hold texts, or another does not hold numbers."""
    from pyarrow import types

    number = (types.is_floating, types.is_integer, types.is_decimal, types.is_boolean, types.is_null)
    text = (types.is_string, types.is_large_string, types.is_integer, types.is_dictionary)
    for name in (*texts, *numbers):
        kind = schema.field(name).type
        if not any(test(kind) for test in (text if name in texts else number)):
            raise ValueError(
                f"the column {name[:60]!r} is of {kind}, needed are texts of {', '.join(texts)}, else numbers"
            )


def _texts(path: Path, name: str, column: Any) -> list[str]:
    from pyarrow import compute, types

    found: list[str] = []
    for chunk in column.chunks:
        if types.is_dictionary(chunk.type):
            lengths = compute.binary_length(chunk.dictionary).take(chunk.indices)
            if (compute.sum(lengths).as_py() or 0) > LARGEST:
                raise LimbeckError(f"{path} has more than {LARGEST:,} bytes in the column {name!r}")
        found += ["" if value is None else str(value) for value in chunk.to_pylist()]
    return found
