"""A finished store, opened to be read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.cache.encoding import decode
from limbeck.cache.fingerprint import Fingerprint, refuse_difference
from limbeck.cache.folder import BUILDING, MANIFEST, Piece, Plan, arrays_of, checksum_of, has_size, read_plan
from limbeck.core import LimbeckError, Tap


class Store:
    """A teacher's tensors for every sample and view, read from files that are mapped, not loaded.

    Opening reads all of it once, to see that no bit is other than as it was written: several GB a second where the
    files are in memory, else as fast as the disk is. Any number of processes may read a store at once, forked ones too.

    Args:
        folder: where it was built.
        expected: what it must have been built of.

    Attributes:
        taps: what can be read. views, rows: how many views there are, and samples in each.

    Raises:
        LimbeckError: there is no store, or it is not finished; a part of its fingerprint differs; a file is missing,
            truncated or damaged. Each has a message of its own that says what to do.
    """

    def __init__(self, folder: Path, expected: Fingerprint) -> None:
        plan, files = _finished(folder)
        refuse_difference(folder, plan.fingerprint, expected)
        pieces = [piece for unit in plan.units for piece in plan.pieces(*unit)]
        for piece in pieces:
            _refuse_size(folder, plan, piece)
        for piece in pieces:
            name = plan.name(piece)
            if checksum_of(folder, plan, piece) != files[name]:
                raise LimbeckError(
                    f"{folder / name} is damaged: a bit of it changed since it was written. "
                    "Build again, which makes this file anew"
                )
        self.plan = plan
        self.taps = frozenset(plan.fingerprint.taps)
        self.views, self.rows = plan.fingerprint.views, plan.rows
        self._arrays = {
            tap: [
                [arrays_of(folder, plan, Piece(tap, view, shard)) for shard in range(plan.shards)]
                for view in range(self.views)
            ]
            for tap in plan.parts
        }

    def read(self, index: Tensor, view: int) -> dict[Tap, Tensor]:
        """Every tap's rows (N, ...), float32 on the CPU, of the samples ``index`` (N,) int64, in any order.

        Raises:
            LimbeckError: there is no such view or sample.
        """
        places = self._places(index, view)
        return {tap: decode(self._stored(tap, places, view), self.plan.shapes[tap]) for tap in self._arrays}

    def stored(self, tap: Tap, index: Tensor, view: int) -> dict[str, Tensor]:
        """One tap's rows as `limbeck.cache.encoding.encode` gave them.

        Raises:
            LimbeckError: there is no such view or sample.
        """
        return self._stored(tap, self._places(index, view), view)

    def _places(self, index: Tensor, view: int) -> NDArray[numpy.int64]:
        if not 0 <= view < self.views:
            raise LimbeckError(f"there is no view {view} in the store: it has 0 to {self.views - 1}")
        places: NDArray[numpy.int64] = index.cpu().numpy()
        if len(places) and not (places.min() >= 0 and places.max() < self.rows):
            raise LimbeckError(
                f"the samples {places.min()} to {places.max()} are asked of a store that has 0 to {self.rows - 1}"
            )
        return places

    def _stored(self, tap: Tap, places: NDArray[numpy.int64], view: int) -> dict[str, Tensor]:
        shards = self._arrays[tap][view]
        stored = {}
        for part in self.plan.parts[tap]:
            rows = torch.from_numpy(_rows([shard[part.name] for shard in shards], places, self.plan.shard_rows))
            stored[part.name] = rows.view(part.dtype)  # what numpy has no dtype for is mapped as another of its size
        return stored


def _rows(shards: Sequence[NDArray[Any]], places: NDArray[numpy.int64], shard_rows: int) -> NDArray[Any]:
    """Rows of arrays that follow one another."""
    if len(shards) == 1:
        return shards[0].take(places, axis=0)
    rows = numpy.empty((len(places), *shards[0].shape[1:]), shards[0].dtype)
    holder = places // shard_rows
    for shard in numpy.unique(holder):
        here = holder == shard
        rows[here] = shards[shard].take(places[here] - shard * shard_rows, axis=0)
    return rows


def _finished(folder: Path) -> tuple[Plan, Mapping[str, str]]:
    """What the manifest says; LimbeckError where there is none."""
    found = read_plan(folder / MANIFEST)
    if found is not None:
        return found
    if (folder / BUILDING).is_file():
        raise LimbeckError(f"the store {folder} is not finished: build it again, which goes on where it stopped")
    raise LimbeckError(f"there is no store in {folder}: build it first")


def _refuse_size(folder: Path, plan: Plan, piece: Piece) -> None:
    path = folder / plan.name(piece)
    if not path.is_file():
        raise LimbeckError(f"{path} is missing: build again, which makes this file anew")
    if not has_size(folder, plan, piece):
        raise LimbeckError(
            f"{path} has {path.stat().st_size} of {plan.size(piece)} bytes: it was truncated or overwritten. "
            "Build again, which makes this file anew"
        )
