"""The files of a folder or zip file, and what was probably meant by a name that is not there."""

import difflib
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from limbeck.core import LimbeckError


def nearest(name: str, allowed: Iterable[str]) -> str:
    """What was probably meant, to end a message with; empty where nothing is near."""
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def near_path(path: Path) -> str:
    """As `nearest`, of what lies beside a path that does not exist."""
    parent = path.absolute().parent
    return nearest(path.name, [entry.name for entry in parent.iterdir()]) if parent.is_dir() else ""


_UNREADABLE = (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


class Reader:
    """Reads the files of a folder or zip file, by their names in it.

    A zip file is opened when it is first read, and by every process for itself: two that share one would move each
    other's place in it.

    Raises:
        LimbeckError: the place does not exist, or is neither folder nor a sound zip file; a file cannot be read, and
            the message names it.
    """

    def __init__(self, place: Path) -> None:
        if not place.exists():
            raise LimbeckError(f"{place} does not exist{near_path(place)}")
        self.place = place.absolute()  # so that it stays the same place wherever the process goes
        self._zipped = not place.is_dir()
        self._process: int | None = None
        self._open: zipfile.ZipFile | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None, "_open": None}

    def names(self) -> list[str]:
        """Every file and folder, sorted, relative to the top, with "/"; a folder's name ends with one.

        Left out is what is hidden: any part of the name begins with a dot or is __MACOSX.
        """
        names = self._zip().namelist() if self._zipped else _walk(self.place)
        return sorted(name for name in names if not any(_hidden(part) for part in name.split("/")))

    def __call__(self, name: str) -> bytes:
        """The whole file."""
        try:
            return self._zip().read(name) if self._zipped else (self.place / name).read_bytes()
        except _UNREADABLE as error:
            raise self._unreadable(name, error) from error

    def head(self, name: str, count: int) -> tuple[int, bytes]:
        """The file's size in bytes, and the first of them."""
        try:
            if self._zipped:
                with self._zip().open(name) as file:
                    return self._zip().getinfo(name).file_size, file.read(count)
            with (self.place / name).open("rb") as file:
                return os.fstat(file.fileno()).st_size, file.read(count)
        except _UNREADABLE as error:
            raise self._unreadable(name, error) from error

    def _zip(self) -> zipfile.ZipFile:
        if self._open is None or self._process != os.getpid():
            try:
                self._open, self._process = zipfile.ZipFile(self.place), os.getpid()
            except (zipfile.BadZipFile, OSError) as error:
                raise LimbeckError(f"{self.place} is neither a folder nor a sound zip file: {error}") from error
        return self._open

    def _unreadable(self, name: str, error: Exception) -> LimbeckError:
        return LimbeckError(f"{name} in {self.place} cannot be read: {error}")


def _walk(path: Path) -> Iterator[str]:
    """All in a folder and in what links lead to, but for a folder that is inside of itself: that would never end.

    Two links to one folder, such as a validation folder that is the test folder, are followed both.
    """
    around = {os.fspath(path): frozenset({_which(path)})}  # each folder to itself and those that it is in
    for folder, folders, files in os.walk(path, followlinks=True):
        known = around.pop(folder)
        below = {name: _which(Path(folder, name)) for name in folders}
        folders[:] = [name for name, which in below.items() if which not in known]
        around |= {os.path.join(folder, name): known | {below[name]} for name in folders}
        inside = Path(folder).relative_to(path)
        yield from ((inside / name).as_posix() + "/" for name in folders)
        yield from ((inside / name).as_posix() for name in files)


def _which(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"
