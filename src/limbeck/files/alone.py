"""The lock of a folder in which a process trains. A process that ends, in whatever way, releases it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from limbeck.errors import LimbeckError

LOCK = ".lock"
"""The file that is locked. It stays, because a deleted one would not keep other processes out."""

PATIENCE = 8.0
"""Seconds to wait for the lock: the workers that read images outlive a killed process by about 5."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it does not exist.

    Where no lock can be had, as in file systems without locks, the block runs without it.

    Raises:
        LimbeckError: another process holds it.
    """
    held = _lock(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise _used(folder) from error
    except OSError:
        pass
    try:
        yield
    finally:
        held.release()


def refuse_used(folder: Path) -> None:
    """Raise LimbeckError if another process holds the lock of a folder."""
    if is_used(folder, patience=PATIENCE):
        raise _used(folder)


def is_used(folder: Path, *, patience: float = 0.0) -> bool:
    """Whether another process holds the lock of a folder for ``patience`` seconds; False if no lock can be had."""
    if not (folder / LOCK).is_file():
        return False
    held = _lock(folder)
    try:
        held.acquire(timeout=patience)
    except Timeout:
        return True
    except OSError:
        return False
    held.release()
    return False


def _lock(folder: Path) -> FileLock:
    return FileLock(folder / LOCK, fallback_to_soft=False)


def _used(folder: Path) -> LimbeckError:
    return LimbeckError(f"another process trains in {folder}: wait until it ends, or choose another folder")
