"""A table in the place of a teacher: which row is whose, and what stands for the network that nobody has."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

import torch
from torch import Tensor, nn

from limbeck.cache.table import Table, few
from limbeck.core import LimbeckError, Tap, from_teacher


def rows_for(table: Table, names: Sequence[str], classes: Sequence[str]) -> Tensor:
    """The table's logits (len(names), len(classes)) in the order of the data.

    A file is found by its path, or else by the one path in the table that ends as it does, or that it ends as:
    ``train/7.png`` finds ``data/train/7.png`` and ``7.png``, but never ``test/7.png``. Rows of other files are left
    out. Columns are found by the classes' names; columns without names are taken in the order of the data's classes.

    Args:
        table: the predictions.
        names: the files of the data, relative to its folder.
        classes: the data's classes in the order of their indices.

    Raises:
        LimbeckError: a file is not in the table, or which row is its is not certain; the classes differ.
    """
    return table.values[_rows(table, names)][:, _columns(table, classes)]


class TableStore:
    """A table in the place of a store: one row a sample, for every view, because who predicted saw no view.

    Args:
        logits: (N, C) float32 of `rows_for`.

    Attributes:
        taps: the teacher's output alone. rows: the samples.
    """

    def __init__(self, logits: Tensor) -> None:
        self.taps = frozenset({from_teacher()})
        self.rows = len(logits)
        self._logits = logits

    def read(self, index: Tensor, view: int) -> dict[Tap, Tensor]:
        """The rows (N, C), float32 on the CPU, of the samples ``index`` (N,) int64, the same in every view."""
        return {tap: self._logits[index.cpu()] for tap in self.taps}


class BlackBox(nn.Module):
    """Stands for a teacher that only a table knows: it has the shape of one, and its every logit is NaN.

    So it can be planned with, and where it would be used, the loss is NaN at once.

    Args:
        classes: how many logits.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, ...) to NaN (N, classes)."""
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
            f"which row of the table is meant is not certain for {few(doubled)}, of {len(names)}: "
            "name its files by their paths in the data"
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
            f"the table's columns are not the data's classes: it has {few(unknown)} that the data has not, "
            f"and has not {few(missing)}. Name each column as its class"
        )
    return [named.index(name) for name in classes]
