"""The files of a store: which there are, what is in each, and how they are written and checked.

A file holds the rows of one tap, one view and one range of samples, as safetensors. Its metadata has one entry,
``limbeck``: JSON with the digest of the store's fingerprint, the tap, the view, the rows, and the checksum of the
tensors. It is one entry because safetensors writes several in random order, and equal rows give equal files.
"""

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from xxhash import xxh3_128

from limbeck.cache.encoding import Part, parts_of
from limbeck.cache.fingerprint import Fingerprint
from limbeck.cache.manifest import BUILDING, FINISHED, manifest_text
from limbeck.core import LimbeckError, Tap
from limbeck.errors import DamagedStore
from limbeck.files.atomic import replacing

_LEFT_OVER = re.compile(
    r"(tap\d+-view\d+-shard\d+\.safetensors|manifest\.json|building\.json)\.\d+-[0-9a-f]{8}(\.tmp)?"
)

_CHECKSUM = re.compile(r'"xxh3_128": "([0-9a-f]{32})"}$')

HEADER = 2**16
"""The largest header of a file in bytes."""

MOST_NAMED = 20
"""The most damaged files that a message names."""

_AGAIN = "limbeck cache build RECIPE makes damaged and missing files again; in Python, delete them and start again"

_DELETE = f"Delete its {FINISHED} or {BUILDING}, and build the store again"


class Unit(NamedTuple):
    """A range of samples of one view. The teacher runs over it at once, which gives one file a tap."""

    view: int
    shard: int  # the number of the range
    start: int  # the first sample
    stop: int  # the sample after the last

    @property
    def rows(self) -> int:
        """The number of samples."""
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """The layout of a store: which files it has, and what is in each."""

    fingerprint: Fingerprint
    rows: int  # samples of a view
    shard_rows: int  # samples of a file; the last file of a view may have fewer
    shapes: Mapping[Tap, tuple[int, ...]]  # of one sample

    @classmethod
    def of(cls, folder: Path, manifest: Mapping[str, Any]) -> "Plan":
        """The plan of a store, from its description; see `limbeck.cache.manifest`.

        Raises:
            LimbeckError: a tap has another name than its place in the network, or a format that does not fit its shape.
        """
        fingerprint, shapes = Fingerprint.from_json(manifest["fingerprint"]), manifest["shapes"]
        taps = {str(tap): tap for tap in fingerprint.taps}
        try:
            if taps.keys() != shapes.keys():
                raise LimbeckError(f"its taps are named {', '.join(sorted(shapes))}, but are {', '.join(sorted(taps))}")
            found = {tap: tuple(shapes[name]) for name, tap in taps.items()}
            plan = cls(fingerprint, manifest["rows"], manifest["shard_rows"], found)
            _ = plan.parts  # checks the formats
        except LimbeckError as error:
            raise LimbeckError(f"the description of the store {folder} is damaged: {error}. {_DELETE}") from error
        return plan

    def manifest(self, files: Mapping[str, str]) -> dict[str, Any]:
        """The description of the store with the checksums of its files, or with none while it is being built."""
        shapes = {str(tap): list(self.shapes[tap]) for tap in self.parts}
        sizes = {"rows": self.rows, "shard_rows": self.shard_rows, "shapes": shapes}
        return {"fingerprint": self.fingerprint.as_json(), **sizes, "files": dict(sorted(files.items()))}

    @cached_property
    def units(self) -> list[Unit]:
        """All units, view by view."""
        starts = range(0, self.rows, self.shard_rows)
        return [
            Unit(view, shard, start, min(start + self.shard_rows, self.rows))
            for view in range(self.fingerprint.views)
            for shard, start in enumerate(starts)
        ]

    @cached_property
    def parts(self) -> Mapping[Tap, tuple[Part, ...]]:
        """The tensors of every tap, in the order of the files' names."""
        taps = self.fingerprint.taps
        return {tap: parts_of(taps[tap], self.shapes[tap]) for tap in sorted(taps, key=str)}

    def files(self, unit: Unit) -> dict[Tap, str]:
        """The names of a unit's files."""
        place = f"view{unit.view:03d}-shard{unit.shard:04d}"
        return {tap: f"tap{number}-{place}.safetensors" for number, tap in enumerate(self.parts)}

    @property
    def row_bytes(self) -> int:
        """Bytes of the numbers of a sample; each file has a few hundred bytes more."""
        return sum(part.row_bytes for parts in self.parts.values() for part in parts)

    def metadata(self, unit: Unit, tap: Tap, checksum: str) -> dict[str, str]:
        """The metadata of a file."""
        notes = {"fingerprint": self._digest, "tap": str(tap), "view": unit.view, "rows": [unit.start, unit.stop]}
        return {"limbeck": json.dumps({**notes, "xxh3_128": checksum})}

    @cached_property
    def _digest(self) -> str:
        return self.fingerprint.digest


def write_unit(folder: Path, plan: Plan, unit: Unit, tensors: Mapping[Tap, Mapping[str, Tensor]]) -> dict[str, str]:
    """Write the files of a unit, each whole or not at all; returns the checksum of each."""
    checksums = {}
    for tap, name in plan.files(unit).items():
        checksums[name] = _checksum(tensors[tap])
        metadata = plan.metadata(unit, tap, checksums[name])
        place(folder / name, partial(save_file, dict(tensors[tap]), metadata=metadata))
    return checksums


def is_there(folder: Path, plan: Plan, unit: Unit) -> bool:
    """Whether all files of a unit exist."""
    return all((folder / name).is_file() for name in plan.files(unit).values())


def check_size(folder: Path, plan: Plan, tap: Tap, unit: Unit) -> None:
    """Compare the size of a file with the plan.

    Raises:
        DamagedStore: the file is missing, or has another size.
    """
    path = folder / plan.files(unit)[tap]
    with _explained(path):
        _check_size(path, plan, unit, tap)


def check_files(folder: Path, plan: Plan, check: Callable[[Tap, Unit], object]) -> None:
    """Call ``check`` for every file, which raises `DamagedStore` if the file is damaged.

    Raises:
        DamagedStore: it names up to `MOST_NAMED` of the files, and says how many there are.
    """
    errors = dict[str, DamagedStore]()
    for unit in plan.units:
        for tap, name in plan.files(unit).items():
            try:
                check(tap, unit)
            except DamagedStore as error:
                errors[name] = error
    if len(errors) == 1:
        raise next(iter(errors.values()))
    if errors:
        names = ", ".join([*islice(errors, MOST_NAMED), *["..."] * (len(errors) > MOST_NAMED)])
        every = f"{len(errors):,} of the {len(plan.units) * len(plan.parts):,} files of the store {folder}"
        raise DamagedStore(f"{every} are damaged or missing: {names}. {_AGAIN}")


def recorded(folder: Path, plan: Plan, unit: Unit) -> dict[str, str]:
    """The checksums that the headers of the files of a unit record, by name. The numbers are not read.

    Raises:
        DamagedStore: a file is missing or truncated, its header is damaged, or it is another file of this or of another
            store.
    """
    return {name: map_file(folder / name, plan, unit, tap)[1] for tap, name in plan.files(unit).items()}


def check_unit(folder: Path, plan: Plan, unit: Unit) -> dict[str, str]:
    """Read the files of a unit, and compare them with the checksums that they record, which are returned by name.

    Raises:
        DamagedStore: see `recorded`; or the numbers of a file are damaged.
    """
    checksums = {}
    for tap, name in plan.files(unit).items():
        tensors, checksums[name] = map_file(folder / name, plan, unit, tap)
        check_numbers(folder / name, tensors, checksums[name])
    return checksums


def map_file(path: Path, plan: Plan, unit: Unit, tap: Tap) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file, and the checksum that it records. Nothing may be written to the tensors.

    The tensors are mapped: their numbers are read from the disk when they are used, and are not compared with the
    checksum here.

    Raises:
        DamagedStore: see `recorded`.
    """
    with _explained(path):
        tensors, metadata = _opened(path, plan, unit, tap)
    expected = {part.name: (part.dtype, (unit.rows, *part.shape)) for part in plan.parts[tap]}
    alike = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == expected
    found = _CHECKSUM.search((metadata or {}).get("limbeck", ""))
    checksum = found.group(1) if found else ""
    if not alike or metadata != plan.metadata(unit, tap, checksum):
        raise DamagedStore(f"{path} is damaged, or is another file of this or another store. {_AGAIN}")
    return tensors, checksum


def check_numbers(path: Path, tensors: Mapping[str, Tensor], checksum: str) -> None:
    """Raise DamagedStore unless the tensors of a file have this checksum."""
    if _checksum(tensors) != checksum:
        raise DamagedStore(f"{path} is damaged: its numbers do not have the checksum that was recorded. {_AGAIN}")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the errors of opening a file into a `DamagedStore`."""
    if not path.is_file():
        raise DamagedStore(f"{path} is missing. {_AGAIN}")
    try:
        yield
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise DamagedStore(f"{path} is truncated or damaged: {error}. {_AGAIN}") from error


def place(path: Path, save: Callable[[Path], None]) -> None:
    """Let ``save`` write a file, whole or not at all; several processes may write the same file at once."""
    try:
        with replacing(path, own=f".{os.getpid()}-{secrets.token_hex(4)}") as temporary:
            save(temporary)
    except FileNotFoundError:
        if not (path.parent / FINISHED).is_file():  # else another process finished the store and removed the file
            raise


def write_manifest(path: Path, values: Mapping[str, Any]) -> None:
    """Write a description, whole or not at all."""

    def save(temporary: Path) -> None:
        temporary.write_text(manifest_text(values), encoding="utf-8")

    place(path, save)


def clear_up(folder: Path) -> None:
    """Remove from a finished store ``building.json`` and what writers that were killed left behind."""
    (folder / BUILDING).unlink(missing_ok=True)
    for path in folder.iterdir():
        if _LEFT_OVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _opened(path: Path, plan: Plan, unit: Unit, tap: Tap) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """The tensors and the metadata of a file.

    Raises:
        ValueError: the file has another size, its header is too large, or the tensors have other names. Opening such a
            file might take much time and memory.
    """
    _check_size(path, plan, unit, tap)
    with safe_open(path, framework="pt") as file:
        names, expected = set(file.keys()), {part.name for part in plan.parts[tap]}
        if names != expected:
            raise ValueError(f"it has {len(names)} tensors, needed are {' and '.join(sorted(expected))}")
        return {name: file.get_tensor(name) for name in expected}, file.metadata()


def _check_size(path: Path, plan: Plan, unit: Unit, tap: Tap) -> None:
    with path.open("rb") as opened:
        size, header = os.fstat(opened.fileno()).st_size, int.from_bytes(opened.read(8), "little")
    needed = 8 + header + unit.rows * sum(part.row_bytes for part in plan.parts[tap])
    if header > HEADER or size != needed:
        raise ValueError(
            f"it has {size:,} bytes and a header of {header:,}, needed are {needed:,} and at most {HEADER:,}"
        )


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """32 hex digits (xxh3_128) of the tensors' bytes."""
    found = xxh3_128()
    for name in sorted(tensors):
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
