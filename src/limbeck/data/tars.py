"""Samples in uncompressed tar files, as the package webdataset writes them: one or more files with the same key each.

An image keeps its place in a tar file, and a hash of its beginning, in its name, such as
``train-0003.tar:1536+20480~8f2c5a0912d34e67:n01440764/10026.jpg``. So it can be read alone, in any order, by any
process, and no process needs a table of all places.
"""

import io
import os
import re
import tarfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from xxhash import xxh3_64_hexdigest

from limbeck.core import LimbeckError
from limbeck.data import bounds
from limbeck.data.decoding import SUFFIXES
from limbeck.data.trees import BEGINNING, Files

LABEL_BYTES = 2**16
"""The most bytes of a label."""

_OPEN = 32  # tar files that a process keeps open
_NAME = re.compile(r"((?:(?!\.\./)[^:/\\]+/)*[^:/\\]+):(\d+)\+(\d+)~([0-9a-f]{16}):")
_BLOCK = tarfile.BLOCKSIZE


class Sample(NamedTuple):
    """An image and its label."""

    name: str  # for `Tars`
    label: bytes | None  # what the file of the label contains; None: there is none


class Shards(Protocol):
    """Where tar files are: a `Folder`, or a `limbeck.data.remote.Server`. What cannot be read raises an OSError."""

    @property
    def place(self) -> Path | str:
        """For messages."""

    def open(self, name: str) -> AbstractContextManager[io.RawIOBase]:
        """A file to read from its beginning."""

    def parts(self, wanted: Iterable[tuple[str, int, int]]) -> Iterator[bytes]:
        """Parts of files, each by the name of the file, the first byte and the number of bytes."""


class Folder:
    """The files of a folder. An open file belongs to one process."""

    def __init__(self, place: Path) -> None:
        self.place = place.absolute()
        self._process: int | None = None
        self._open: dict[str, BinaryIO] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None, "_open": {}}

    def open(self, name: str) -> io.FileIO:
        """See `Shards`."""
        return io.FileIO(self.place / name)

    def parts(self, wanted: Iterable[tuple[str, int, int]]) -> Iterator[bytes]:
        """See `Shards`."""
        for name, start, count in wanted:
            file = self._file(name)
            file.seek(start)
            yield file.read(count)

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


class Tars(Files):
    """Reads images of tar files by their names.

    Raises:
        LimbeckError: an image cannot be read; the message names it.
    """

    def __init__(self, shards: Shards) -> None:
        self.place, self._shards = shards.place, shards

    def label(self, name: str) -> str:
        """What messages call the image: its name in the tar file, and the tar file."""
        found = self._match(name)
        return f"{name[found.end() :]} in {self.place}/{found[1]}"

    def __call__(self, name: str) -> bytes:
        """The whole image file."""
        return self.head(name, bounds.FILE_BYTES)[1]

    def head(self, name: str, count: int) -> tuple[int, bytes]:
        """The size of the image file in bytes, and its first ``count`` bytes."""
        ((_, data),) = self._read([name], count)
        return self._found(name)[2], data

    def several(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """The names with the whole image files, of which a server is asked for many at once."""
        return self._read(names, bounds.FILE_BYTES)

    def identity(self, name: str) -> str:
        """The name without the folder of the tar file, because that depends on where the other splits are."""
        shard, colon, rest = name.partition(":")
        return shard.rpartition("/")[2] + colon + rest

    def beginning(self, name: str) -> tuple[int, bytes]:
        """The size of the image file in bytes, and the hash of its beginning. Nothing is read."""
        *_, size, digest = self._found(name)
        return size, digest.encode()

    def _found(self, name: str) -> tuple[str, int, int, str]:
        """The tar file, the first byte, the number of bytes and the hash of the beginning."""
        found = self._match(name)
        return found[1], int(found[2]), int(found[3]), found[4]

    def _match(self, name: str) -> re.Match[str]:
        found = _NAME.match(name)
        if found is None:
            raise LimbeckError(f"{name} in {self.place} is not the name of a sample")
        return found

    def _read(self, names: Sequence[str], count: int) -> Iterator[tuple[str, bytes]]:
        wanted = [(shard, start, min(size, count)) for shard, start, size, _ in map(self._found, names)]
        done = 0
        try:
            for name, one, data in zip(names, wanted, self._shards.parts(wanted), strict=True):
                if len(data) != one[2]:
                    raise LimbeckError(f"{self.label(name)} cannot be read: the tar file is cut short")
                yield name, data
                done += 1
        except OSError as error:
            raise LimbeckError(f"{self.label(names[done])} cannot be read: {error}") from error


class _Bounded(io.BufferedReader):
    """A tar file of which a damaged header cannot make much be read."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= LABEL_BYTES + _BLOCK:
            raise tarfile.ReadError(f"a header or label of {size} bytes, allowed are {LABEL_BYTES:,}")
        return super().read(size)


def samples(shards: Shards, name: str, label: str) -> Iterator[Sample]:
    """The images of a tar file in order, with their labels. Of an image, only the beginning is read.

    Args:
        shards: where the tar file is.
        name: the tar file.
        label: the extension of the files of the labels, such as ``cls``.

    Raises:
        LimbeckError: it cannot be read; it is no uncompressed tar file, or is cut short; the files of a sample do not
            follow each other; a sample has two images, a label without an image, or a file whose extension is like
            that of labels instead of a label; a label or an image is too large.
    """
    where = f"{shards.place}/{name}"
    try:
        with shards.open(name) as raw, _Bounded(raw) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            size = file.seek(0, os.SEEK_END)
            yield from _samples(archive, where, name, label, size)
            file.seek(archive.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise LimbeckError(f"{where} is cut short: it has no end of a tar file")
    except (tarfile.TarError, ValueError, RecursionError, OverflowError) as error:  # of numbers and chains in headers
        raise LimbeckError(f"{where} is damaged, or no uncompressed tar file: {error}") from error
    except OSError as error:
        raise LimbeckError(f"{where} cannot be read: {error}") from error


def _samples(archive: tarfile.TarFile, where: str, shard: str, label: str, size: int) -> Iterator[Sample]:
    seen, beside, suspects = set[str](), set[str](), dict[str, str]()
    for key, files in groupby(_files(archive, where), key=lambda member: _key(member)[0]):
        if key in seen:
            raise LimbeckError(
                f"{where} has files with the key {key!r} in two places: the files of a sample must follow each other"
            )
        seen.add(key)
        image, text, others = "", None, list[str]()
        for member in files:
            if member.offset_data + member.size > size:
                raise LimbeckError(f"{where} is cut short: {member.name} ends after it")
            extension = _key(member)[1]
            if extension == label:
                _small(member, where, LABEL_BYTES)
                text = _read(archive, member, LABEL_BYTES)
            elif not member.name.lower().endswith(SUFFIXES):
                others.append(extension)
            elif image:
                raise LimbeckError(f"{where} has two images with the key {key!r}: a sample has one")
            else:
                _small(member, where, bounds.FILE_BYTES)
                beginning = xxh3_64_hexdigest(_read(archive, member, BEGINNING))
                image = f"{shard}:{member.offset_data}+{member.size}~{beginning}:{member.name}"
        if text is not None:
            beside.update(others)
        elif image:
            suspects |= {one: key for one in get_close_matches(label, others, n=1, cutoff=0.75) if one not in suspects}
        if image:
            yield Sample(image, text)
        elif text is not None:
            raise LimbeckError(f"{where} has the label {key}.{label}, but no image with this key")
    for extension, key in suspects.items():
        if extension not in beside:  # else it is another kind of file
            raise LimbeckError(f"{where} has {key}.{extension}, but no label {key}.{label}: rename it, or change label")


def _files(archive: tarfile.TarFile, where: str) -> Iterator[tarfile.TarInfo]:
    """The files that are not hidden."""
    for member in archive:
        archive.members.clear()  # type: ignore[attr-defined]  # which would hold all of them
        if member.islnk() or member.issym():
            advice = "GNU tar writes files instead with --dereference --hard-dereference"
            raise LimbeckError(f"{where} has the link {member.name}, and links are not read: {advice}")
        if member.isreg() and not member.name.rpartition("/")[2].startswith("."):
            yield member


def _key(member: tarfile.TarInfo) -> tuple[str, str]:
    """The key and the extension: before and after the first dot of the name without its folder."""
    folder, slash, name = member.name.rpartition("/")
    stem, _, extension = name.partition(".")
    return folder + slash + stem, extension


def _small(member: tarfile.TarInfo, where: str, most: int) -> None:
    if member.size > most:
        raise LimbeckError(f"{member.name} in {where} has {member.size:,} bytes, allowed are {most:,}")


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo, count: int) -> bytes:
    content = archive.extractfile(member)
    return b"" if content is None else content.read(min(member.size, count))
