"""A store's folder: which files there are, what is in each, and how they are written whole or not at all.

``tap0-view000-shard0000.safetensors`` holds the rows of one tap, one view and one range of samples. ``building.json``
is there while a store is being built, and ``manifest.json``, written last, when it is whole. Both hold the fingerprint.
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

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from xxhash import xxh3_128, xxh3_128_hexdigest

from limbeck.cache.encoding import Part, parts_of
from limbeck.cache.fingerprint import SCHEMA, Fingerprint, digest_of
from limbeck.core import LimbeckError, Tap
from limbeck.files.atomic import read, replacing

MANIFEST = "manifest.json"
BUILDING = "building.json"
PLAN_BYTES = 64 * 2**20  # that either may have
MOST_PIECES = 10**6  # files of a store

# The names of safetensors; and what numpy, which has no bfloat16, maps the bytes as.
_DTYPES = {
    torch.float32: ("F32", "<f4"),
    torch.float16: ("F16", "<f2"),
    torch.bfloat16: ("BF16", "<i2"),
    torch.int16: ("I16", "<i2"),
    torch.int32: ("I32", "<i4"),
}
_LEFT_OVER = re.compile(
    r"(tap\d+-view\d+-shard\d+\.safetensors|manifest\.json|building\.json)\.\d+-[0-9a-f]{8}(\.tmp)?"
)


class Piece(NamedTuple):
    """What one file holds."""

    tap: Tap
    view: int
    shard: int


@dataclass(frozen=True)
class Plan:
    """All that the files' names, sizes and heads follow from."""

    fingerprint: Fingerprint
    rows: int  # of a view
    shard_rows: int  # of every shard but the last
    shapes: Mapping[Tap, tuple[int, ...]]  # of one sample

    @property
    def shards(self) -> int:
        """Of a view."""
        return -(-self.rows // self.shard_rows)

    @property
    def units(self) -> list[tuple[int, int]]:
        """Every (view, shard): what one run of the teacher gives, a piece a tap."""
        return [(view, shard) for view in range(self.fingerprint.views) for shard in range(self.shards)]

    def pieces(self, view: int, shard: int) -> list[Piece]:
        """The pieces of a unit."""
        return [Piece(tap, view, shard) for tap in self.parts]

    def span(self, shard: int) -> tuple[int, int]:
        """The samples of a shard: the first, and the one after the last."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows)

    @cached_property
    def parts(self) -> Mapping[Tap, tuple[Part, ...]]:
        """The arrays of every tap, in the order of the files' names."""
        taps = self.fingerprint.taps
        return {tap: parts_of(taps[tap], self.shapes[tap]) for tap in sorted(taps, key=str)}

    @cached_property
    def _digest(self) -> str:
        return self.fingerprint.digest

    def name(self, piece: Piece) -> str:
        """The file of a piece."""
        position = list(self.parts).index(piece.tap)
        return f"tap{position}-view{piece.view:03d}-shard{piece.shard:04d}.safetensors"

    def size(self, piece: Piece) -> int:
        """Bytes of a piece's file."""
        start, stop = self.span(piece.shard)
        rows = sum(part.row_bytes for part in self.parts[piece.tap])
        return len(self.head(piece, xxh3_128_hexdigest(b""))) + rows * (stop - start)

    def head(self, piece: Piece, checksum: str) -> bytes:
        """What a piece's file begins with, as safetensors lays it down; as long for any data."""
        start, stop = self.span(piece.shard)
        notes = {
            "fingerprint": self._digest,
            "tap": str(piece.tap),
            "view": str(piece.view),
            "rows": f"{start}:{stop}",
            "xxh3_128": checksum,
        }
        listed: dict[str, Any] = {"__metadata__": notes}
        offset = 0
        for part in self.parts[piece.tap]:
            end = offset + part.row_bytes * (stop - start)
            shape = [stop - start, *part.shape]
            listed[part.name] = {"dtype": _DTYPES[part.dtype][0], "shape": shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(listed, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def write_piece(folder: Path, plan: Plan, piece: Piece, arrays: Mapping[str, Tensor]) -> None:
    """Write one file, whole or not at all."""
    data = [arrays[part.name].contiguous().view(torch.uint8).numpy().data for part in plan.parts[piece.tap]]
    checksum = xxh3_128()
    for array in data:
        checksum.update(array)

    def save(path: Path) -> None:
        with path.open("wb") as file:
            file.write(plan.head(piece, checksum.hexdigest()))
            for array in data:
                file.write(array)

    _place(folder / plan.name(piece), save)


def has_size(folder: Path, plan: Plan, piece: Piece) -> bool:
    """Whether a piece's file is there and of full size."""
    path = folder / plan.name(piece)
    return path.is_file() and path.stat().st_size == plan.size(piece)


def checksum_of(folder: Path, plan: Plan, piece: Piece) -> str | None:
    """The hash of a piece's numbers if its file is there and every bit of it is as it was written; else None."""
    if not has_size(folder, plan, piece):
        return None
    mapped = _mapped(folder / plan.name(piece))
    length = len(plan.head(piece, xxh3_128_hexdigest(b"")))
    checksum = xxh3_128_hexdigest(mapped[length:].data)
    return checksum if mapped[:length].tobytes() == plan.head(piece, checksum) else None


def arrays_of(folder: Path, plan: Plan, piece: Piece) -> dict[str, NDArray[Any]]:
    """The arrays of a piece as they lie on disk, mapped, read-only; bfloat16 as int16."""
    mapped = _mapped(folder / plan.name(piece))
    start, stop = plan.span(piece.shard)
    offset, arrays = len(plan.head(piece, xxh3_128_hexdigest(b""))), {}
    for part in plan.parts[piece.tap]:
        end = offset + part.row_bytes * (stop - start)
        arrays[part.name] = mapped[offset:end].view(_DTYPES[part.dtype][1]).reshape(stop - start, *part.shape)
        offset = end
    return arrays


def write_plan(path: Path, plan: Plan, files: Mapping[str, str]) -> None:
    """Write ``building.json`` (no files) or ``manifest.json`` (the files' hashes), whole or not at all."""
    shapes = {str(tap): shape for tap, shape in plan.shapes.items()}
    values = {"schema": SCHEMA, "fingerprint": plan.fingerprint.as_json(), "rows": plan.rows}
    values |= {"shard_rows": plan.shard_rows, "shapes": shapes, "files": files}
    plain = {**values, "xxh3_128": digest_of(values)}
    text = json.dumps(plain, indent=2) + "\n"

    def save(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    _place(path, save)


def read_plan(path: Path) -> tuple[Plan, Mapping[str, str]] | None:
    """What `write_plan` wrote; None where there is no file, or no longer, because another process was quicker.

    Raises:
        LimbeckError: the file is damaged, or of a limbeck whose stores are laid out otherwise.
    """
    again = "delete it and build again, which keeps every whole shard"
    try:
        data = read(path, PLAN_BYTES)
    except LimbeckError as error:
        raise LimbeckError(f"{error}: {again}") from error
    if data is None:
        return None
    try:
        values = json.loads(data)
        schema, checksum = values["schema"], values.pop("xxh3_128")
        sound = checksum == digest_of(values)
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):  # anything may be left of a damaged file
        schema, sound = SCHEMA, False
    if schema != SCHEMA:
        raise LimbeckError(
            f"{path} is laid out by schema {schema}, this limbeck reads {SCHEMA}: "
            "delete the folder or name another one, and build again"
        )
    plan = _plan_of(values) if sound else None
    if plan is None:
        raise LimbeckError(f"{path} is damaged: {again}")
    return plan, values["files"]


def _plan_of(values: Mapping[str, Any]) -> Plan | None:
    """The plan of plain values; None where there is none of such values."""
    try:
        fingerprint = Fingerprint.from_json(values["fingerprint"])
        shapes = {tap: tuple(values["shapes"][str(tap)]) for tap in fingerprint.taps}
        plan = Plan(fingerprint, values["rows"], values["shard_rows"], shapes)
        sizes = [plan.rows, plan.shard_rows, fingerprint.views, *(size for shape in shapes.values() for size in shape)]
        whole = all(type(size) is int and size > 0 for size in sizes) and isinstance(values["files"], dict)
        return plan if whole and plan.shards * fingerprint.views * len(plan.parts) <= MOST_PIECES else None
    except (LimbeckError, AttributeError, KeyError, TypeError, ValueError):
        return None


def begun(folder: Path) -> Plan | None:
    """The plan of the store that the folder holds, finished or not."""
    for name in (BUILDING, MANIFEST):  # in this order, because a finished store loses the first after it got the second
        found = read_plan(folder / name)
        if found is not None:
            return found[0]
    return None


def clear_up(folder: Path) -> None:
    """Remove from a finished store what is no part of it: ``building.json``, and files of writers that were killed."""
    (folder / BUILDING).unlink(missing_ok=True)
    for path in folder.iterdir():
        if _LEFT_OVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _place(path: Path, save: Callable[[Path], None]) -> None:
    """Let ``save`` write a file beside the path, then move it there; several processes may do so at once."""
    try:
        with replacing(path, own=f".{os.getpid()}-{secrets.token_hex(4)}") as temporary:
            save(temporary)
    except FileNotFoundError:
        if not (path.parent / MANIFEST).is_file():  # else another process finished the store, and cleared this up
            raise


def _mapped(path: Path) -> NDArray[numpy.uint8]:
    return numpy.asarray(numpy.memmap(path, numpy.uint8, mode="r"))
