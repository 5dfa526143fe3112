"""Read the images of a source into memory or leave them on disk; notes on the files that are skipped."""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import torch

from limbeck.core import LimbeckError
from limbeck.data.decoding import SUFFIXES, Header
from limbeck.data.images import Images, Inputs
from limbeck.data.sources.base import Progress
from limbeck.data.sources.images import Size, common_size, deep_note, look_at, read_images, were
from limbeck.data.trees import Files, Listing

_LOOKED_AT = 2000  # streamed images of which the header is read
_NOT_READ = frozenset({".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".raw", ".dng", ".cr2", ".nef"})
_ENDINGS = 5  # endings of skipped files that are listed


@dataclass(frozen=True)
class Reading:
    """How a source reads images; `limbeck.data.sources.folders.folder` describes the options.

    Raises:
        LimbeckError: an option is out of range, or needs streaming.
    """

    size: Size | None
    exif_orientation: bool
    streaming: bool
    workers: int | None
    transform: str | None
    progress: Progress | None
    together: int = 0  # see `Images`

    def __post_init__(self) -> None:
        for name, value in (("workers", self.workers), ("transform", self.transform)):
            if value is not None and not self.streaming:
                raise LimbeckError(f"{name} is {value!r}, but {name} needs streaming=True")
        if self.workers is not None and self.workers < 0:
            raise LimbeckError(f"workers is {self.workers}; allowed are 0 and greater")

    def inputs(self, reader: Files, parts: Sequence[tuple[str, ...]]) -> tuple[Sequence[Inputs], Sequence[str]]:
        """Return the images of each part, which is a tuple of file names, and notes for the user.

        Raises:
            LimbeckError: an image cannot be read, or does not fit the others; the images do not fit in memory.
        """
        names = [name for part in parts for name in part]  # at least one
        if not self.streaming:
            exif = self.exif_orientation
            pixels, notes = read_images(reader, names, self.size, exif_orientation=exif, progress=self.progress)
            return torch.split(pixels, [len(part) for part in parts]), notes
        looked = look_at(reader, names[:: -(-len(names) // _LOOKED_AT)], exif_orientation=self.exif_orientation)
        size, notes = self._streamed_size(reader.label(names[0]), looked)
        channels = max((one.channels for one in looked), default=3)
        deep = sum(one.deep for one in looked)
        if deep:
            notes.append(deep_note(deep, len(looked)))
        if self.transform is not None and (deep or channels != 3):
            raise LimbeckError(
                f"transform is {self.transform!r}, but some files are arrays or have more than 8 bits a channel; "
                "allowed with a transform are image files of 8 bits"
            )
        workers = _processors() if self.workers is None else self.workers
        images = Images(reader, (), size, channels, workers, self.transform, self.exif_orientation, deep=deep > 0)
        return [replace(images, names=part, together=self.together) for part in parts], notes

    def _streamed_size(self, first: str, looked: Sequence[Header]) -> tuple[Size, list[str]]:
        """The size of streamed images, of which at most a few thousand headers are read, and notes."""
        size, notes = self.size, list[str]()
        if size is None:
            if not looked:
                raise LimbeckError(f"{first} cannot be read as an image, nor can others")
            size, notes = common_size(one.size for one in looked)
        turned = sum(one.turned for one in looked)
        if turned:
            notes.append(
                f"{were(turned, 'image')} rotated or flipped according to their EXIF orientation, of the "
                f"{len(looked):,} that were checked"
            )
        return size, notes


def _processors() -> int:
    """The processors that this process may use, at most 4."""
    return min(4, len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)


def skipped(listing: Listing, used: Iterable[str], unused: str) -> list[str]:
    """Count the files that are not used by their endings, in notes for the user.

    Args:
        listing: all files.
        used: the names of the files that are used.
        unused: why an image is not used, such as "in no class folder".
    """
    rest = [name for name in set(listing.names).difference(used) if not name.endswith("/")]
    endings = Counter(PurePosixPath(name).suffix.lower()[:12] or "without ending" for name in rest)
    few = sorted(endings.items(), key=lambda one: (-one[1], one[0]))[:_ENDINGS]
    why = dict.fromkeys(SUFFIXES, f" ({unused})") | dict.fromkeys(_NOT_READ, " (not an image format that is read)")
    told = [f"{count:,} {ending}{why.get(ending, '')}" for ending, count in few]
    others = len(rest) - sum(count for _, count in few)
    told += [f"{others:,} others"] * (others > 0) + [f"{listing.hidden:,} hidden"] * (listing.hidden > 0)
    files = len(rest) + listing.hidden
    notes = [f"{were(files, 'file')} skipped: {', '.join(told)}"] if files else []
    folders = {"hidden folder": listing.hidden_folders, "circular link": listing.circular}
    return notes + [f"{were(count, what)} skipped" for what, count in folders.items() if count]
