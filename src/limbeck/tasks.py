"""The kinds of problem: what a network's output must be, and how good it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data import Data
from limbeck.evaluate import Figures, metrics


@dataclass(frozen=True)
class Task:
    """All that depends on the kind of problem."""

    check_data: Callable[[Data], None]
    """Raise LimbeckError where the data has nothing to learn."""

    check_output: Callable[[str, tuple[int, ...], Data], None]
    """(network's name for errors, its output's shape for one sample, the data); raise LimbeckError if it is wrong."""

    figures: Callable[..., Figures]
    """As `limbeck.evaluate.metrics`: (outputs, targets, *, teacher_logits, name, split, files) to figures."""

    score: Callable[[Tensor, Tensor], float]
    """(outputs, targets) to the number that is logged after each epoch; greater is better."""


def _check_classes(data: Data) -> None:
    if len(data.classes) < 2:
        raise LimbeckError(f"the data has {len(data.classes)} class, so there is nothing to learn: it takes 2 or more")


def _check_logits(name: str, shape: tuple[int, ...], data: Data) -> None:
    if shape != (len(data.classes),):
        raise LimbeckError(f"the {name} gives {shape} a sample, but the data has {len(data.classes)} classes")


def _accuracy(logits: Tensor, targets: Tensor) -> float:
    return (logits.argmax(dim=1) == targets).double().mean().item()


TASKS: Mapping[str, Task] = {"classification": Task(_check_classes, _check_logits, metrics, _accuracy)}
"""By name."""


def task_of(data: Data) -> Task:
    """The kind of problem that data is of."""
    return TASKS["classification"]
