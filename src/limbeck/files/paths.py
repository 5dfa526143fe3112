"""What is looked at before a file is opened: that it is a regular file, and of which size. Nothing here needs torch."""

import os
import stat
import struct
from collections.abc import Collection
from itertools import islice
from pathlib import Path

from limbeck.errors import LimbeckError, close_names, nearest

DIRECTORY = 2**24
"""The most bytes that the directory of a zip file takes: 300,000 entries and more, which take about 200 MB to list."""

_NEIGHBOURS = 10_000  # that are looked at for a name that was meant

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def expanded(text: str | Path) -> Path:
    """The path, with a leading ``~`` replaced by the home folder.

    Raises:
        LimbeckError: there is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        user = str(text).partition("/")[0].removeprefix("~")
        raise LimbeckError(f"got {str(text)!r}: there is no user {user!r}") from error


def near(path: Path) -> str:
    """What was probably meant by a path that does not exist, of what lies beside it; empty where nothing is near."""
    try:
        with os.scandir(path.absolute().parent) as entries:
            names = [entry.name for entry in islice(entries, _NEIGHBOURS)]
    except (OSError, ValueError):
        return ""
    found = close_names(path.name, names, most=1)
    return f"did you mean {found[0]!r}?" if found else ""


def regular(path: Path) -> os.stat_result:
    """What the system knows of a file; to open another than a regular one might never end.

    Raises:
        LimbeckError: it is a folder, FIFO, device or socket.
        OSError: it is not there, or cannot be looked at.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise LimbeckError(f"{path} is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no file')}; allowed are regular files")
    return found


def file_size(path: Path, *, most: int, endings: Collection[str] = ()) -> int:
    """The size in bytes of a file that may be opened: opening it does not wait, and reading it ends.

    A file of /proc or /dev that says it has no bytes may have any number: read no more than this.

    Args:
        path: the file.
        most: the largest size that is allowed.
        endings: of the files beside it that may have been meant where there is no such file.

    Raises:
        LimbeckError: there is no such file, it is a folder, FIFO, device or socket, or it is larger.
    """
    try:
        found = regular(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        beside = [other.name for other in islice(path.parent.glob("*"), _NEIGHBOURS) if other.suffix in endings]
        near = f": {nearest(path.name, beside)}" if beside else ""
        raise LimbeckError(f"there is no file {path}{near}") from error
    except (OSError, ValueError) as error:  # no permission, a loop of links, a NUL in the name
        raise LimbeckError(f"{path} cannot be opened: {error}") from error
    if found.st_size > most:
        raise LimbeckError(f"{path} has {found.st_size:,} bytes, allowed are at most {most:,} here")
    return found.st_size


def check_zip(path: Path) -> None:
    """Raise LimbeckError where the directory of a zip file is a bomb, or where readers may find different ones.

    A bomb is so large that listing it takes too much memory.

    Args:
        path: a regular file. One that is no zip file passes: who opens it will see.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 2**16 - 100))
        tail = file.read()
    plain = len(tail) - 22
    end = plain if plain >= 0 and tail.startswith(b"PK\5\6", plain) else tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        return
    last = size - len(tail) + end  # where the records that say where the directory is begin
    length, first = struct.unpack_from("<LL", tail, end + 12)
    pointer, large = tail[max(0, end - 20) : end], tail[max(0, end - 76) : end - 20]  # of a zip64 file
    sound = not pointer.startswith(b"PK\6\7")
    if large.startswith(b"PK\6\6"):
        last -= 76
        length, first = struct.unpack_from("<QQ", large, 40)
        sound = pointer == b"PK\6\7" + struct.pack("<LQL", 0, last, 1)
    if length > DIRECTORY:
        raise LimbeckError(f"{path} lists {length:,} bytes of entries, allowed are at most {DIRECTORY:,}")
    if not sound or first + length != last:
        raise LimbeckError(f"{path} may be read in different ways: its directory is not where it says")
