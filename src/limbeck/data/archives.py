"""Zip files that may be damaged, or made to harm."""

import io
import weakref
import zipfile
from collections import Counter
from pathlib import Path

from limbeck.core import LimbeckError
from limbeck.data import bounds

_ENTRY = b"PK\x01\x02"  # what each entry of a zip file's table begins with
_LEAST = 46  # bytes of an entry in the table
_PACKED = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}


class _Table(io.BufferedReader):
    """A file of which a zip file's table is read only where it is within bounds."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > bounds.ZIP_TABLE_BYTES:
            raise LimbeckError(f"a table of {size:,} bytes; allowed are {bounds.ZIP_TABLE_BYTES:,}")
        data = super().read(size)
        if len(data) > _LEAST * bounds.ZIP_ENTRIES and data.count(_ENTRY) > bounds.ZIP_ENTRIES:
            raise LimbeckError(f"more than {bounds.ZIP_ENTRIES:,} files and folders")
        return data


class Archive:
    """A zip file's names and contents.

    Raises:
        LimbeckError: it is damaged, or greater than `limbeck.data.bounds` allows.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        try:
            table = _Table(io.FileIO(place))
            weakref.finalize(self, table.close)
            self._zip = zipfile.ZipFile(table)
        except Exception as error:  # damaged ones make zipfile raise anything
            raise LimbeckError(f"{place} is neither a folder nor a sound zip file: {error}") from error

    def names(self) -> list[str]:
        """Every file and folder; a folder's name ends with "/".

        Raises:
            LimbeckError: a name leads out of the zip file, is there twice, or is nested too deep.
        """
        names = self._zip.namelist()
        for name in names:
            if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
                raise LimbeckError(
                    f"{self._place} holds {name!r}; a name that leads out of the zip file is not allowed"
                )
            if name.count("/") > bounds.DEPTH:
                raise LimbeckError(f"{self._place} holds {name!r}; allowed are {bounds.DEPTH} folders in each other")
        files = Counter(name for name in names if not name.endswith("/"))
        twice = next((name for name, times in files.items() if times > 1), None)
        if twice is not None:
            raise LimbeckError(f"{self._place} holds {twice!r} twice; allowed is one file of a name")
        return names

    def size(self, name: str) -> int:
        """A file's declared size in bytes, unpacked."""
        return self._zip.getinfo(name).file_size

    def read(self, name: str, count: int) -> bytes:
        """The file's first bytes; no more than so many are ever unpacked.

        Raises:
            LimbeckError: it is packed in a way that cannot be unpacked bit by bit, or has fewer bytes than declared.
            Exception: what zipfile raises of what is damaged or encrypted.
        """
        info = self._zip.getinfo(name)
        if info.compress_type not in _PACKED:
            raise LimbeckError(f"packed by method {info.compress_type}; allowed are {', '.join(_PACKED.values())}")
        with self._zip.open(name) as file:
            data = file.read(count)
        if len(data) < min(count, info.file_size):
            raise LimbeckError(f"{len(data)} bytes, but the zip file says {info.file_size}")
        return data
