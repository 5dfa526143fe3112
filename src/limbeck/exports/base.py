"""What a backend is: how it writes a file, and how the file is run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.exports.graph import Graph, Precision

Runner = Callable[[Tensor], Tensor]
"""Raw samples as the file reads them, (N, ...), to an output, (N, ...)."""

Export = Callable[[Graph, Path], dict[str, int] | None]
"""Writes a file, or a folder, and returns the fallbacks, see `limbeck.exports.card.Results`."""


class Load(Protocol):
    """Opens a file to run it."""

    def __call__(self, path: Path, output: int = 0) -> Runner:
        """Return what runs it and gives the output with this number."""


Metadata = Callable[[Path], str]
"""What a file says about itself, `Graph.card`."""


@dataclass(frozen=True)
class Exporter:
    """A backend.

    Attributes:
        suffix: of its files.
        modules: the packages with which it writes and runs files.
        extra: of limbeck, which installs them.
        export: writes a file, or a folder.
        load: opens a file to run it; None if this machine cannot.
        precisions: those that it can write.
        any_batch: whether a file may take any number of samples.
        metadata: reads what a file says about itself.
        runs_with: those of the packages that run a file.
        add: writes other files into the folder, before the file is written.
        beside: the names of the other files.
        runtime: imports what runs the files in this process; None: their memory is not measured.
        elsewhere: the versions of packages in another environment that writes the files; raises LimbeckError if they
            are missing.
        for_int8: the packages that int8 needs, too.
        calibrates: whether int8 needs samples, for the ranges of activations.
    """

    suffix: str
    modules: tuple[str, ...]
    extra: str
    export: Export
    load: Load | None
    precisions: tuple[Precision, ...]
    any_batch: bool
    metadata: Metadata
    runs_with: tuple[str, ...]
    add: Callable[[Graph, Path], None] | None = None
    beside: tuple[str, ...] = ()
    runtime: Callable[[], object] | None = None
    elsewhere: Callable[[], dict[str, str]] = dict
    for_int8: tuple[str, ...] = ()
    calibrates: bool = True

    def packages(self, precision: Precision) -> tuple[str, ...]:
        """Those that write and run a file."""
        return (*self.modules, *(self.for_int8 if precision == "int8" else ()))

    def check(self, what: str, packages: Iterable[str]) -> None:
        """Raise LimbeckError, which begins with ``what``, unless the packages are installed."""
        missing = missing_of(packages)
        if missing:
            raise LimbeckError(f"{what} needs {', '.join(missing)}: pip install 'limbeck[{self.extra}]'")

    def loader(self, name: str) -> Load:
        """What opens its files.

        Raises:
            LimbeckError: a package is missing, or its files do not run on this system.
        """
        self.check(f"a file for {name}", self.runs_with)
        if self.load is None:
            raise LimbeckError(f"files for {name} do not run on this system")
        return self.load


def check_quantised(found: bool, why: str = "no operator of the student is quantised") -> None:
    """Raise LimbeckError unless a file of int8 was ``found`` to have quantised operators."""
    if not found:
        raise LimbeckError(f"int8 changes nothing, because {why}: export another precision")


def missing_of(modules: Iterable[str]) -> list[str]:
    """Those of the modules that are not installed."""
    return [one for one in modules if find_spec(one) is None]


def version_of(module: str) -> str:
    """The version of an installed module."""
    try:
        return version(module)
    except PackageNotFoundError:  # its package has another name, such as onnxruntime-gpu
        return version(packages_distributions()[module][0])
