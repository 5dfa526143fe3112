"""Zip files that may be damaged or malicious."""

import io
import weakref
import zipfile
from collections import Counter
from pathlib import Path

from limbeck.core import LimbeckError
from limbeck.data import bounds

_ENTRY = b"PK\x01\x02"  # the first bytes of each entry in a zip file's table
_LEAST = 46  # bytes of the shortest entry in the table
_PACKED = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}


class _Table(io.BufferedReader):
    """A zip file whose table is read only if it is within `limbeck.data.bounds`."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > bounds.ZIP_TABLE_BYTES:
            raise LimbeckError(f"a table of {size:,} bytes; allowed are {bounds.ZIP_TABLE_BYTES:,}")
        data = super().read(size)
        if len(data) > _LEAST * bounds.ZIP_ENTRIES and data.count(_ENTRY) > bounds.ZIP_ENTRIES:
            raise LimbeckError(f"too many files and folders; allowed are {bounds.ZIP_ENTRIES:,}")
        return data


class Archive:
    """The names and contents of a zip file.

    Raises:
        LimbeckError: the zip file is damaged, or larger than `limbeck.data.bounds` allows.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        try:
            table = _Table(io.FileIO(place))
            weakref.finalize(self, table.close)
            self._zip = zipfile.ZipFile(table)
        except Exception as error:  # zipfile raises anything for a damaged file
            raise LimbeckError(f"{place} is neither a folder nor a valid zip file: {error}") from error

    def names(self) -> list[str]:
        """Every file and folder; a folder's name ends with "/".

        Raises:
            LimbeckError: a name leads out of the zip file, occurs twice, or is nested too deep.
        """
        names = self._zip.namelist()
        for name in names:
            if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
                raise LimbeckError(f"{self._place} holds {name!r}; allowed are names that stay inside the zip file")
            if name.count("/") > bounds.DEPTH:
                raise LimbeckError(f"{self._place} holds {name!r}; allowed are {bounds.DEPTH} nested folders")
        files = Counter(name for name in names if not name.endswith("/"))
        twice = next((name for name, times in files.items() if times > 1), None)
        if twice is not None:
            raise LimbeckError(f"{self._place} contains {twice!r} twice; file names must be unique")
        return names

    def size(self, name: str) -> int:
        """A file's declared size in bytes, unpacked."""
        return self._zip.getinfo(name).file_size

    def read(self, name: str, count: int) -> bytes:
        """The first bytes of a file; at most ``count`` bytes are unpacked.

        Raises:
            LimbeckError: the file is neither stored nor deflated, or has fewer bytes than declared.
            Exception: what zipfile raises for a damaged or encrypted file.
        """
        info = self._zip.getinfo(name)
        if info.compress_type not in _PACKED:
            raise LimbeckError(
                f"compressed with method {info.compress_type}; allowed are {', '.join(_PACKED.values())}"
            )
        with self._zip.open(name) as file:
            data = file.read(count)
        if len(data) < min(count, info.file_size):
            raise LimbeckError(f"{len(data)} bytes, but the zip file says {info.file_size}")
        return data
