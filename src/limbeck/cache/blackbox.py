"""A table of soft labels as a teacher: which row belongs to which sample, and a placeholder for the network."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

import torch
from torch import Tensor, nn

from limbeck.cache.table import Table
from limbeck.core import LimbeckError, Tap, from_teacher
from limbeck.files.columns import few


def rows_for(table: Table, names: Sequence[str], classes: Sequence[str]) -> Tensor:
    """The table's logits (len(names), len(classes)) in the order of the data.

    A file is found by its path. If the table does not have this path, it is found by the only path of which one ends
    with the other: ``train/7.png`` matches ``data/train/7.png`` and ``7.png``, but not ``test/7.png``. Rows of other
    files are ignored. Columns are found by the names of the classes; columns without names are in the order of the
    data's classes.

    Args:
        table: the predictions.
        names: the files of the data, relative to its folder.
        classes: the data's classes in the order of their indices.

    Raises:
        LimbeckError: a file is not in the table, or several rows match it; the classes differ.
    """
    return table.values[_rows(table, names)][:, _columns(table, classes)]


class TableStore:
    """A table in the place of a store: one row a sample, which is the same for every view.

    Args:
        logits: (N, C) float32 from `rows_for`.

    Attributes:
        taps: only the teacher's output.
        rows: the number of samples.
    """

    def __init__(self, logits: Tensor) -> None:
        self.taps = frozenset({from_teacher()})
        self.rows = len(logits)
        self._logits = logits

    def read(self, index: Tensor, view: int) -> dict[Tap, Tensor]:
        """The rows (N, C), float32 on the CPU, of the samples ``index`` (N,) int64, the same in every view."""
        return {tap: self._logits[index.cpu()] for tap in self.taps}


class BlackBox(nn.Module):
    """A placeholder for a teacher whose outputs are a table: its outputs have the right shape, and are all NaN.

    Stages can be planned with it. If a loss used its outputs by mistake, the loss would be NaN at once.

    Args:
        classes: the number of logits.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (N, ...) to NaN (N, classes)."""
        return torch.full((len(inputs), self.classes), torch.nan, device=inputs.device)


def _rows(table: Table, names: Sequence[str]) -> list[int]:
    """The table's row of each name."""
    paths = [PurePosixPath(name).parts for name in table.names]
    exact = {parts: row for row, parts in enumerate(paths)}
    ending = defaultdict(list)
    for row, parts in enumerate(paths):
        ending[parts[-1:]].append(row)
    rows: list[int] = []
    missing, doubled = [], []
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        near = [row for row in ending[parts[-1:]] if _ends(parts, paths[row]) or _ends(paths[row], parts)]
        near = [exact[parts]] if parts in exact else near
        rows += near[:1]
        missing += [] if near else [name]
        doubled += [name] if len(near) > 1 else []
    if missing:
        raise LimbeckError(f"the table has no row for {few(missing)}, of {len(names)}; it has {few(table.names)}")
    uses = Counter(rows)
    doubled += [name for name, row in zip(names, rows, strict=True) if uses[row] > 1]
    if doubled:
        raise LimbeckError(
            f"several rows of the table match, or one row matches several files, for {few(doubled)}, of {len(names)}: "
            "name the table's files by their paths in the data"
        )
    return rows


def _ends(longer: tuple[str, ...], shorter: tuple[str, ...]) -> bool:
    return longer[-len(shorter) :] == shorter


def _columns(table: Table, classes: Sequence[str]) -> list[int]:
    """The table's column of each class."""
    named = table.classes
    if named is None:
        if table.values.shape[1] != len(classes):
            raise LimbeckError(f"the table has {table.values.shape[1]} columns, the data {len(classes)} classes")
        return list(range(len(classes)))
    unknown = [name for name in named if name not in set(classes)]
    missing = [name for name in classes if name not in set(named)]
    if unknown or missing:
        raise LimbeckError(
            f"the table's columns are not the data's classes: unknown are {few(unknown)}, missing are {few(missing)}. "
            "Name each column as its class"
        )
    return [named.index(name) for name in classes]
