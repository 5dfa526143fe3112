"""A finished store, opened to be read."""

from collections.abc import Collection, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.cache.encoding import decode
from limbeck.cache.fingerprint import Fingerprint, refuse_difference
from limbeck.cache.folder import Plan, Unit, check_files, check_numbers, check_size, map_file
from limbeck.cache.manifest import BUILDING, FINISHED, read_manifest
from limbeck.core import LimbeckError, Tap

MOST_MAPPED = 2**14
"""The most files that are mapped at a time; Linux allows 65,530 mappings in a process."""


class Store:
    """A teacher's tensors for every sample and view, in files that are mapped, not loaded.

    Opening compares the sizes of the files. A file is compared with its checksum, which reads all of it, before a row
    of it is read for the first time, or with ``check`` when the store is opened. Any number of processes may read a
    store at once, and a forked process may use what was opened before.

    Args:
        folder: where it was built.
        expected: what it must have been built from.
        checked: the names of files that need not be compared with their checksums;
            `limbeck.cache.building.build` returns them.
        check: compare every other file with its checksum now.

    Attributes:
        taps: what can be read.
        views: the number of views.
        rows: the number of samples in each view.

    Raises:
        LimbeckError: there is no store, or it is not finished; its fingerprint differs.
        DamagedStore: files are missing or truncated, or with ``check`` damaged.
    """

    def __init__(
        self, folder: Path, expected: Fingerprint, checked: Collection[str] = (), *, check: bool = False
    ) -> None:
        manifest = _finished(folder)
        self.plan = plan = Plan.of(folder, manifest)
        refuse_difference(folder, plan.fingerprint, expected)
        self.taps = frozenset(plan.fingerprint.taps)
        self.views, self.rows = plan.fingerprint.views, plan.rows
        self._shards = len(plan.units) // self.views
        self._checked, checksums = set(checked), manifest["files"]
        # A function of the module, because a method would keep the store alive, and its files open.
        self._map = partial(_map, folder, plan, checksums, self._checked)
        self._mapped = lru_cache(MOST_MAPPED)(self._map)
        check_files(folder, plan, self._map if check else partial(check_size, folder, plan))

    def read(self, index: Tensor, view: int) -> dict[Tap, Tensor]:
        """The rows (N, ...) of every tap, float32 on the CPU, of the samples ``index`` (N,) int64 in any order.

        Raises:
            LimbeckError: there is no such view or sample; a file is damaged.
        """
        return {tap: decode(self.stored(tap, index, view), self.plan.shapes[tap]) for tap in self.plan.parts}

    def stored(self, tap: Tap, index: Tensor, view: int) -> dict[str, Tensor]:
        """The rows of one tap as `limbeck.cache.encoding.encode` returned them.

        Raises:
            LimbeckError: there is no such view or sample; a file is damaged.
        """
        if not 0 <= view < self.views:
            raise LimbeckError(f"the store has no view {view}: allowed are 0 to {self.views - 1}")
        samples = index.cpu().numpy()
        if len(samples) and not (samples.min() >= 0 and samples.max() < self.rows):
            raise LimbeckError(
                f"the store has no samples {samples.min()} to {samples.max()}: allowed are 0 to {self.rows - 1}"
            )
        return self._rows(tap, samples, view)

    def _rows(self, tap: Tap, index: NDArray[numpy.int64], view: int) -> dict[str, Tensor]:
        """Copies of the rows, file by file."""
        parts = self.plan.parts[tap]
        # NumPy, because a call takes a quarter of the time of PyTorch's, and there are several for each file and part.
        shard, place = numpy.divmod(index, self.plan.shard_rows)
        order = shard.argsort(kind="stable")
        shard, place = shard[order], place[order]
        starts = [0, *(numpy.flatnonzero(shard[1:] != shard[:-1]) + 1).tolist()][: len(index)]
        found = [numpy.empty((len(index), part.row_bytes), numpy.uint8) for part in parts]
        for start, stop in zip(starts, [*starts, len(index)][1:], strict=True):
            held = self._mapped(tap, self.plan.units[view * self._shards + int(shard[start])])
            wanted = place[start:stop]
            for rows, out in zip(held, found, strict=True):
                rows.take(wanted, axis=0, out=out[start:stop], mode="clip")
        back = numpy.empty_like(order)
        back[order] = numpy.arange(len(index))
        return {
            part.name: torch.from_numpy(rows.take(back, axis=0).reshape(-1))
            .view(part.dtype)
            .reshape(len(index), *part.shape)
            for part, rows in zip(parts, found, strict=True)
        }


def _map(
    folder: Path, plan: Plan, checksums: Mapping[str, str], checked: set[str], tap: Tap, unit: Unit
) -> list[NDArray[numpy.uint8]]:
    """The bytes (rows, bytes of a row) of the parts of a tap, mapped. A file that is not ``checked`` is checked."""
    name = plan.files(unit)[tap]
    tensors, _ = map_file(folder / name, plan, unit, tap)
    if name not in checked:
        check_numbers(folder / name, tensors, checksums.get(name, ""))
        checked.add(name)
    parts = (tensors[part.name] for part in plan.parts[tap])
    return [rows.reshape(-1).view(torch.uint8).reshape(unit.rows, -1).numpy() for rows in parts]


def _finished(folder: Path) -> dict[str, Any]:
    """The description of a finished store.

    Raises:
        LimbeckError: there is none.
    """
    found = read_manifest(folder / FINISHED)
    if found is not None:
        return found
    if (folder / BUILDING).is_file():
        raise LimbeckError(f"the store {folder} is not finished: build it again, which keeps the files that are there")
    raise LimbeckError(f"there is no store in {folder}: build it first")
