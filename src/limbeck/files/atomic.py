"""Files that are written whole or not at all, and read without trusting what lies in their place."""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says where it takes no more bytes: the disk is full, the quota is used up, the file is too large."""

JSON_BYTES = 16 * 2**20
"""A sealed JSON file may be that large."""

_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # opening a FIFO would wait for its other end


class NoSpace(LimbeckError):
    """A file could not be written because the disk takes no more."""

    exit_code = 3


@contextmanager
def replacing(path: Path, *, own: str = "") -> Iterator[Path]:
    """A temporary path to write to; when the block ends well it is on disk under ``path``, which never holds a part.

    When the block fails, what was written is removed, and what was there before stays.

    Args:
        path: the file.
        own: part of the temporary path's name, where several processes may write the file at once.

    Raises:
        NoSpace: the disk is full.
        LimbeckError: the folder or the file may not be written.
    """
    temporary = path.with_name(f"{path.name}{own}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # a link or a FIFO in its place must not be written through
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except FileNotFoundError:
        raise
    except Exception as error:
        cause = error if isinstance(error, OSError) else _refusal(temporary)
        written = _size(temporary)
        _remove(temporary)
        if cause is None:  # it had nothing to do with the disk
            raise
        raise unwritten(path, cause, written) from error
    finally:
        _remove(temporary)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Inside the block, what the system raises while ``path`` is written becomes a `LimbeckError` that names it."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unwritten(path, error) from error


def unwritten(path: Path, error: OSError, written: int = 0) -> LimbeckError:
    """What to tell of a file that could not be written: `NoSpace` where the disk takes no more."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno not in FULL:
        return LimbeckError(f"{path} cannot be written: {reason}")
    there = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    free = f", and {shutil.disk_usage(there).free:,} bytes are free" if there else ""
    return NoSpace(
        f"{path} cannot be written: {reason}. It takes more than {written:,} bytes{free}. What was there before is "
        "whole: make room, and resume with --resume"
    )


def write(path: Path, text: str) -> None:
    """Write a text."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write plain values as JSON whose last key, ``sha256``, is the hash of the file's name and all before it."""
    write(path, _sealed(path, value))


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote, without the hash; None where there is no file.

    Raises:
        LimbeckError: the file is not, byte for byte, what was written under this name.
    """
    data = read(path, JSON_BYTES)
    if data is None:
        return None
    try:
        text = data.decode().replace("\r\n", "\n")
        value: Any = json.loads(text)
        value.pop("sha256")
        whole = _sealed(path, value) == text
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError):  # anything may be left of a damaged file
        whole = False
    if not whole:
        raise LimbeckError(f"{path} is damaged, or was changed after it was written")
    found: dict[str, Any] = value
    return found


def read(path: Path, most: int) -> bytes | None:
    """A file's bytes; None where there is none.

    Raises:
        LimbeckError: it is no regular file (a folder, a FIFO, a device), holds more than ``most`` bytes, or may not be
            read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise LimbeckError(f"{path} is no regular file")
        with open(os.open(path, os.O_RDONLY | _NO_WAIT), "rb") as file:
            data = file.read(most + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LimbeckError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > most:
        raise LimbeckError(f"{path} holds more than {most:,} bytes, which is no file of limbeck's")
    return data


def append(path: Path, text: str) -> None:
    """Add a text to a file, all of it or nothing; a link is not followed.

    Raises:
        NoSpace: the disk is full.
        LimbeckError: the file may not be written.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | _NO_WAIT
    with explained(path):
        file = os.open(path, flags, 0o666)
        try:
            before, left = os.fstat(file).st_size, text.encode()
            try:
                while left:
                    left = left[os.write(file, left) :]
            except OSError:
                os.ftruncate(file, before)
                raise
        finally:
            os.close(file)


def sync(path: Path) -> None:
    """Wait until a file is on the disk, where there is one."""
    if path.is_file():
        with explained(path), path.open("rb+") as file:
            os.fsync(file.fileno())


def digest(path: Path, size: int) -> str | None:
    """The sha256 of a regular file of this size; None where there is no such file."""
    if not path.is_file() or path.stat().st_size != size:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sealed(path: Path, value: Mapping[str, Any]) -> str:
    body = f"{path.name}\n{json.dumps(value, indent=2)}"
    return json.dumps({**value, "sha256": hashlib.sha256(body.encode()).hexdigest()}, indent=2) + "\n"


def _refusal(temporary: Path) -> OSError | None:
    """Why the disk takes no more: libraries that write by themselves raise errors of their own, without the reason."""
    try:
        with temporary.open("ab") as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return None if isinstance(error, FileNotFoundError) else error
    return None


def _sync_folder(path: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened, and need not be synced
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _remove(path: Path) -> None:
    if path.is_file() or path.is_symlink():
        path.unlink(missing_ok=True)
