"""What a backend is: how it writes a file, and how the file is run."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.exports.graph import Graph, Precision
from limbeck.files.atomic import FULL, refusal

Runner = Callable[[Tensor], Tensor]
"""Raw samples as the file reads them, (N, ...), to the first output, (N, ...)."""

Export = Callable[[Graph, Path], None]
"""Writes a file, or a folder."""

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
    """

    suffix: str
    modules: tuple[str, ...]
    extra: str
    export: Export
    load: Load | None
    precisions: tuple[Precision, ...]
    any_batch: bool
    add: Export | None = None
    beside: tuple[str, ...] = ()
    runtime: Callable[[], object] | None = None
    metadata: Metadata | None = None

    def check(self, name: str) -> None:
        """Raise LimbeckError unless the packages are installed."""
        missing = missing_of(self.modules)
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


@contextmanager
def in_one_line(what: str, file: Path | None = None) -> Iterator[None]:
    """Turn what a backend or a network of the user raises into a LimbeckError of one line that begins with ``what``.

    Raises:
        OSError: the disk is full, also if the exception does not say so; ``file`` is what was written.
    """
    try:
        yield
    except LimbeckError:
        raise
    except Exception as error:
        cause = error if file is None or isinstance(error, OSError) else refusal(file)
        if isinstance(cause, OSError) and cause.errno in FULL:
            raise cause from error
        first: BaseException = error
        while first.__cause__ is not None:  # it names the operator
            first = first.__cause__
        why = next((line.strip() for line in str(first).splitlines() if line.strip()), type(first).__name__)
        raise LimbeckError(f"{what}: {why}") from error
