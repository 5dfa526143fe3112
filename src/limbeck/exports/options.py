"""What a user chooses of an exported file."""

from dataclasses import dataclass
from pathlib import Path

from limbeck.core import LimbeckError
from limbeck.errors import nearest
from limbeck.exports import EXPORTERS
from limbeck.exports.base import Exporter
from limbeck.exports.card import CARD
from limbeck.exports.graph import LAYOUTS, PRECISIONS, Layout, Precision

LARGEST_SIDE = 8192
"""Of an image that a file reads, in pixels."""


@dataclass(frozen=True)
class Options:
    """As the arguments of `limbeck.export`."""

    to: str = "onnx"
    precision: Precision = "fp32"
    batch: int | None = None
    layout: Layout = "nhwc"
    probabilities: bool = False
    runtime: Path | None = None
    size: tuple[int, int] | None = None

    @property
    def backend(self) -> Exporter:
        """What writes the file."""
        return EXPORTERS[self.to]

    @property
    def any_batch(self) -> bool:
        """Whether the file takes any number of samples."""
        return self.backend.any_batch and self.batch is None

    def check(self, folder: Path) -> None:
        """Refuse what is not possible, before anything is read.

        Raises:
            LimbeckError: a value is not allowed; a package is missing; ``folder`` holds something else than an export.
        """
        if self.to not in EXPORTERS:
            raise LimbeckError(f"there is no export to {self.to!r}: {nearest(self.to, EXPORTERS)}")
        for key, allowed in (("precision", PRECISIONS), ("layout", LAYOUTS)):
            value = getattr(self, key)
            if value not in allowed:
                raise LimbeckError(f"{key} is {value!r}: {nearest(value, allowed)}")
        if self.precision not in self.backend.precisions:
            raise LimbeckError(f"{self.to} has no {self.precision}: allowed are {', '.join(self.backend.precisions)}")
        if self.batch not in (None, 1):
            raise LimbeckError(f"batch is {self.batch}: allowed are 1, and None for any number of samples")
        if self.runtime is not None and self.backend.add is None:
            raise LimbeckError(f"{self.to} has no runtime: remove it, or export to web")
        if self.layout != "nhwc" and self.backend.add is not None:
            raise LimbeckError(f"the page of {self.to} reads images in nhwc, not in {self.layout}")
        if self.size is not None and not all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in self.size):
            raise LimbeckError(f"size is {self.size}: allowed are a height and a width of 1 to {LARGEST_SIDE} pixels")
        check_folder(folder)
        self.backend.check(f"the export to {self.to}", self.backend.packages(self.precision))
        self.backend.elsewhere()


def check_folder(folder: Path) -> None:
    """Refuse a folder in which there is something besides an export, because an export replaces all of it.

    Raises:
        LimbeckError: it is a link, or holds something else.
    """
    if folder.is_symlink():
        raise LimbeckError(f"{folder} is a link, which an export does not replace: choose another folder")
    if not folder.exists():
        return
    ours = {CARD, *(name for one in EXPORTERS.values() for name in (*one.beside, f"student{one.suffix}"))}
    inside = [one.name for one in folder.iterdir()] if folder.is_dir() else [folder.name]
    others = sorted(name for name in inside if name not in ours)
    if others or (inside and CARD not in inside):
        told = f"holds {others[0]}, which no export writes" if others else "holds no export"
        raise LimbeckError(f"{folder} exists and {told}: choose another folder")
