"""What a backend is: how it writes a file, and how the file is run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
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

Metadata = Callable[[Path], str]
"""What a file says about itself, `Graph.card`."""


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
        add: writes other files into the folder, before the file is written.
        beside: the names of the other files.
        runtime: imports what runs the files in this process; None: their memory is not measured.
        metadata: reads what a file says about itself; None if only ``card.json`` says it.
        elsewhere: the versions of packages in another environment that writes the files; raises LimbeckError if they
            are missing.
        for_int8: the packages that int8 needs, too.
    """

    suffix: str
    modules: tuple[str, ...]
    extra: str
    export: Export
    load: Load | None
    precisions: tuple[Precision, ...]
    any_batch: bool
    add: Callable[[Graph, Path], None] | None = None
    beside: tuple[str, ...] = ()
    runtime: Callable[[], object] | None = None
    metadata: Metadata | None = None
    elsewhere: Callable[[], dict[str, str]] = dict
    for_int8: tuple[str, ...] = ()

    def check(self, name: str, precision: Precision = "fp32") -> None:
        """Raise LimbeckError unless the packages are installed."""
        missing = missing_of((*self.modules, *(self.for_int8 if precision == "int8" else ())))
        if missing:
            raise LimbeckError(f"the export to {name} needs {', '.join(missing)}: pip install 'limbeck[{self.extra}]'")

    def loader(self, name: str) -> Load:
        """What opens its files.

        Raises:
            LimbeckError: a package is missing, or its files do not run on this system.
        """
        self.check(name)
        if self.load is None:
            raise LimbeckError(f"files for {name} do not run on this system")
        return self.load


def missing_of(modules: Iterable[str]) -> list[str]:
    """Those of the modules that are not installed."""
    return [one for one in modules if find_spec(one) is None]


def version_of(module: str) -> str:
    """The version of an installed module."""
    try:
        return version(module)
    except PackageNotFoundError:  # its package has another name, such as onnxruntime-gpu
        return version(packages_distributions()[module][0])
