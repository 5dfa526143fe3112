"""Files at URLs, such as s3://bucket/train-0000.tar, which fsspec reads in parts."""

import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import fsspec

from limbeck.core import LimbeckError

AT_ONCE = 32
"""The most parts that are requested at a time, and held before they are used."""

_AHEAD = 2**22  # bytes that are read ahead of a file that is read from its beginning


class Server:
    """The files below a URL such as s3://bucket/folder. A connection belongs to one process.

    Raises:
        OSError: a file cannot be read; the message says why, also where the protocol's package raises another error.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self._process: int | None = None
        self._system: Any = None
        self._top = ""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None, "_system": None}

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """A file to read from its beginning."""
        with _explained():
            system = self._connected()
            with system.open(f"{self._top}/{name}", "rb", block_size=_AHEAD, cache_type="readahead") as file:
                yield file

    def parts(self, wanted: Iterable[tuple[str, int, int]]) -> Iterator[bytes]:
        """Parts of files, each by the name of the file, the first byte and the number of bytes; `AT_ONCE` at a time."""
        rest = iter(wanted)
        while few := list(islice(rest, AT_ONCE)):
            names, starts, counts = zip(*few, strict=True)
            ends = [start + count for start, count in zip(starts, counts, strict=True)]
            with _explained():
                system = self._connected()
                places = [f"{self._top}/{name}" for name in names]
                found = system.cat_ranges(places, list(starts), ends, on_error="raise")
            yield from found

    def _connected(self) -> Any:
        if self._process != os.getpid():
            self._system, self._top = fsspec.core.url_to_fs(self.place)
            self._process = os.getpid()
        return self._system


@contextmanager
def _explained() -> Iterator[None]:
    """Make an OSError of any error of fsspec and of the packages for its protocols."""
    try:
        yield
    except (LimbeckError, tarfile.TarError):
        raise
    except ImportError as error:
        raise OSError(f"a package for this protocol is not installed: {error}") from error
    except FileNotFoundError as error:  # also without permission, or without a connection: the cause says so
        raise OSError(f"there is no such file, or it may not be read: {error.__cause__ or error}") from error
    except Exception as error:  # each package has its own errors
        raise OSError(f"{type(error).__name__}: {error}") from error
