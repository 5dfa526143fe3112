"""The files of a folder or zip file."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from limbeck.core import LimbeckError
from limbeck.data import bounds
from limbeck.data.archives import Archive
from limbeck.files.paths import near, regular

BEGINNING = 4096
"""Bytes of a file by which it is recognised before it is read in full."""

_SYSTEM = frozenset({"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"})


def exists(path: Path) -> bool:
    """Whether the path exists.

    Raises:
        LimbeckError: the system cannot tell: the path is too long, or in a folder that may not be read.
    """
    try:
        return path.exists()
    except OSError as error:
        raise LimbeckError(f"{path} cannot be accessed: {error}") from error


class Listing(NamedTuple):
    """What is in a folder or zip file."""

    names: list[str]  # of files and folders, sorted, relative to the top; a folder's name ends with "/"
    hidden: int  # number of hidden files, which are left out
    hidden_folders: int  # likewise of folders, which are not entered
    circular: int  # number of links to a folder that holds the link


class Files(Protocol):
    """What reads files by name."""

    place: Path | str  #: for messages

    def label(self, name: str) -> str:
        """What messages call the file."""
        return f"{name} in {self.place}"

    def __call__(self, name: str) -> bytes:
        """The whole file."""

    def head(self, name: str, count: int) -> tuple[int, bytes]:
        """The size of the file in bytes, and its first ``count`` bytes."""

    def several(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """The names with the whole files, in this order."""
        return ((name, self(name)) for name in names)

    def identity(self, name: str) -> str:
        """What a hash of the files covers of the name."""
        return name

    def beginning(self, name: str) -> tuple[int, bytes]:
        """The size of the file in bytes, and its first `BEGINNING` bytes or a hash of them."""
        return self.head(name, BEGINNING)


class Reader(Files):
    """Reads the files of a folder or zip file by name, as far as `limbeck.data.bounds` allows.

    A zip file is opened when it is first read, by each process separately, because processes that share an open file
    share its position. Only regular files are opened.

    Raises:
        LimbeckError: the place does not exist, or is neither a folder nor a valid zip file; a file cannot be read (the
            message names it).
    """

    def __init__(self, place: Path) -> None:
        if not exists(place):
            raise LimbeckError(f"{place} does not exist{near(place)}")
        self.place = place.absolute()  # so that it does not depend on the working folder
        self._zipped = not place.is_dir()
        if self._zipped:
            regular(place)
        self._process: int | None = None
        self._open: Archive | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None, "_open": None}

    def listing(self) -> Listing:
        """All files and folders that are not hidden.

        Hidden are names that begin with a dot, and those that systems add beside pictures, such as __MACOSX or @eaDir.
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
        """The size of the file in bytes, and its first ``count`` bytes."""
        try:
            if self._zipped:
                size = self._zip().size(name)
                _small(size)
                return size, self._zip().read(name, min(size, count))
            size = regular(self.place / name).st_size
            _small(size)
            with (self.place / name).open("rb") as file:
                return size, file.read(min(size, count))
        except Exception as error:  # zipfile raises anything for a damaged file
            raise LimbeckError(f"{self.label(name)} cannot be read: {error}") from error

    def _zip(self) -> Archive:
        if self._open is None or self._process != os.getpid():
            self._open, self._process = Archive(self.place), os.getpid()
        return self._open


def _small(size: int) -> None:
    if size > bounds.FILE_BYTES:
        raise LimbeckError(f"it has {size:,} bytes; allowed are {bounds.FILE_BYTES:,}")


def _walk(top: Path) -> Listing:
    """All in a folder, links followed, except for a link to a folder that holds the link, which would never end.

    Two links to the same folder, such as a validation folder that is the test folder, are both followed.
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
                raise LimbeckError(f"{top} has too many entries, links followed; allowed are {bounds.ENTRIES:,}")
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
                    raise LimbeckError(f"{name} in {top} links to files of the operating system, which is not allowed")
                _check_way(top, name, visits[which])
                names.append(name + "/")
                waiting.append((name + "/", around | {which}))
    return Listing(sorted(names), hidden["file"], hidden["folder"], circular)


def _system() -> set[int]:
    """The devices of file systems without files on a disk, if there are any."""
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
        raise LimbeckError(f"{name} in {top} is too deep; allowed are {bounds.DEPTH} nested folders")
    if visits > bounds.VISITS:
        raise LimbeckError(
            f"{name} in {top} is a folder with too many paths to it through links; allowed are {bounds.VISITS}"
        )


def _folder(entry: "os.DirEntry[str]") -> tuple[int, int] | None:
    """The identity of a folder; None if the entry is not a folder."""
    try:
        return _which(entry.stat()) if entry.is_dir() else None
    except OSError:  # a link to itself: like a broken link, it is an error when it is read
        return None


def _which(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _hidden(part: str) -> bool:
    return part.startswith(".") or part in _SYSTEM
