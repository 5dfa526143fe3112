"""Files at URLs, such as s3://bucket/train-0000.tar, which fsspec reads in parts."""

import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from limbeck.core import LimbeckError
from limbeck.errors import nearest

PROTOCOLS = (
    *("abfs", "abfss", "az", "ftp", "gcs", "gs", "hf", "http"),
    *("https", "memory", "oss", "s3", "s3a", "sftp", "ssh"),
)
"""Those that only read bytes of files. Others of fsspec unpack archives, write copies to the disk or run templates."""

AT_ONCE = 32
"""The most parts that are requested at a time, and held before they are used."""

BYTES_AT_ONCE = 2**26
"""The most bytes of them, except that one part may have more."""

_AHEAD = 2**22  # bytes that are read ahead of a file that is read from its beginning
_MORE = "the server sends more than the part that was asked for"
_WHOLE = "the server sends only whole files, like python -m http.server; allowed are servers that answer range requests"


def check(url: str) -> None:
    """Check that a URL names files of one server, and makes fsspec do nothing but read them.

    Raises:
        LimbeckError: it chains file systems with ``::``; its protocol is not in `PROTOCOLS`.
    """
    protocol = url.partition("://")[0]
    if "::" in url:
        raise LimbeckError(f"got {url!r}: a URL with :: is not read, allowed are URLs such as s3://bucket/train-00.tar")
    if protocol in ("file", "local"):
        raise LimbeckError(f"got {url!r}: give a path, such as /data/train-00.tar, for files of this machine")
    if protocol not in PROTOCOLS:
        raise LimbeckError(f"got {url!r}: the protocol {protocol!r} is not read; {nearest(protocol, PROTOCOLS)}")


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
                if self.place.startswith(("http://", "https://")):
                    self._check_ranges(name)
                yield file

    def parts(self, wanted: Iterable[tuple[str, int, int]]) -> Iterator[bytes]:
        """Parts of files, each by the name of the file, the first byte and the number of bytes.

        Several are requested at a time, see `AT_ONCE` and `BYTES_AT_ONCE`.
        """
        for group in _groups(wanted):
            names, starts, counts = zip(*group, strict=True)
            ends = [start + count for start, count in zip(starts, counts, strict=True)]
            with _explained():
                system = self._connected()
                places = [f"{self._top}/{name}" for name in names]
                found = system.cat_ranges(places, list(starts), ends, on_error="return")
            for part, count in zip(found, counts, strict=True):
                if isinstance(part, BaseException):
                    with _explained():
                        raise part
                if len(part) > count:
                    raise OSError(f"{_MORE}: {len(part):,} bytes instead of {count:,}")
                yield part

    def _check_ranges(self, name: str) -> None:
        """Request one byte, because a server that sends the whole file instead would fill the memory."""
        with self._system.open(f"{self._top}/{name}", "rb", block_size=1, cache_type="none", size=2) as file:
            file.seek(1)
            if len(file.read(1)) > 1:
                raise LimbeckError(f"{self.place}/{name} cannot be read: {_MORE}")

    def _connected(self) -> Any:
        if self._process != os.getpid():
            self._system, self._top = fsspec.core.url_to_fs(self.place)
            self._process = os.getpid()
        return self._system


def _groups(wanted: Iterable[tuple[str, int, int]]) -> Iterator[list[tuple[str, int, int]]]:
    group, size = list[tuple[str, int, int]](), 0
    for one in wanted:
        if len(group) == AT_ONCE or (group and size + one[2] > BYTES_AT_ONCE):
            yield group
            group, size = [], 0
        group.append(one)
        size += one[2]
    if group:
        yield group


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
        raise OSError(
            f"it is not there, it may not be read, or the server does not answer: {error.__cause__ or error}"
        ) from error
    except Exception as error:  # each package has its own errors
        told = _WHOLE if "range requests" in str(error) else f"{type(error).__name__}: {error}"
        raise OSError(told) from error
