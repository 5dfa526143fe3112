"""The log of epochs, ``metrics.jsonl``: one line an epoch, and a hash over the lines of each network."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.core import LimbeckError
from limbeck.files.atomic import append, read, sync, write

MOST_BYTES = 256 * 2**20
"""The largest log that is read."""


class EpochLog:
    """The lines of the log, by network.

    An incomplete last line is dropped: a crash may have cut it short. ``kept`` continues the file; otherwise the first
    line starts a new one.

    Raises:
        LimbeckError: the file is not a regular file, is too large, or holds a line that is not of an epoch.
    """

    def __init__(self, path: Path, *, kept: bool) -> None:
        self.path = path
        found = read(path, MOST_BYTES) if kept else None
        text = (found or b"").decode("utf-8", errors="replace")
        self._lines = [line + "\n" for line in text.split("\n")[:-1]]
        self._jobs = [self._job(number, line) for number, line in enumerate(self._lines, 1)]
        self._written = found is not None and "".join(self._lines) == text

    def of(self, job: str) -> list[dict[str, Any]]:
        """A network's lines."""
        return [json.loads(line) for line in self._of(job)]

    def all(self) -> list[dict[str, Any]]:
        """The lines of all networks, in order."""
        return [json.loads(line) for line in self._lines]

    @property
    def last(self) -> dict[str, Any] | None:
        """The last line; None if there is none."""
        return json.loads(self._lines[-1]) if self._lines else None

    def summary(self, job: str) -> dict[str, Any]:
        """The number of a network's lines, and the sha256 of them all."""
        return _summary(self._of(job))

    def check(self, job: str, known: Mapping[str, Any]) -> bool:
        """Drop a network's lines after those of the `summary` ``known``; False if its lines are gone.

        Raises:
            LimbeckError: the lines are not those of the summary.
        """
        lines = self._of(job)
        if not lines:
            return not known["lines"]
        kept = lines[: known["lines"]]
        if _summary(kept) != known:
            raise LimbeckError(
                f"{self.path} is damaged or was edited: the lines of {job} have changed. Delete "
                "the file to continue without the log of the epochs so far"
            )
        self._drop(job, after=len(kept))
        return True

    def begin(self, job: str) -> None:
        """Drop all lines of a network that is trained from its beginning."""
        self._drop(job, after=0)

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line; raises `NoSpace` if the disk is full."""
        self._write()
        text = json.dumps(line) + "\n"
        append(self.path, text)
        self._lines.append(text)
        self._jobs.append(line["job"])

    def sync(self) -> None:
        """Wait until the lines are on the disk."""
        self._write()
        sync(self.path)

    def _of(self, job: str) -> list[str]:
        return [line for line, owner in zip(self._lines, self._jobs, strict=True) if owner == job]

    def _drop(self, job: str, *, after: int) -> None:
        places = [place for place, owner in enumerate(self._jobs) if owner == job]
        for place in reversed(places[after:]):
            del self._lines[place], self._jobs[place]
            self._written = False

    def _write(self) -> None:
        """Write the file if it differs from the lines."""
        if not self._written:
            write(self.path, "".join(self._lines))
            self._written = True

    def _job(self, number: int, line: str) -> str:
        try:
            job = json.loads(line)["job"]
        except (ValueError, TypeError, KeyError, RecursionError):
            job = None
        if not isinstance(job, str):
            raise LimbeckError(
                f"{self.path} is damaged: line {number} does not describe an epoch. Delete the file to continue "
                "without the log of the epochs so far"
            )
        return job


def _summary(lines: list[str]) -> dict[str, Any]:
    return {"lines": len(lines), "sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}
