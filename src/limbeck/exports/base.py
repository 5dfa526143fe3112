"""What a backend is: how it writes a file, and how the file is run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.exports.graph import Graph, Precision

Runner = Callable[[Tensor], Tensor]
"""Raw samples as the file reads them, (N, ...), to the first output, (N, ...)."""

Export = Callable[[Graph, Path], dict[str, int]]
"""Writes a file, or a folder, and returns the fallbacks, see `limbeck.exports.card.Results`."""

Load = Callable[[Path], Runner]
"""Opens a file to run it."""


@dataclass(frozen=True)
class Exporter:
    """A backend.

    Attributes:
        suffix: of its files.
        modules: the packages that it imports.
        extra: of limbeck, which installs them.
        export: writes a file, or a folder.
        load: opens a file to run it; None if this machine cannot.
        precisions: those that it can write.
        any_batch: whether a file may take any number of samples.
        beside: the names of other files in the folder, besides those that begin with ``student.``.
        elsewhere: the versions of packages in another environment that writes the files; raises LimbeckError if they
            are missing.
    """

    suffix: str
    modules: tuple[str, ...]
    extra: str
    export: Export
    load: Load | None
    precisions: tuple[Precision, ...]
    any_batch: bool
    beside: tuple[str, ...] = ()
    elsewhere: Callable[[], dict[str, str]] = dict

    def check(self, name: str) -> None:
        """Raise LimbeckError unless the packages are installed."""
        missing = missing_of(self.modules)
        if missing:
            raise LimbeckError(f"the export to {name} needs {', '.join(missing)}: pip install 'limbeck[{self.extra}]'")


def missing_of(modules: Iterable[str]) -> list[str]:
    """Those of the modules that are not installed."""
    return [one for one in modules if find_spec(one) is None]
