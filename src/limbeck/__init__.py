"""Knowledge distillation: a trained teacher in, a small student out, with evidence of what distilling brought."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.api import compare, distill
    from limbeck.comparison.results import ComparisonResult
    from limbeck.core import Batch, LimbeckError, Setup, Stage, Tap, Term, from_student, from_teacher
    from limbeck.data import Augment, Data, arrays, dataset, load
    from limbeck.evaluate.deferral import Deferred
    from limbeck.experiment.results import RunResult
    from limbeck.exports.compress import Compressed, compress
    from limbeck.exports.deferring import Deferral
    from limbeck.exports.make import Exported, export
    from limbeck.models import load_network
    from limbeck.models.inputs import Input

__version__ = version("limbeck")

_HOMES = {
    "core": ("Batch", "LimbeckError", "Setup", "Stage", "Tap", "Term", "from_student", "from_teacher"),
    "data": ("Augment", "Data", "arrays", "dataset", "load"),
    "models": ("load_network",),
    "models.inputs": ("Input",),
    "evaluate.deferral": ("Deferred",),
    "experiment.results": ("RunResult",),
    "api": ("compare", "distill"),
    "comparison.results": ("ComparisonResult",),
    "exports.compress": ("Compressed", "compress"),
    "exports.deferring": ("Deferral",),
    "exports.make": ("Exported", "export"),
}

__all__ = [
    "Augment",
    "Batch",
    "ComparisonResult",
    "Compressed",
    "Data",
    "Deferral",
    "Deferred",
    "Exported",
    "Input",
    "LimbeckError",
    "RunResult",
    "Setup",
    "Stage",
    "Tap",
    "Term",
    "arrays",
    "compare",
    "compress",
    "dataset",
    "distill",
    "export",
    "from_student",
    "from_teacher",
    "load",
    "load_network",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the command line starts without torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"limbeck.{home}"), name)
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
