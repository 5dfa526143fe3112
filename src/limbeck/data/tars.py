"""Samples in uncompressed tar files, as the package webdataset writes them: one or more files with the same key each.

An image keeps its place in a tar file in its name, such as ``train-0003.tar:1536+20480:n01440764/10026.jpg``, so that
it can be read alone, in any order, by any process, and no process needs a table of all places.
"""

import io
import os
import re
import tarfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from limbeck.core import LimbeckError
from limbeck.data import bounds
from limbeck.data.decoding import SUFFIXES

LABEL_BYTES = 2**16
"""The most bytes of a label."""

_OPEN = 32  # tar files that a process keeps open
_NAME = re.compile(r"([^:/\\]+):(\d+)\+(\d+):")
_BLOCK = tarfile.BLOCKSIZE


class Sample(NamedTuple):
    """An image and its label."""

    name: str  # for `Tars`
    label: bytes | None  # what the file of the label contains; None: there is none


class Tars:
    """Reads images of tar files in a folder by their names. An open file belongs to one process.

    Raises:
        LimbeckError: an image cannot be read; the message names it.
    """

    def __init__(self, place: Path) -> None:
        self.place = place.absolute()
        self._process: int | None = None
        self._open: dict[str, BinaryIO] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None, "_open": {}}

    def __call__(self, name: str) -> bytes:
        """The whole image file."""
        return self.head(name, bounds.FILE_BYTES)[1]

    def head(self, name: str, count: int) -> tuple[int, bytes]:
        """The size of the image file in bytes, and its first ``count`` bytes."""
        found = _NAME.match(name)
        if found is None:
            raise LimbeckError(f"{name} in {self.place} is not the name of a sample")
        shard, offset, size = found[1], int(found[2]), int(found[3])
        try:
            file = self._file(shard)
            file.seek(offset)
            data = file.read(min(size, count))
        except OSError as error:
            raise LimbeckError(f"{name} in {self.place} cannot be read: {error}") from error
        if len(data) < min(size, count):
            raise LimbeckError(f"{name} in {self.place} cannot be read: {shard} is cut short")
        return size, data

    def _file(self, shard: str) -> BinaryIO:
        if self._process != os.getpid():
            self._open, self._process = {}, os.getpid()
            weakref.finalize(self, _close, self._open)
        if shard not in self._open:
            if len(self._open) == _OPEN:
                self._open.pop(next(iter(self._open))).close()
            self._open[shard] = (self.place / shard).open("rb")
        return self._open[shard]


def _close(files: Mapping[str, BinaryIO]) -> None:
    for file in files.values():
        file.close()


class _Bounded(io.BufferedReader):
    """A tar file of which a damaged header cannot make much be read."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= LABEL_BYTES + _BLOCK:
            raise tarfile.ReadError(f"a header or label of {size} bytes, allowed are {LABEL_BYTES:,}")
        return super().read(size)


def samples(path: Path, label: str) -> Iterator[Sample]:
    """The images of a tar file in order, with their labels. No image is read.

    Args:
        path: the tar file.
        label: the extension of the files of the labels, such as ``cls``.

    Raises:
        LimbeckError: it is no uncompressed tar file, or is cut short; two samples have the same key; a sample has two
            images; a label or an image is too large.
    """
    try:
        size = path.stat().st_size
        with _Bounded(io.FileIO(path)) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            yield from _samples(archive, path, label, size)
            file.seek(archive.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise LimbeckError(f"{path} is cut short: it has no end of a tar file")
    except (tarfile.TarError, OSError) as error:
        raise LimbeckError(f"{path} is damaged, or no uncompressed tar file: {error}") from error


def _samples(archive: tarfile.TarFile, path: Path, label: str, size: int) -> Iterator[Sample]:
    seen, key, image, text = set[str](), "", "", None
    for member in archive:
        archive.members.clear()  # type: ignore[attr-defined]  # which would hold all of them
        if not member.isreg():
            continue
        folder, slash, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        if folder + slash + stem != key:
            if image:
                yield Sample(image, text)
            key, image, text = folder + slash + stem, "", None
            if key in seen:
                raise LimbeckError(f"{path} has two samples with the key {key!r}")
            seen.add(key)
        if member.offset_data + member.size > size:
            raise LimbeckError(f"{path} is cut short: {member.name} ends after it")
        if extension == label:
            if member.size > LABEL_BYTES:
                raise LimbeckError(f"{member.name} in {path} has {member.size:,} bytes, allowed are {LABEL_BYTES:,}")
            content = archive.extractfile(member)
            text = content.read(member.size) if content is not None else None
        elif name.lower().endswith(SUFFIXES):
            if image:
                raise LimbeckError(f"{path} has two images with the key {key!r}: a sample has one")
            if member.size > bounds.FILE_BYTES:
                raise LimbeckError(
                    f"{member.name} in {path} has {member.size:,} bytes, allowed are {bounds.FILE_BYTES:,}"
                )
            image = f"{path.name}:{member.offset_data}+{member.size}:{member.name}"
    if image:
        yield Sample(image, text)
