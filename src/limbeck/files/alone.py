"""The lock of a folder in which a process trains. A process that ends, in whatever way, releases it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from limbeck.errors import LimbeckError

LOCK = ".lock"
"""The file that is locked."""

PATIENCE = 2.0
"""Seconds to wait for the lock: a process whose torchrun was killed ends within half a second."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it does not exist, and deleted again if nothing else is written.

    Where no lock can be had, as in file systems without locks, the block runs without it.

    Raises:
        LimbeckError: another process holds it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    file, held = folder / LOCK, _lock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (file.exists() or file.is_symlink()):
            file.touch()  # with the rights that the user gives new files
        held.acquire(timeout=PATIENCE)
    except Timeout as error:
        advice = "wait until it ends, or choose another folder"
        raise LimbeckError(f"a training is running in {folder}: {advice}") from error
    except OSError:
        pass
    try:
        yield
    finally:
        with suppress(OSError):
            if held.is_locked and [*folder.iterdir()] == [file]:
                file.unlink()
        held.release()
        for path in made:
            with suppress(OSError):  # it is not empty
                path.rmdir()


def is_locked(file: Path, *, patience: float = 0.2) -> bool:
    """Whether another process holds a lock for ``patience`` seconds; False if this cannot be found out."""
    if not file.is_file():
        return False
    held = _lock(file)
    try:
        held.acquire(timeout=patience)
    except Timeout:
        return True
    except OSError:
        return False
    held.release()
    return False


def _lock(file: Path) -> FileLock:
    return FileLock(file, fallback_to_soft=False)
