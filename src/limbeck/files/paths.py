"""Checks before a file is opened: its kind, its size, and the directory of a zip file. This module needs no torch."""

import os
import re
import stat
import struct
from collections.abc import Collection
from itertools import islice
from pathlib import Path

from limbeck.errors import LimbeckError, close_names, nearest

DIRECTORY = 2**24
"""The largest directory of a zip file in bytes: over 300,000 entries, and listing it takes about 200 MB."""

_NEIGHBOURS = 10_000  # the most names that are compared with a misspelled one

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def expanded(text: str | Path) -> Path:
    """Return the path with a leading ``~`` replaced by the home folder.

    Raises:
        LimbeckError: ``~`` names a user who does not exist.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        user = str(text).partition("/")[0].removeprefix("~")
        raise LimbeckError(f"got {str(text)!r}: there is no user {user!r}") from error


def is_url(text: str) -> bool:
    """Whether a text is a URL, such as s3://bucket/train.tar, and not a path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text) is not None


def near(path: Path) -> str:
    """The end of a message on a path that does not exist: a similar name in the same folder; empty if there is none."""
    try:
        with os.scandir(path.absolute().parent) as entries:
            names = [entry.name for entry in islice(entries, _NEIGHBOURS)]
    except (OSError, ValueError):
        return ""
    similar = close_names(path.name, names, most=1)
    return f": did you mean {similar[0]!r}?" if similar else ""


def regular(path: Path) -> os.stat_result:
    """Return the status of a regular file. Opening any other kind of file might block.

    Raises:
        LimbeckError: the path is a folder, FIFO, device or socket.
        OSError: the path does not exist or is not accessible.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise LimbeckError(f"{path} is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}; allowed are regular files")
    return status


def file_size(path: Path, *, most: int, endings: Collection[str] = ()) -> int:
    """Return the size in bytes of a regular file, which can be opened without blocking.

    A file in /proc or /dev may report 0 bytes and yield any number: read no more than the returned size. If the file
    does not exist, the error suggests files in the same folder with one of the ``endings``.

    Raises:
        LimbeckError: the file does not exist, is a folder, FIFO, device or socket, or is larger than ``most``.
    """
    try:
        status = regular(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        beside = [other.name for other in islice(path.parent.glob("*"), _NEIGHBOURS) if other.suffix in endings]
        near = f": {nearest(path.name, beside)}" if beside else ""
        raise LimbeckError(f"there is no file {path}{near}") from error
    except (OSError, ValueError) as error:  # for example no permission, a loop of links, a NUL in the name
        raise LimbeckError(f"{path} cannot be opened: {error}") from error
    if status.st_size > most:
        raise LimbeckError(f"{path} has {status.st_size:,} bytes, allowed are at most {most:,}")
    return status.st_size


def check_zip(path: Path) -> None:
    """Raise LimbeckError if the directory of a zip file is too large to list, or if readers may find different ones.

    A regular file that is not a zip file passes this check.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 2**16 - 100))
        tail = file.read()
    plain = len(tail) - 22
    end = plain if plain >= 0 and tail.startswith(b"PK\5\6", plain) else tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        return
    last = size - len(tail) + end  # the offset of the end records, which locate the directory
    length, first = struct.unpack_from("<LL", tail, end + 12)
    pointer, large = tail[max(0, end - 20) : end], tail[max(0, end - 76) : end - 20]  # the end records of zip64
    sound = not pointer.startswith(b"PK\6\7")
    if large.startswith(b"PK\6\6"):
        last -= 76
        length, first = struct.unpack_from("<QQ", large, 40)
        sound = pointer == b"PK\6\7" + struct.pack("<LQL", 0, last, 1)
    if length > DIRECTORY:
        raise LimbeckError(f"{path} has a directory of {length:,} bytes, allowed are at most {DIRECTORY:,}")
    if not sound or first + length != last:
        raise LimbeckError(f"{path} is ambiguous: the directory of the zip file is not where its end record says")
