"""A CSV or parquet file of image paths, or of features, with labels or numbers."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal, NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.decoding import moved, quiet
from limbeck.data.images import Inputs
from limbeck.data.sources.base import Parts, Progress, located
from limbeck.data.sources.folders import NAMES, split_of
from limbeck.data.sources.images import look
from limbeck.data.sources.reading import Reading, skipped
from limbeck.data.split import Split
from limbeck.data.targets import TaskName
from limbeck.data.trees import Reader
from limbeck.errors import close_names, nearest
from limbeck.files.columns import LARGEST, few, read_columns, read_heads, refuse_doubled
from limbeck.files.paths import file_size

ENDINGS = (".csv", ".parquet")

_LISTED = 100  # columns that are listed
_COMPARED = 10_000  # names of files that a path which is not there is compared with


class _Wanted(NamedTuple):
    """The columns of a table."""

    label: str | None  # None: the targets are numbers
    targets: tuple[str, ...]
    task: TaskName
    path: str | None  # None: the table holds features
    split: str | None
    numbers: tuple[str, ...]


class _Rows(NamedTuple):
    """The rows of one split."""

    labels: list[str]  # (N,), or none if the targets are numbers
    targets: NDArray[numpy.float32]  # (N, T)
    paths: tuple[str, ...]  # (N,), or none in a table of features
    values: NDArray[numpy.float32]  # (N, D)


def table(
    *,
    path: Path,
    validation_path: Path | None = None,
    test_path: Path | None = None,
    images: Path | None = None,
    path_column: str = "path",
    label_column: str = "label",
    targets: tuple[str, ...] = (),
    task: Literal["classification", "multi_label", "regression", "landmarks"] = "classification",
    split_column: str | None = None,
    features: bool | tuple[str, ...] = False,
    root: Path | None = None,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
    exif_orientation: bool = True,
    streaming: bool = False,
    workers: int | None = None,
    transform: str | None = None,
) -> Parts:
    """Rows of a table: images (N, C, H, W), as `limbeck.data.sources.folders.folder` gives them, or features (N, D).

    The table is a CSV file (UTF-8, separated by commas, with the names of the columns in the first line) or a parquet
    file. The classes are the sorted labels; whole numbers are sorted by value. For a ``task`` other than
    classification, the targets are the numbers in the columns ``targets``.

    Args:
        path: the table, absolute, or relative to the working folder or to the data root.
        validation_path: a table of the validation split.
        test_path: a table of the test split.
        images: the folder or zip file that the paths in the table are relative to; by default the table's folder.
        path_column: the column of the paths.
        label_column: the column of the labels, for classification.
        targets: the columns of the targets, for another task. For landmarks, two columns for each point: x, then y, in
            pixels from the left and the upper edge of the image after its EXIF orientation. The points of a resized
            image move with it. A point is named after its columns without ``_x`` and ``_y``, or ``.x`` and ``.y``.
        task: what the targets are, see `limbeck.data.targets.check_targets`.
        split_column: the column of the splits, with a name of `limbeck.data.sources.folders.NAMES` in each row. By
            default ``split``, if there is one and path is the only table.
        features: the table holds features, which become float32: the names of their columns, or True for all columns
            but those of labels and splits.
        root: see `data_root`.
        size: as for a folder, and so are the arguments below.
        progress: is called for every file that is decoded.
        exif_orientation: turn and mirror images as their EXIF data says.
        streaming: leave the images on disk.
        workers: with streaming, the number of processes that decode images.
        transform: with streaming, what makes a training view of an image.

    Raises:
        LimbeckError: a table cannot be read, is larger than `limbeck.files.columns` allows, or lacks a column; a row
            has no path, label or split, or not a finite number; a path is outside the folder, occurs twice or does
            not exist; an image cannot be read; an option is out of range, or does not go with another.
    """
    how = Reading(size, exif_orientation, streaming, workers, transform, progress)
    if features and (images is not None or streaming):
        raise LimbeckError(f"{'streaming' if streaming else 'images'} is for images, but features is {features!r}")
    if task == "landmarks" and transform is not None:
        raise LimbeckError(f"transform is {transform!r}, which would move the images and not the landmarks")
    given = {"train": path, "validation": validation_path, "test": test_path}
    places = {split: located(place, root) for split, place in given.items() if place is not None}
    if split_column is not None and len(places) > 1:
        raise LimbeckError(
            f"split_column is {split_column!r}, and validation_path or test_path is given too; allowed is one of them"
        )
    label = _label(task, label_column, targets)
    wanted = _wanted(places["train"], label, targets, task, path_column, split_column, features, alone=len(places) == 1)
    rows: dict[str, _Rows] = {}
    for split, place in places.items():
        rows |= _rows(place, wanted, split)
    if "train" not in rows:
        raise LimbeckError(f"{path} has no row of train; allowed in the column {wanted.split!r} are {_splits()}")
    names = _points(targets) if task == "landmarks" else targets
    classes, of = (names, _numbers(rows, task)) if label is None else _labelled(path, rows, label)
    if wanted.path is None:
        made = {split: Split(torch.from_numpy(part.values), of[split]) for split, part in rows.items()}
        return _parts(made, classes, places, task)
    reader = Reader(places["train"].parent if images is None else located(images, root))
    files = {split: part.paths for split, part in rows.items()}
    notes = _check_files(reader, files, places)
    inputs, more = how.inputs(reader, tuple(files.values()))
    if task == "landmarks":
        pairs = zip(files, inputs, strict=True)
        of = {part: _moved(reader, files[part], of[part], made_of, exif_orientation) for part, made_of in pairs}
    made = {split: Split(part, of[split], files[split]) for split, part in zip(files, inputs, strict=True)}
    return _parts(made, classes, places, task, (*notes, *more))


def _label(task: TaskName, label: str, targets: Sequence[str]) -> str | None:
    """The column of the labels; None if the targets are numbers."""
    if task != "classification" and not targets:
        raise LimbeckError(f"task is {task!r}, but targets names no column: name at least one, as targets: [column]")
    if task == "classification" and targets:
        raise LimbeckError(
            f"task is 'classification' with the targets {few(targets)}: classification has a label_column; other "
            "tasks, such as task: regression, have targets"
        )
    if targets and label != "label":
        raise LimbeckError(f"label_column is {label!r}, but the targets of {task} are {few(targets)}; allowed is one")
    refuse_doubled(targets, "targets: more than one of")
    return None if targets else label


def _points(columns: Sequence[str]) -> tuple[str, ...]:
    """The names of the points whose x and y are in these columns."""
    if len(columns) % 2:
        raise LimbeckError(f"targets are {few(columns)}; allowed are two columns for each point: x, then y")
    names = []
    for x, y in zip(columns[::2], columns[1::2], strict=True):
        ends = [re.fullmatch(r"(.+)[._]([xy])", name) for name in (x, y)]
        found = [(end[1], end[2]) for end in ends if end]
        if found and (len(found) < 2 or [axis for _, axis in found] != ["x", "y"] or found[0][0] != found[1][0]):
            raise LimbeckError(f"targets: {x!r} and {y!r} are not x and y of one point; allowed is x, then y")
        names.append(found[0][0] if found else x)
    refuse_doubled(names, "targets: more than one point")
    return tuple(names)


def _labelled(path: Path, rows: Mapping[str, _Rows], label: str) -> tuple[tuple[str, ...], Mapping[str, Tensor]]:
    """The classes, and the class indices (N,) of each split."""
    classes = _classes(chain(*(part.labels for part in rows.values())))
    if len(classes) == sum(len(part.labels) for part in rows.values()):
        raise LimbeckError(
            f"{path} has a different value of {label!r} in each row; allowed are labels of classes, not names or "
            "measurements: select the column with label_column"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, {split: torch.tensor([numbers[label] for label in part.labels]) for split, part in rows.items()}


def _numbers(rows: Mapping[str, _Rows], task: TaskName) -> Mapping[str, Tensor]:
    """The targets of each split: (N, T), or points (N, T / 2, 2)."""
    found = {split: torch.from_numpy(part.targets) for split, part in rows.items()}
    return {split: part.view(len(part), -1, 2) for split, part in found.items()} if task == "landmarks" else found


def _moved(reader: Reader, names: Sequence[str], points: Tensor, images: Inputs, exif: bool) -> Tensor:
    """The points (N, L, 2) after the images were fitted to their size."""
    size = (images.shape[2], images.shape[3])
    with quiet():
        found = [
            moved(one.numpy(), size, look(reader, name, exif).size) for name, one in zip(names, points, strict=True)
        ]
    return torch.from_numpy(numpy.stack(found))


def _parts(
    splits: Mapping[str, Split],
    classes: tuple[str, ...],
    places: Mapping[str, Path],
    task: TaskName,
    notes: Sequence[str] = (),
) -> Parts:
    one = len(places) == 1
    rows = {split: f"rows of {places['train' if one else split].name}" for split in splits}
    origins = {split: f"the {f'{split} ' if one and len(splits) > 1 else ''}{text}" for split, text in rows.items()}
    return Parts(
        splits["train"],
        classes,
        splits.get("validation"),
        splits.get("test"),
        task=task,
        origins=origins,
        notes=tuple(notes),
    )


def _wanted(
    path: Path,
    label: str | None,
    targets: tuple[str, ...],
    task: TaskName,
    image: str,
    split: str | None,
    features: bool | tuple[str, ...],
    *,
    alone: bool,
) -> _Wanted:
    """The columns to read, as the table of train has them."""
    heads = _heads(path)
    if split is None and alone and "split" in heads and label != "split":
        split = "split"
    if not features:
        return _Wanted(label, targets, task, image, split, ())
    others = {label, split, *targets}
    numbers = features if isinstance(features, tuple) else tuple(head for head in heads if head not in others)
    if not numbers or others & set(numbers) or len(set(numbers)) < len(numbers):
        beside = few(targets) if label is None else repr(label)
        raise LimbeckError(f"{path}: features are {few(numbers)}; allowed are columns beside {beside}, each once")
    return _Wanted(label, targets, task, None, split, numbers)


def _heads(path: Path) -> list[str]:
    if path.suffix not in ENDINGS:
        raise LimbeckError(f"{path} cannot be read as a table: allowed are {', '.join(ENDINGS)}")
    file_size(path, most=LARGEST, endings=ENDINGS)
    return read_heads(path)


def _rows(path: Path, wanted: _Wanted, split: str) -> dict[str, _Rows]:
    """The rows of a table by split; all are of the given one if there is no column of splits."""
    texts = [name for name in (wanted.label, wanted.path, wanted.split) if name is not None]
    heads = dict.fromkeys(_heads(path))
    if not heads:
        raise LimbeckError(f"{path} is empty; allowed is a first line with the names of the columns")
    every = (*wanted.targets, *wanted.numbers)
    for name in (*texts, *every):
        if name not in heads:
            raise LimbeckError(f"{path} has no column {name!r}: {nearest(name, islice(heads, _LISTED))}")
    read = read_columns(path, texts=texts, numbers=every)
    count = len(read.numbers)
    if not count:
        raise LimbeckError(f"{path} has no rows; allowed are one and more")
    for name, values in read.texts.items():
        if not all(values):
            raise LimbeckError(f"{path}, row {1 + values.index('')}: the column {name!r} is empty")
    wrong = ~(numpy.abs(read.numbers) <= numpy.finfo(numpy.float32).max)  # NaN is not less
    if wrong.any():
        row, column = divmod(int(wrong.argmax()), len(every))
        raise LimbeckError(f"{path}, row {1 + row}: the column {every[column]!r} is empty, NaN or infinite")
    outside = (abs(read.numbers[:, : len(wanted.targets)] - 0.5) > 0.5).any(1)
    if wanted.task == "multi_label" and outside.any():
        row = int(outside.argmax())
        raise LimbeckError(
            f"{path}, row {1 + row}: targets are {read.numbers[row, : len(wanted.targets)].tolist()}; "
            "allowed for multi_label are numbers from 0 to 1"
        )
    paths = [_inside(path, row, name) for row, name in enumerate(read.texts[wanted.path])] if wanted.path else []
    written = [split] * count if wanted.split is None else read.texts[wanted.split]
    of = [split_of(name) for name in written]
    if None in of:
        row = of.index(None)
        raise LimbeckError(f"{path}, row {1 + row}: {written[row]!r} is not a split; allowed are {_splits()}")
    chosen = {name: [row for row, other in enumerate(of) if other == name] for name in NAMES if name in of}
    return {
        name: _Rows(
            [read.texts[wanted.label][row] for row in rows] if wanted.label else [],
            read.numbers[rows, : len(wanted.targets)].astype(numpy.float32),
            tuple(paths[row] for row in rows if paths),
            read.numbers[rows, len(wanted.targets) :].astype(numpy.float32),
        )
        for name, rows in chosen.items()
    }


def _splits() -> str:
    return ", ".join(name for names in NAMES.values() for name in names)


def _inside(path: Path, row: int, text: str) -> str:
    """The path of a row with "/" between its parts."""
    inside = PurePosixPath(text.replace("\\", "/"))
    if inside.is_absolute() or ".." in inside.parts or PureWindowsPath(text).drive:
        raise LimbeckError(
            f"{path}, row {1 + row}: {text!r} is outside the folder of images; allowed are paths inside it"
        )
    return inside.as_posix()


def _classes(labels: Iterable[str]) -> tuple[str, ...]:
    names = set(labels)
    whole = all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if whole else 0, name)))


def _check_files(reader: Reader, names: Mapping[str, Sequence[str]], places: Mapping[str, Path]) -> list[str]:
    """Check that each file exists and is named once; return notes on the files that are skipped."""
    tables = " and ".join(place.name for place in places.values())
    every = [name for part in names.values() for name in part]
    refuse_doubled(every, f"{tables}: more than one row for")
    listing = reader.listing()
    missing = sorted(set(every).difference(listing.names))
    if missing:
        near = close_names(missing[0], islice((name for name in listing.names if name[-1] != "/"), _COMPARED), most=1)
        meant = f": did you mean {near[0]!r}?" if near else ""
        raise LimbeckError(f"{tables}: {few(missing)} of {len(every)} files are not in {reader.place}{meant}")
    own = (os.path.relpath(place, reader.place) for place in places.values())
    return skipped(listing, chain(every, own), "not in the table")
