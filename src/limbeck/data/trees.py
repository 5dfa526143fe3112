"""The files of a folder or zip file."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.core import LimbeckError
from limbeck.data import bounds
from limbeck.data.archives import Archive
from limbeck.files.paths import near, regular

_SYSTEM = frozenset({"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"})


def near_path(path: Path) -> str:
    """What was probably meant by a path that does not exist, to end a message with; maybe empty."""
    found = near(path)
    return f": {found}" if found else ""


def exists(path: Path) -> bool:
    """Whether there is such a path.

    Raises:
        LimbeckError: that cannot be found out: it is too long, or in a folder that may not be read.
    """
    try:
        return path.exists()
    except OSError as error:
        raise LimbeckError(f"{path} cannot be looked for: {error}") from error


class Listing(NamedTuple):
    """What is in a folder or zip file."""

    names: list[str]  # files and folders, sorted, relative to the top, with "/"; a folder's name ends with one
    hidden: int  # how many files are left out because they are hidden
    hidden_folders: int  # likewise; they are not entered
    circular: int  # links to a folder that they are in


class Reader:
    """Reads the files of a folder or zip file, by their names in it, as far as `limbeck.data.bounds` allows.

    A zip file is opened when it is first read, and by every process for itself: two that share one would move each
    other's place in it. Only regular files are opened.

    Raises:
        LimbeckError: the place does not exist, or is neither folder nor a sound zip file; a file cannot be read, and
            the message names it.
    """

    def __init__(self, place: Path) -> None:
        if not exists(place):
            raise LimbeckError(f"{place} does not exist{near_path(place)}")
        self.place = place.absolute()  # so that it stays the same place wherever the process goes
        self._zipped = not place.is_dir()
        if self._zipped:
            regular(place)
        self._process: int | None = None
        self._open: Archive | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None, "_open": None}

    def listing(self) -> Listing:
        """All that is there but for what is hidden.

        Hidden is what begins with a dot, and what systems put beside pictures, such as __MACOSX or @eaDir.
        """
        if not self._zipped:
            return _walk(self.place)
        seen: list[str] = []
        files, folders = 0, set()
        for name in self._zip().names():
            parts = name.split("/")
            first = next((place for place, part in enumerate(parts) if _hidden(part)), None)
            if first is None:
                seen.append(name)
            elif first == len(parts) - 1:
                files += 1
            else:
                folders.add("/".join(parts[: first + 1]))
        return Listing(sorted(seen), files, len(folders), 0)

    def __call__(self, name: str) -> bytes:
        """The whole file."""
        return self.head(name, bounds.FILE_BYTES)[1]

    def head(self, name: str, count: int) -> tuple[int, bytes]:
        """The file's size in bytes, and the first of them."""
        try:
            if self._zipped:
                size = self._zip().size(name)
                _small(size)
                return size, self._zip().read(name, min(size, count))
            size = regular(self.place / name).st_size
            _small(size)
            with (self.place / name).open("rb") as file:
                return size, file.read(min(size, count))
        except Exception as error:  # a damaged zip file makes zipfile raise anything
            raise LimbeckError(f"{name} in {self.place} cannot be read: {error}") from error

    def _zip(self) -> Archive:
        if self._open is None or self._process != os.getpid():
            self._open, self._process = Archive(self.place), os.getpid()
        return self._open


def _small(size: int) -> None:
    if size > bounds.FILE_BYTES:
        raise LimbeckError(f"it has {size:,} bytes; allowed are {bounds.FILE_BYTES:,}")


def _walk(top: Path) -> Listing:
    """All in a folder and in what links lead to, but for a folder that the link is in: that would never end.

    Two links to one folder, such as a validation folder that is the test folder, are followed both.
    """
    names: list[str] = []
    hidden: Counter[str] = Counter()
    visits: Counter[tuple[int, int]] = Counter()
    system = _system()
    around = frozenset(_which(folder.stat()) for folder in (top.resolve(), *top.resolve().parents))
    waiting, seen, circular = [("", around)], 0, 0
    while waiting:
        inside, around = waiting.pop()
        for entry in _entries(top, inside):
            seen += 1
            if seen > bounds.ENTRIES:
                raise LimbeckError(f"{top} has more than {bounds.ENTRIES:,} files and folders, those in links included")
            name, which = inside + entry.name, _folder(entry)
            if _hidden(entry.name):
                hidden["file" if which is None else "folder"] += 1
            elif which is None:
                names.append(name)
            elif which in around:
                circular += 1
            else:
                visits[which] += 1
                if which[0] in system:
                    raise LimbeckError(f"{name} in {top} leads to the operating system's own files: not allowed")
                _check_way(top, name, visits[which])
                names.append(name + "/")
                waiting.append((name + "/", around | {which}))
    return Listing(sorted(names), hidden["file"], hidden["folder"], circular)


def _system() -> set[int]:
    """The devices of file systems that hold no files, where there are any."""
    places = [Path(name) for name in ("/proc", "/sys", "/dev")]
    return {place.stat().st_dev for place in places if place.is_dir()} - {Path("/").stat().st_dev}


def _entries(top: Path, inside: str) -> Iterator["os.DirEntry[str]"]:
    try:
        with os.scandir(top / inside) as entries:
            yield from entries
    except OSError as error:
        raise LimbeckError(f"the folder {top / inside} cannot be listed: {error}") from error


def _check_way(top: Path, name: str, visits: int) -> None:
    if name.count("/") >= bounds.DEPTH:
        raise LimbeckError(f"{name} in {top} is too deep; allowed are {bounds.DEPTH} folders in each other")
    if visits > bounds.VISITS:
        raise LimbeckError(
            f"{name} in {top} is a folder that more than {bounds.VISITS} ways through links lead to; allowed are fewer"
        )


def _folder(entry: "os.DirEntry[str]") -> tuple[int, int] | None:
    """Which folder it is; None where it is none."""
    try:
        return _which(entry.stat()) if entry.is_dir() else None
    except OSError:  # a link that leads to itself: like one that leads nowhere, it is told when it is read
        return None


def _which(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _hidden(part: str) -> bool:
    return part.startswith(".") or part in _SYSTEM
