"""Run a teacher once over every view of the data, and write down what it gives."""

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from limbeck.cache.encoding import encode, parts_of
from limbeck.cache.fingerprint import Fingerprint, refuse_difference
from limbeck.cache.folder import (
    BUILDING,
    MANIFEST,
    Plan,
    begun,
    checksum_of,
    clear_up,
    has_size,
    read_plan,
    write_piece,
    write_plan,
)
from limbeck.core import Batch, LimbeckError, Reader, Tap

SHARD_BYTES = 64 * 2**20  # what a writer holds in memory, and at most loses when it is killed
LEFT_FREE = 64 * 2**20  # bytes that no build takes of a disk


class Views(Protocol):
    """A data set, view by view."""

    def view(self, number: int, *, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Every sample of [start, stop) once, in order, augmented as view ``number``; batches begin at ``start``."""
        ...


@dataclass(frozen=True)
class Estimate:
    """What a store will take."""

    bytes: int  # of all files
    seconds: float  # to build it from nothing, on one process; without the time to write, which is small beside
    free: int  # bytes that the disk of its folder has


@dataclass(frozen=True)
class Progress:
    """How far a build has come, as counted over the writer's own part."""

    done: int  # rows, those included that were there already
    of: int  # rows of a view times views
    bytes: int  # of the shards that are on disk


def estimate(
    folder: Path, reader: Reader, source: Views, *, fingerprint: Fingerprint, rows: int, batches: int = 3
) -> Estimate:
    """Size and time of a store, from its first batches; nothing is written.

    Args:
        folder: where it would be built; need not be there.
        reader: as in `build`.
        source: as in `build`.
        fingerprint: as in `build`.
        rows: as in `build`.
        batches: how many are timed.

    Raises:
        LimbeckError: as `build` raises of the reader, the source and the formats.
    """
    plan = _plan(reader, source, fingerprint, rows, SHARD_BYTES)  # this runs the first batch, to warm up
    timed, began = 0, time.perf_counter()
    for batch in islice(source.view(0, stop=rows), batches):
        for tap, tensor in read_taps(reader, batch, fingerprint).items():
            encode(tap, tensor, fingerprint.taps[tap], batch.index)
        timed += len(batch.index)
    a_row = (time.perf_counter() - began) / timed
    return Estimate(_bytes(plan, plan.units), a_row * rows * fingerprint.views, free_bytes(folder))


def build(
    folder: Path,
    reader: Reader,
    source: Views,
    *,
    fingerprint: Fingerprint,
    rows: int,
    part: tuple[int, int] = (0, 1),
    shard_bytes: int = SHARD_BYTES,
) -> Iterator[Progress]:
    """Build a store, or go on with one, or mend one.

    The call checks and refuses, after one batch at most; the work is done batch by batch while the result is iterated.
    Shards that are there, whole and of this fingerprint, are kept; all others are made. Batches begin anew with every
    shard, so that whatever stopped a build, the finished files are the same, byte for byte, on one machine. Several
    processes may build one store at once: each its own part, or one the other's too, which costs no more than time.

    Args:
        folder: of this store alone; made where it is not there.
        reader: the teacher's tensors for a batch, at least the fingerprint's taps, with its networks in eval mode.
        source: the batches of a view.
        fingerprint: what the rows depend on.
        rows: samples in a view.
        part: (number of this writer from 0, number of writers). The one that makes the last shard finishes the store.
        shard_bytes: the most that the files of one range of samples take together, unless it is one sample; of a
            store that was begun, its own holds.

    Raises:
        LimbeckError: the folder holds another store; the disk has too little free; there is no such part. And while
            iterating: the reader or the source does not give what is stored; a tensor cannot be stored as its format
            is.
    """
    if not 0 <= part[0] < part[1]:
        raise LimbeckError(f"part {part[0]} of {part[1]}: allowed are 0 to the number of writers less 1")
    plan = begun(folder)
    if plan is None:
        plan = _plan(reader, source, fingerprint, rows, shard_bytes)
    refuse_difference(folder, plan.fingerprint, fingerprint)
    if plan.rows != rows:
        raise LimbeckError(f"the store {folder} has {plan.rows} samples in a view, needed are {rows}")
    own = plan.units[part[0] :: part[1]]
    missing = [unit for unit in own if not all(has_size(folder, plan, piece) for piece in plan.pieces(*unit))]
    needed, free = _bytes(plan, missing), free_bytes(folder)
    if missing and needed + LEFT_FREE > free:
        raise LimbeckError(
            f"the store needs {needed:,} bytes, and {LEFT_FREE:,} are to stay free, but the disk of {folder} has "
            f"{free:,}: free some, or store fewer views, fewer taps, or the top_k logits"
        )
    return _building(folder, reader, source, plan, own)


def _plan(reader: Reader, source: Views, fingerprint: Fingerprint, rows: int, shard_bytes: int) -> Plan:
    """How a new store is laid out, from its first batch."""
    if rows < 1:
        raise LimbeckError(f"a store of {rows} samples: allowed are 1 and more")
    tensors = read_taps(reader, next(iter(source.view(0, stop=rows))), fingerprint)
    shapes = {tap: tuple(tensor.shape[1:]) for tap, tensor in tensors.items()}
    parts = [part for tap, form in fingerprint.taps.items() for part in parts_of(form, shapes[tap])]
    shard_rows = max(1, shard_bytes // sum(part.row_bytes for part in parts))
    return Plan(fingerprint, rows, min(rows, shard_rows), shapes)


def _building(
    folder: Path, reader: Reader, source: Views, plan: Plan, own: Sequence[tuple[int, int]]
) -> Iterator[Progress]:
    of = sum(_rows(plan, unit) for unit in own)
    finished = read_plan(folder / MANIFEST)
    if finished is not None and finished[1] == _checksums(folder, plan):
        clear_up(folder)
        yield Progress(of, of, _bytes(plan, own))
        return
    # The manifest of a damaged store stays, and is written anew at the end: until then readers see what is damaged.
    write_plan(folder / BUILDING, plan, {})
    done = written = 0
    for unit in own:
        if not all(checksum_of(folder, plan, piece) for piece in plan.pieces(*unit)):
            for rows in _unit(folder, reader, source, plan, unit):
                yield Progress(done + rows, of, written)
        done, written = done + _rows(plan, unit), written + _bytes(plan, [unit])
        if done < of:  # the last is told when all is finished
            yield Progress(done, of, written)
    files = _checksums(folder, plan)
    if files is not None:  # else another writer's part is not done yet
        write_plan(folder / MANIFEST, plan, files)
        clear_up(folder)
    yield Progress(done, of, written)


def _unit(folder: Path, reader: Reader, source: Views, plan: Plan, unit: tuple[int, int]) -> Iterator[int]:
    """Make the files of one view of one range of samples, yielding how many of its rows are done before the last."""
    view, shard = unit
    start, stop = plan.span(shard)
    chunks: dict[Tap, list[dict[str, Tensor]]] = {tap: [] for tap in plan.parts}
    at = start
    for batch in source.view(view, start=start, stop=stop):
        after = at + len(batch.index)
        if batch.view != view or after > stop or not torch.equal(batch.index.cpu(), torch.arange(at, after)):
            raise LimbeckError(f"the samples from {at} of view {view} are not given in order, each once, as that view")
        for tap, tensor in read_taps(reader, batch, plan.fingerprint).items():
            if tuple(tensor.shape[1:]) != plan.shapes[tap]:
                raise LimbeckError(
                    f"{tap} gives {tuple(tensor.shape[1:])} for sample {at} of view {view}, "
                    f"but {plan.shapes[tap]} for the first: a store needs one shape"
                )
            chunks[tap].append(encode(tap, tensor, plan.fingerprint.taps[tap], batch.index))
        at = after
        if at < stop:
            yield at - start
    if at < stop:
        raise LimbeckError(f"view {view} ends before sample {at}: needed are {plan.rows} samples")
    for piece in plan.pieces(view, shard):
        parts = plan.parts[piece.tap]
        arrays = {part.name: torch.cat([chunk[part.name] for chunk in chunks[piece.tap]]) for part in parts}
        write_piece(folder, plan, piece, arrays)


def read_taps(reader: Reader, batch: Batch, fingerprint: Fingerprint) -> dict[Tap, Tensor]:
    """The fingerprint's taps for a batch, as the reader gives them.

    Raises:
        LimbeckError: one is not given, or has not one row a sample.
    """
    given = reader(batch)
    for tap in fingerprint.taps:
        if tap not in given:
            raise LimbeckError(f"the teacher does not give {tap}, only {', '.join(map(str, given))}")
        if given[tap].shape[:1] != batch.index.shape:
            count = len(batch.index)
            raise LimbeckError(f"{tap} gives {tuple(given[tap].shape)} for {count} samples: not one row each")
    return {tap: given[tap] for tap in fingerprint.taps}


def _checksums(folder: Path, plan: Plan) -> dict[str, str] | None:
    """The hash of every file by its name; None where one is not whole."""
    files = {}
    for piece in (piece for unit in plan.units for piece in plan.pieces(*unit)):
        checksum = checksum_of(folder, plan, piece)
        if checksum is None:
            return None
        files[plan.name(piece)] = checksum
    return files


def _rows(plan: Plan, unit: tuple[int, int]) -> int:
    start, stop = plan.span(unit[1])
    return stop - start


def _bytes(plan: Plan, units: Iterable[tuple[int, int]]) -> int:
    return sum(plan.size(piece) for unit in units for piece in plan.pieces(*unit))


def free_bytes(folder: Path) -> int:
    """Bytes that the disk has which the folder is on, or would be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
