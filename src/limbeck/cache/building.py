"""Run a teacher once over every view of the data, and write its outputs to a store."""

import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from limbeck.cache.encoding import encode
from limbeck.cache.fingerprint import Fingerprint, refuse_difference
from limbeck.cache.folder import Plan, Unit, check_unit, clear_up, is_there, recorded, write_manifest, write_unit
from limbeck.cache.manifest import BUILDING, FINISHED, MOST_FILES, begun, file_count, read_manifest
from limbeck.core import Batch, LimbeckError, Reader, Tap
from limbeck.data import Batches

SHARD_BYTES = 64 * 2**20
"""The most bytes of the files of one range of samples, which a writer holds in memory and loses if it is killed."""

SHARD_ROWS = 2**16
"""The most samples of a range."""

SHARDS = 16
"""A view has at least so many ranges, for as many writers, as far as a range then has `LEAST_ROWS` samples."""

LEAST_ROWS = 2**12
"""See `SHARDS`; a file of few samples takes longer to open than to read."""

LEFT_FREE = 64 * 2**20
"""Bytes of the disk that a build leaves free."""


@dataclass(frozen=True)
class Estimate:
    """What a store, or the part of it that one writer builds, will take."""

    bytes: int  # of the numbers of the part; the files have a few hundred more each
    whole: int  # of the numbers of the store
    seconds: float  # to run the teacher for the part, in one process
    free: int  # bytes of the folder's disk


@dataclass(frozen=True)
class Progress:
    """How far a build is, counted over the writer's own part."""

    done: int  # rows that are on disk or that the teacher has run on
    total: int  # rows
    bytes: int  # of the numbers on disk


def estimate(
    folder: Path,
    reader: Reader,
    source: Batches,
    *,
    fingerprint: Fingerprint,
    rows: int,
    part: tuple[int, int] = (0, 1),
    batches: int = 3,
) -> Estimate:
    """Estimate size and time of a store, or of a writer's part, from its first batches. Nothing is written.

    Args:
        folder: where the store would be built; it need not exist.
        reader: see `build`.
        source: see `build`.
        fingerprint: see `build`.
        rows: see `build`.
        part: see `build`.
        batches: how many are timed.

    Raises:
        LimbeckError: `build` would refuse the reader, the source or the formats; there is no such part.
    """
    plan = _plan(reader, source, fingerprint, rows, SHARD_BYTES)  # this runs the first batch, to warm up
    own = _rows(_own(plan, part))
    timed, began = 0, time.perf_counter()
    for batch in islice(source.view(0, stop=rows), batches):
        for tap, tensor in read_taps(reader, batch, fingerprint).items():
            encode(tap, tensor, fingerprint.taps[tap], batch.index)
        timed += len(batch.index)
    seconds = (time.perf_counter() - began) / timed * own
    return Estimate(own * plan.row_bytes, rows * fingerprint.views * plan.row_bytes, seconds, free_bytes(folder))


def build(
    folder: Path,
    reader: Reader,
    source: Batches,
    *,
    fingerprint: Fingerprint,
    rows: int,
    part: tuple[int, int] = (0, 1),
    shard_bytes: int = SHARD_BYTES,
    check: bool = True,
) -> Generator[Progress, None, set[str]]:
    """Build a store, or finish or repair one.

    The call checks its arguments and runs at most one batch; iterating the result does the work, batch by batch. Whole
    files of this fingerprint are kept, and all others are made. Whether a file of the part is whole is seen from its
    checksum, for which all of it is read, or, without ``check``, from its size and header. Of other parts, only sizes
    and headers are read.

    The unit of work is one range of samples of one view. Parts are sets of units, because a store without augmentation
    has one view, and several writers must be able to share it. A build that was stopped continues with the first unit
    that has no whole files: it loses at most one unit, `SHARD_BYTES`. Batches start at the first sample of a unit, so
    that on one machine the files are the same, byte for byte, however often a build was stopped and whoever made them.

    Several processes may build one store at once, each its own part. If two make the same part, the store is the same.

    Args:
        folder: of this store alone; it is made if it does not exist.
        reader: the teacher's tensors for a batch, at least the fingerprint's taps, with its networks in eval mode.
        source: the batches of a view.
        fingerprint: what the rows depend on.
        rows: samples of a view.
        part: (number of this writer from 0, number of writers). The writer that makes the last file finishes the store.
        shard_bytes: the most bytes of the files of one range of samples, which holds at least one sample. A store that
            was begun keeps its own.
        check: whether the numbers of files that are there are compared with their checksums.

    Returns:
        The names of the files that were compared with their checksums or written, so that
        `limbeck.cache.reading.Store` need not compare them again.

    Raises:
        LimbeckError: the folder holds another store; the disk has not enough space; there is no such part. While
            iterating: the reader or the source does not give what is stored; a tensor does not fit its format.
    """
    manifest = begun(folder)
    plan = _plan(reader, source, fingerprint, rows, shard_bytes) if manifest is None else Plan.of(folder, manifest)
    refuse_difference(folder, plan.fingerprint, fingerprint)
    if plan.rows != rows:
        raise LimbeckError(f"the store {folder} has {plan.rows} samples in a view, needed are {rows}")
    own = _own(plan, part)
    missing = [unit for unit in own if not is_there(folder, plan, unit)]
    needed, free = _rows(missing) * plan.row_bytes, free_bytes(folder)
    if missing and needed + LEFT_FREE > free:
        raise LimbeckError(
            f"the store needs about {needed:,} bytes, and {LEFT_FREE:,} must stay free, but the disk of {folder} has "
            f"{free:,}: free some, or store fewer views, fewer taps, or the top_k logits"
        )
    return _building(folder, reader, source, plan, own, check)


def _own(plan: Plan, part: tuple[int, int]) -> Sequence[Unit]:
    """The units of a writer's part."""
    if not 0 <= part[0] < part[1]:
        raise LimbeckError(f"there is no part {part[0]} of {part[1]}: allowed are 0 to {part[1] - 1}")
    return plan.units[part[0] :: part[1]]


def _plan(reader: Reader, source: Batches, fingerprint: Fingerprint, rows: int, shard_bytes: int) -> Plan:
    """The layout of a new store, from its first batch."""
    if rows < 1:
        raise LimbeckError(f"a store of {rows} samples: allowed are 1 and more")
    tensors = read_taps(reader, next(iter(source.view(0, stop=rows))), fingerprint)
    plan = Plan(fingerprint, rows, rows, {tap: tuple(tensor.shape[1:]) for tap, tensor in tensors.items()})
    share = max(LEAST_ROWS, -(-rows // SHARDS))
    plan = replace(plan, shard_rows=min(rows, share, SHARD_ROWS, max(1, shard_bytes // plan.row_bytes)))
    files = file_count(plan.manifest({}))
    if files > MOST_FILES:
        raise LimbeckError(
            f"the store would have {files:,} files, allowed are {MOST_FILES:,}: store fewer views or taps, or "
            "the top_k logits, or compute the outputs in every step (cache: false)"
        )
    return plan


def _building(
    folder: Path, reader: Reader, source: Batches, plan: Plan, own: Sequence[Unit], check: bool
) -> Generator[Progress, None, set[str]]:
    checksums: dict[str, str] = {}
    look = check_unit if check else recorded
    finished = None if (folder / BUILDING).is_file() else read_manifest(folder / FINISHED)
    known = {} if finished is None else finished["files"]
    missing = [unit for unit in own if not _whole(look, folder, plan, unit, checksums, known)]
    read = set(checksums) if check else set()
    total = _rows(own)
    done = written = total - _rows(missing)
    if missing:  # the manifest of a damaged store stays until the end: until then readers are told what is damaged
        write_manifest(folder / BUILDING, plan.manifest({}))
    for unit in missing:
        tensors = {
            tap: {part.name: torch.empty(unit.rows, *part.shape, dtype=part.dtype) for part in parts}
            for tap, parts in plan.parts.items()
        }
        for start, stop, chunk in _chunks(reader, source, plan, unit):
            for tap, parts in chunk.items():
                for name, rows in parts.items():
                    tensors[tap][name][start:stop] = rows
            done += stop - start
            if done < total:  # the last progress is yielded when the store is finished
                yield Progress(done, total, written * plan.row_bytes)
        new = write_unit(folder, plan, unit, tensors)
        checksums |= new
        read |= new.keys()
        written += unit.rows
    others = set(plan.units) - set(own)  # they are read only when all of them are there
    if all(is_there(folder, plan, unit) for unit in others) and all(
        _whole(recorded, folder, plan, unit, checksums, known) for unit in others
    ):
        _finish(folder, plan, checksums)
    yield Progress(done, total, written * plan.row_bytes)
    return read


def _whole(
    look: Callable[[Path, Plan, Unit], Mapping[str, str]],
    folder: Path,
    plan: Plan,
    unit: Unit,
    checksums: dict[str, str],
    known: Mapping[str, str],
) -> bool:
    """Whether ``look`` finds all files of a unit whole, with the checksums of those that are ``known``.

    Adds the checksums that it returns.
    """
    try:
        found = look(folder, plan, unit)
    except LimbeckError:  # the files are made again
        return False
    if any(known.get(name, checksum) != checksum for name, checksum in found.items()):
        return False
    checksums |= found
    return True


def _finish(folder: Path, plan: Plan, checksums: dict[str, str]) -> None:
    manifest = plan.manifest(checksums)
    if read_manifest(folder / FINISHED) != manifest:  # a finished store may be in a read-only folder
        write_manifest(folder / FINISHED, manifest)
    clear_up(folder)


def _chunks(
    reader: Reader, source: Batches, plan: Plan, unit: Unit
) -> Iterator[tuple[int, int, dict[Tap, dict[str, Tensor]]]]:
    """The rows of each batch of a unit, in order: from where in the unit, to where, and what is stored of them."""
    view, _, start, stop = unit
    for batch in source.view(view, start=start, stop=stop):
        after = start + len(batch.index)
        if batch.view != view or after > stop or not torch.equal(batch.index.cpu(), torch.arange(start, after)):
            raise LimbeckError(
                f"the source does not give the samples from {start} of view {view} in order, each once, as that view"
            )
        tensors = read_taps(reader, batch, plan.fingerprint)
        for tap, tensor in tensors.items():
            if tuple(tensor.shape[1:]) != plan.shapes[tap]:
                raise LimbeckError(
                    f"{tap} gives {tuple(tensor.shape[1:])} for sample {start} of view {view}, "
                    f"but {plan.shapes[tap]} for the first: a store needs one shape"
                )
        forms = plan.fingerprint.taps
        found = {tap: encode(tap, tensor, forms[tap], batch.index) for tap, tensor in tensors.items()}
        yield start - unit.start, after - unit.start, found
        start = after
    if start < stop:
        raise LimbeckError(f"view {view} ends before sample {start}: needed are {plan.rows} samples")


def read_taps(reader: Reader, batch: Batch, fingerprint: Fingerprint) -> dict[Tap, Tensor]:
    """The fingerprint's taps for a batch, as the reader gives them.

    Raises:
        LimbeckError: the reader does not give a tap, or does not give one row a sample.
    """
    given = reader(batch)
    for tap in fingerprint.taps:
        if tap not in given:
            raise LimbeckError(f"the teacher does not give {tap}, only {', '.join(map(str, given))}")
        if given[tap].shape[:1] != batch.index.shape:
            count = len(batch.index)
            raise LimbeckError(f"{tap} gives {tuple(given[tap].shape)} for {count} samples: not one row each")
    return {tap: given[tap] for tap in fingerprint.taps}


def _rows(units: Iterable[Unit]) -> int:
    return sum(unit.rows for unit in units)


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk of a folder, which need not exist."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free
