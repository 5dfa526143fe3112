"""Atomic writes, and reads of small files that do not trust what is at the path."""

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
"""The error numbers for a full disk, an exhausted quota and a file that is too large."""

JSON_BYTES = 16 * 2**20
"""The largest size of a sealed JSON file."""

_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # opening a FIFO would otherwise block


class NoSpace(LimbeckError):
    """A file could not be written because the disk is full."""

    exit_code = 3


@contextmanager
def replacing(path: Path, *, own: str = "") -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` atomically at the end of the block.

    If the block raises, the temporary file is removed and the previous file stays. ``own``, a part of the temporary
    name, differs between processes that may write the file at the same time. The file has the permissions of a new file
    (the umask), also where the block makes one that only its owner may read, as safetensors does.

    Raises:
        NoSpace: the disk is full.
        LimbeckError: the folder or the file is not writable.
    """
    temporary = path.with_name(f"{path.name}{own}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a FileNotFoundError, too, in folders such as /proc
        raise unwritten(path, error) from error
    try:
        temporary.unlink(missing_ok=True)  # do not write through a link or a FIFO at this path
        temporary.touch()  # also finds before the block that nothing can be written
        mode = temporary.stat().st_mode
        temporary.unlink()
        yield temporary
        if temporary.stat().st_mode != mode:  # some file systems refuse any change
            temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except FileNotFoundError:
        raise
    except Exception as error:
        cause = error if isinstance(error, OSError) else refusal(temporary)
        written = temporary.stat().st_size if temporary.is_file() else 0
        _remove(temporary)
        if cause is None:  # the disk is not the cause
            raise
        raise unwritten(path, cause, written) from error
    finally:
        _remove(temporary)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError while ``path`` is written inside the block into a `LimbeckError` that names the path."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unwritten(path, error) from error


def unwritten(path: Path, error: OSError, written: int = 0) -> LimbeckError:
    """Return the error for a file that could not be written: `NoSpace` if the disk is full."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno not in FULL:
        return LimbeckError(f"{path} cannot be written: {reason}")
    there = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    free = f", and {shutil.disk_usage(there).free:,} bytes are free" if there else ""
    return NoSpace(
        f"{path} cannot be written: {reason}. It needs more than {written:,} bytes{free}. The previous file is intact: "
        "free some space and repeat the command, a training with --resume"
    )


def write(path: Path, text: str) -> None:
    """Write text atomically, in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write plain values as JSON. The last key, ``sha256``, is the hash of the file name and the other keys."""
    write(path, _sealed(path, value))


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Read the values that `write_sealed` wrote, without the hash. Return None if there is no file.

    Raises:
        LimbeckError: the bytes of the file or its name have changed.
    """
    data = read(path, JSON_BYTES)
    if data is None:
        return None
    try:
        text = data.decode().replace("\r\n", "\n")
        value: Any = json.loads(text)
        value.pop("sha256")
        whole = _sealed(path, value) == text
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError):  # a damaged file may contain anything
        whole = False
    if not whole:
        raise LimbeckError(f"{path} is damaged, or was changed after it was written")
    values: dict[str, Any] = value
    return values


def read(path: Path, most: int) -> bytes | None:
    """Read the bytes of a file. Return None if it does not exist.

    Raises:
        LimbeckError: it is not a regular file (a folder, a FIFO, a device), has more than ``most`` bytes, or is not
            readable.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise LimbeckError(f"{path} is not a regular file")
        with open(os.open(path, os.O_RDONLY | _NO_WAIT), "rb") as file:
            data = file.read(most + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LimbeckError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > most:
        raise LimbeckError(f"{path} has more than {most:,} bytes, the most that a file of limbeck has")
    return data


def append(path: Path, text: str) -> None:
    """Append text to a file atomically. Links are not followed.

    Raises:
        NoSpace: the disk is full.
        LimbeckError: the file is not writable.
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
    """Flush a file to the disk, if it exists."""
    if path.is_file():
        with explained(path), path.open("rb+") as file:
            os.fsync(file.fileno())


def digest(path: Path, size: int) -> str | None:
    """Return the sha256 of a regular file of this size, or None if there is no such file."""
    if not path.is_file() or path.stat().st_size != size:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sealed(path: Path, value: Mapping[str, Any]) -> str:
    body = f"{path.name}\n{json.dumps(value, indent=2)}"
    return json.dumps({**value, "sha256": hashlib.sha256(body.encode()).hexdigest()}, indent=2) + "\n"


def refusal(temporary: Path) -> OSError | None:
    """Return the OSError of another write to the file, or None: libraries raise exceptions that omit the reason."""
    try:
        with temporary.open("ab") as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return None if isinstance(error, FileNotFoundError) else error
    return None


def _sync_folder(path: Path) -> None:
    if os.name == "posix":  # other systems cannot open a folder and need no sync
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _remove(path: Path) -> None:
    if path.is_file() or path.is_symlink():
        path.unlink(missing_ok=True)
