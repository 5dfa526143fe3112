"""Locks of the processes that work in one folder. A process that ends, in whatever way, releases its locks."""

from pathlib import Path

from filelock import FileLock, Timeout

from limbeck.errors import LimbeckError
from limbeck.experiment.runfiles import LOCKS
from limbeck.files.atomic import unwritten

_CLAIMS = "claims"  # is held while a process looks whether another lock is held, which takes that lock for a moment


def lock(folder: Path, name: str) -> FileLock:
    """A lock of a folder; ``with`` waits until no other process holds it.

    Raises:
        LimbeckError: the lock or the folder of the locks is a link, or cannot be written.
    """
    file = folder / LOCKS / name
    for path in (file.parent, file):
        if path.is_symlink():
            raise LimbeckError(f"{path} is a link, which limbeck does not write to")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise unwritten(file, error) from error
    return FileLock(file)


def claim(folder: Path, name: str) -> FileLock | None:
    """Take a lock without waiting, and return it until it is released; None if another process holds it."""
    with lock(folder, _CLAIMS):
        return _taken(folder, name)


def is_held(folder: Path, name: str) -> bool:
    """Whether a process holds a lock."""
    with lock(folder, _CLAIMS):
        found = _taken(folder, name)
        if found is not None:
            found.release()
        return found is None


def count_held(folder: Path, start: str) -> int:
    """The number of locks that processes hold and whose names begin with ``start``."""
    return sum(is_held(folder, file.name) for file in (folder / LOCKS).glob(f"{start}*"))


def _taken(folder: Path, name: str) -> FileLock | None:
    found = lock(folder, name)
    try:
        found.acquire(blocking=False)
    except Timeout:
        return None
    return found
