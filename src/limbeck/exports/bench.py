"""Measure finished exports again, on this machine: without the student, the data or the code that trained it.

A file that a user received is first opened and run in a process of its own, see `limbeck.exports.memory`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from limbeck.core import LimbeckError
from limbeck.errors import nearest
from limbeck.evaluate import Latency
from limbeck.evaluate.cost import times
from limbeck.exports import EXPORTERS
from limbeck.exports.base import Runner
from limbeck.exports.card import CARD, About, read_card, read_metadata
from limbeck.exports.errors import in_one_line
from limbeck.exports.memory import metadata_of, peak_memory
from limbeck.files.paths import file_size

LARGEST = 2**31
"""The largest file in bytes: 2 GiB."""

MOST_EXPORTS = 100

SUFFIXES = {EXPORTERS[name].suffix: name for name in reversed([*EXPORTERS])}
"""Backends by the suffix of their files; the first that has it."""


@dataclass(frozen=True)
class Measured:
    """An export on this machine."""

    path: Path  #: as it was given
    about: About
    bytes: int  #: of its files but the card
    memory: int | None  #: see `limbeck.exports.memory`
    latency: Latency  #: of one random sample


def bench_exports(paths: Sequence[Path]) -> list[Measured]:
    """Measure exports; the latencies in turns.

    Args:
        paths: folders with a ``card.json``, or files whose metadata say what they read.

    Raises:
        LimbeckError: a path is not an export that this version reads and this machine runs.
    """
    if len(paths) > MOST_EXPORTS:
        raise LimbeckError(f"got {len(paths)} exports: allowed are at most {MOST_EXPORTS}")
    found = {path: _found(path) for path in paths}
    memory = {path: peak_memory(about.backend, file, about.reads) for path, (file, about) in found.items()}
    calls = {str(path): partial(_runner(file, about), about.reads.random()) for path, (file, about) in found.items()}
    latency = times(calls)
    return [
        Measured(path, about, _bytes(file, about), memory[path], latency[str(path)])
        for path, (file, about) in found.items()
    ]


def _found(path: Path) -> tuple[Path, About]:
    """The file of an export, and what is known of it."""
    is_file = path.suffix in SUFFIXES and not (path / CARD).exists()
    about = _about(path) if is_file else read_card(path)
    if about.backend not in EXPORTERS:
        raise LimbeckError(f"{path} is for the backend {about.backend!r}: {nearest(about.backend, EXPORTERS)}")
    EXPORTERS[about.backend].loader(about.backend)
    file = path if is_file else path / f"student{EXPORTERS[about.backend].suffix}"
    _check_file(file)
    return file, about


def _about(file: Path) -> About:
    """The metadata of a file."""
    backend = SUFFIXES[file.suffix]
    EXPORTERS[backend].loader(backend)
    _check_file(file)
    try:
        text = metadata_of(backend, file)
    except LimbeckError as error:
        raise LimbeckError(f"{file} is damaged, or limbeck did not export it: {error}") from error
    return read_metadata(text, file)


def _check_file(file: Path) -> None:
    if not file.is_dir():  # a file of Core ML is a folder
        file_size(file, most=LARGEST)


def _runner(file: Path, about: About) -> Runner:
    load = EXPORTERS[about.backend].loader(about.backend)
    with in_one_line(f"{file} cannot be run"):
        runner = load(file)
        runner(about.reads.random())
    return runner


def _bytes(file: Path, about: About) -> int:
    """Of a file, which may be a folder, and of those that its backend writes beside it."""
    beside = (file.with_name(name.replace("student", file.stem)) for name in EXPORTERS[about.backend].beside)
    files = (one for path in (file, *beside) for one in (path, *path.rglob("*")))
    return sum(one.stat().st_size for one in files if one.is_file())
