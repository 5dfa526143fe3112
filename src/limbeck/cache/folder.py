"""The files of a store: which there are, what is in each, and how they are written and checked.

A file holds the rows of one tap, one view and one range of samples, as safetensors. Its metadata has one entry,
``limbeck``: JSON with the digest of the store's fingerprint, the tap, the view, the rows, and the checksum of the
tensors. It is one entry because safetensors writes several in random order, and equal rows give equal files.
"""

import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
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
from limbeck.files.atomic import replacing

_LEFT_OVER = re.compile(
    r"(tap\d+-view\d+-shard\d+\.safetensors|manifest\.json|building\.json)\.\d+-[0-9a-f]{8}(\.tmp)?"
)

_AGAIN = "Build the store again: only this file is made anew"


class Piece(NamedTuple):
    """What one file holds."""

    tap: Tap
    view: int
    shard: int


@dataclass(frozen=True)
class Plan:
    """The layout of a store: which files it has, and what is in each."""

    fingerprint: Fingerprint
    rows: int  # samples of a view
    shard_rows: int  # samples of a file; the last file of a view may have fewer
    shapes: Mapping[Tap, tuple[int, ...]]  # of one sample

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "Plan":
        """The plan that a description holds; see `limbeck.cache.manifest`."""
        fingerprint = Fingerprint.from_json(manifest["fingerprint"])
        shapes = {tap: tuple(manifest["shapes"][str(tap)]) for tap in fingerprint.taps}
        return cls(fingerprint, manifest["rows"], manifest["shard_rows"], shapes)

    def manifest(self, files: Mapping[str, str]) -> dict[str, Any]:
        """The description of the store with the checksums of its files, or with none while it is being built."""
        shapes = {str(tap): list(self.shapes[tap]) for tap in self.parts}
        sizes = {"rows": self.rows, "shard_rows": self.shard_rows, "shapes": shapes}
        return {"fingerprint": self.fingerprint.as_json(), **sizes, "files": dict(files)}

    @property
    def shards(self) -> int:
        """Ranges of samples in a view."""
        return -(-self.rows // self.shard_rows)

    @property
    def units(self) -> list[tuple[int, int]]:
        """Every (view, shard): the teacher runs once over its samples, which gives one file a tap."""
        return [(view, shard) for view in range(self.fingerprint.views) for shard in range(self.shards)]

    @property
    def pieces(self) -> list[Piece]:
        """What all the files hold."""
        return [piece for unit in self.units for piece in self.pieces_of(*unit)]

    def pieces_of(self, view: int, shard: int) -> list[Piece]:
        """What the files of a unit hold."""
        return [Piece(tap, view, shard) for tap in self.parts]

    def span(self, shard: int) -> tuple[int, int]:
        """The samples of a shard: the first, and the one after the last."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows)

    @cached_property
    def parts(self) -> Mapping[Tap, tuple[Part, ...]]:
        """The tensors of every tap, in the order of the files' names."""
        taps = self.fingerprint.taps
        return {tap: parts_of(taps[tap], self.shapes[tap]) for tap in sorted(taps, key=str)}

    def name(self, piece: Piece) -> str:
        """The file of a piece."""
        tap = list(self.parts).index(piece.tap)
        return f"tap{tap}-view{piece.view:03d}-shard{piece.shard:04d}.safetensors"

    def bytes(self, piece: Piece) -> int:
        """Bytes of the numbers of a piece; its file has a few hundred more."""
        start, stop = self.span(piece.shard)
        return (stop - start) * sum(part.row_bytes for part in self.parts[piece.tap])

    def metadata(self, piece: Piece, checksum: str) -> dict[str, str]:
        """The metadata of a piece's file."""
        start, stop = self.span(piece.shard)
        notes = {"tap": str(piece.tap), "view": piece.view, "rows": [start, stop]}
        return {"limbeck": json.dumps({"fingerprint": self._digest, **notes, "xxh3_128": checksum})}

    @cached_property
    def _digest(self) -> str:
        return self.fingerprint.digest


def write_file(folder: Path, plan: Plan, piece: Piece, tensors: Mapping[str, Tensor]) -> str:
    """Write one file, whole or not at all; returns the checksum of its tensors."""
    checksum = _checksum(tensors)
    metadata = plan.metadata(piece, checksum)
    place(folder / plan.name(piece), lambda path: save_file(dict(tensors), path, metadata))
    return checksum


def there(folder: Path, plan: Plan, piece: Piece) -> bool:
    """Whether a piece's file exists and is long enough for its numbers."""
    path = folder / plan.name(piece)
    return path.is_file() and path.stat().st_size > plan.bytes(piece)


def check_file(folder: Path, plan: Plan, piece: Piece) -> str:
    """The checksum of a piece's tensors, after all of its file was read and compared with its metadata.

    Raises:
        LimbeckError: the file is missing, truncated or damaged, or holds another piece or one of another store.
    """
    path = folder / plan.name(piece)
    if not path.is_file():
        raise LimbeckError(f"{path} is missing. {_AGAIN}")
    if not there(folder, plan, piece):
        size = path.stat().st_size
        raise LimbeckError(
            f"{path} is truncated or overwritten: it has {size:,} bytes, and its numbers alone have "
            f"{plan.bytes(piece):,}. {_AGAIN}"
        )
    try:
        tensors, metadata = _opened(path)
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise LimbeckError(f"{path} is truncated or damaged: {error}. {_AGAIN}") from error
    start, stop = plan.span(piece.shard)
    expected = {part.name: (part.dtype, (stop - start, *part.shape)) for part in plan.parts[piece.tap]}
    checksum = _checksum(tensors)
    alike = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == expected
    if not alike or metadata != plan.metadata(piece, checksum):
        raise LimbeckError(f"{path} is damaged, or is another file of this or another store. {_AGAIN}")
    return checksum


def map_file(folder: Path, plan: Plan, piece: Piece) -> dict[str, Tensor]:
    """The tensors of a piece, mapped: the numbers are read from disk when they are used. Do not write to them."""
    return _opened(folder / plan.name(piece))[0]


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


def _opened(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 (no mapping)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """32 hex digits (xxh3_128) of the tensors' bytes."""
    found = xxh3_128()
    for name in sorted(tensors):
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
