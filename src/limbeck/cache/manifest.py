"""The description of a store: what it was built from, which files it has, and their checksums.

``manifest.json`` describes a finished store and is written last. ``building.json`` describes a store that is being
built. They hold ``schema``, ``fingerprint`` (see `limbeck.cache.fingerprint.Fingerprint.as_json`), ``rows`` (samples of
a view), ``shard_rows`` (samples of a file; the last of a view may have fewer), ``shapes`` (of one sample, by the tap's
name), ``files`` (the checksum of each file by its name; empty while the store is being built) and ``xxh3_128``, the
checksum of all these. Reading them needs no torch, so that `limbeck cache info` answers at once.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from xxhash import xxh3_128_hexdigest

from limbeck.errors import LimbeckError
from limbeck.files.atomic import read

SCHEMA = 2
"""The layout of a store's folder. A store of another layout is refused."""

FINISHED = "manifest.json"
BUILDING = "building.json"

MOST_BYTES = 64 * 2**20
"""The most bytes of a description."""

MOST_FILES = 500_000
"""The most files of a store; its description then has 40 MB."""


Dtype = Literal["float32", "float16", "bfloat16"]
"""The dtypes of stored numbers."""

Precision = Literal["32", "bf16"]
"""The precisions in which a teacher computes."""

_Size = Annotated[int, Field(ge=1, le=2**31)]
_Value = bool | int | float | str | None


@dataclass(frozen=True)
class _Fingerprint:
    """The types of a fingerprint's parts in JSON."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    weights: str
    structure: str
    data: str
    transform: dict[str, _Value | list[_Value]]
    seed: int
    views: _Size
    taps: dict[str, tuple[str, str, Literal["input", "output"], int | None, Dtype, _Size | None]]
    precision: Precision
    versions: dict[str, str]


@dataclass(frozen=True)
class _Manifest:
    """The types of a description's parts in JSON, without its checksum."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    schema: int
    fingerprint: _Fingerprint
    rows: _Size
    shard_rows: _Size
    shapes: Annotated[dict[str, Annotated[list[_Size], Field(max_length=64)]], Field(min_length=1)]
    files: dict[str, str]


def digest_of(values: Mapping[str, Any]) -> str:
    """32 hex digits (xxh3_128) of plain values."""
    return xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())


def manifest_text(values: Mapping[str, Any]) -> str:
    """A description as the JSON that `read_manifest` reads."""
    values = {"schema": SCHEMA, **values}
    return json.dumps({**values, "xxh3_128": digest_of(values)}, indent=2) + "\n"


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Read a description, without its schema and checksum; None if there is no such file.

    Raises:
        LimbeckError: the file is damaged, or describes a store of another layout.
    """
    advice = "delete it and build the store again: all whole files are kept"
    try:
        data = read(path, MOST_BYTES)
    except LimbeckError as error:
        raise LimbeckError(f"{error}: {advice}") from error
    if data is None:
        return None
    schema: Any = SCHEMA
    try:
        values: dict[str, Any] = json.loads(data)
        checksum, schema = values.pop("xxh3_128"), values["schema"]
        whole = checksum == digest_of(values) and (schema != SCHEMA or _is_valid(values))
        del values["schema"]
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):  # the file may hold anything
        whole = False
    if schema != SCHEMA:
        raise LimbeckError(
            f"the store {path.parent} has the layout {schema}, and this version of limbeck reads the layout {SCHEMA}: "
            "delete the folder or name another one, and build the store again"
        )
    if not whole:
        raise LimbeckError(f"{path} is damaged: {advice}")
    return values


def _is_valid(values: Mapping[str, Any]) -> bool:
    """Whether every tap has a shape, and the store has at most `MOST_FILES` files.

    Raises:
        ValueError: a key is missing or unknown, or a value has another type or is out of range.
    """
    TypeAdapter(_Manifest).validate_json(json.dumps(values))  # only from JSON does it take lists as tuples
    same = values["shapes"].keys() == values["fingerprint"]["taps"].keys()
    return same and file_count(values) <= MOST_FILES


def file_count(values: Mapping[str, Any]) -> int:
    """The number of files of the finished store."""
    shards: int = -(-values["rows"] // values["shard_rows"])
    return shards * int(values["fingerprint"]["views"]) * len(values["shapes"])


def begun(folder: Path) -> dict[str, Any] | None:
    """The description of the store in a folder, finished or not; None if there is no store."""
    # In this order: a finished store gets its manifest before it loses the description of its building.
    return read_manifest(folder / BUILDING) or read_manifest(folder / FINISHED)


@dataclass(frozen=True)
class Info:
    """What a folder holds, according to its description. No checksum is computed."""

    manifest: Mapping[str, Any]  # see `limbeck.cache.manifest`
    finished: bool
    files: int  # that exist
    total: int  # files of the finished store
    bytes: int  # of the files that exist


def info(folder: Path) -> Info:
    """Describe a store, finished or not.

    Raises:
        LimbeckError: the folder has no store, or its description is damaged.
    """
    values = begun(folder)
    if values is None:
        raise LimbeckError(f"there is no store in {folder}: build it first")
    sizes = [path.stat().st_size for path in folder.glob("tap*-view*-shard*.safetensors") if path.is_file()]
    total = file_count(values)
    finished = (folder / FINISHED).is_file() and len(sizes) == total
    return Info(values, finished, len(sizes), total, sum(sizes))
