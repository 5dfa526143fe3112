"""A finished store, opened to be read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from limbeck.cache.encoding import decode
from limbeck.cache.fingerprint import Fingerprint, refuse_difference
from limbeck.cache.folder import Plan, check_unit, map_unit
from limbeck.cache.manifest import BUILDING, FINISHED, read_manifest
from limbeck.core import LimbeckError, Tap


class Store:
    """A teacher's tensors for every sample and view, in files that are mapped, not loaded.

    Opening reads every file once, to compare it with its checksum. Any number of processes may read a store at once,
    and a forked process may use what was opened before.

    Args:
        folder: where it was built.
        expected: what it must have been built from.
        known: the checksums of files that need not be read again; `limbeck.cache.building.build` returns them.

    Attributes:
        taps: what can be read.
        views: the number of views.
        rows: the number of samples in each view.

    Raises:
        LimbeckError: there is no store, or it is not finished; its fingerprint differs; a file is missing, truncated
            or damaged.
    """

    def __init__(self, folder: Path, expected: Fingerprint, known: Mapping[str, str] | None = None) -> None:
        manifest = _finished(folder)
        plan = Plan.of(folder, manifest)
        refuse_difference(folder, plan.fingerprint, expected)
        checksums = dict(known or {})
        for unit in plan.units:
            if not checksums.keys() >= set(plan.files(unit).values()):
                checksums |= check_unit(folder, plan, unit)
        for name, checksum in checksums.items():
            if checksum != manifest["files"].get(name):
                raise LimbeckError(
                    f"{folder / name} is damaged: its numbers are not those that the store was finished with. "
                    "Build the store again"
                )
        self.plan = plan
        self.taps = frozenset(plan.fingerprint.taps)
        self.views, self.rows = plan.fingerprint.views, plan.rows
        self._units: list[list[dict[Tap, dict[str, Tensor]]]] = [[] for _ in range(self.views)]
        for unit in plan.units:
            self._units[unit.view].append(map_unit(folder, plan, unit))

    def read(self, index: Tensor, view: int) -> dict[Tap, Tensor]:
        """The rows (N, ...) of every tap, float32 on the CPU, of the samples ``index`` (N,) int64 in any order.

        Raises:
            LimbeckError: there is no such view or sample.
        """
        return {tap: decode(self.stored(tap, index, view), self.plan.shapes[tap]) for tap in self.plan.parts}

    def stored(self, tap: Tap, index: Tensor, view: int) -> dict[str, Tensor]:
        """The rows of one tap as `limbeck.cache.encoding.encode` returned them.

        Raises:
            LimbeckError: there is no such view or sample.
        """
        if not 0 <= view < self.views:
            raise LimbeckError(f"the store has no view {view}: allowed are 0 to {self.views - 1}")
        index = index.cpu()
        if len(index) and not (index.min() >= 0 and index.max() < self.rows):
            raise LimbeckError(
                f"the store has no samples {index.min()} to {index.max()}: allowed are 0 to {self.rows - 1}"
            )
        return {
            part.name: _rows([unit[tap][part.name] for unit in self._units[view]], index, self.plan.shard_rows)
            for part in self.plan.parts[tap]
        }


def _rows(shards: Sequence[Tensor], index: Tensor, shard_rows: int) -> Tensor:
    """Copies of the rows (N, ...) of tensors that follow one another."""
    if len(shards) == 1:
        return shards[0].index_select(0, index)
    rows = shards[0].new_empty(len(index), *shards[0].shape[1:])
    holder = index // shard_rows
    for shard in set(holder.tolist()):
        here = holder == shard
        rows[here] = shards[shard].index_select(0, index[here] - shard * shard_rows)
    return rows


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
