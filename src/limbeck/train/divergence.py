"""Why a term became NaN or infinite: looked for when it has happened, so that no step pays for it."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from limbeck.core import Batch, LimbeckError, Sweep, Tap

_MOST_SECONDS = 60.0  # of looking through the training set
_NAMED = 5  # samples


class Diverged(LimbeckError):
    """A term became NaN or infinite."""

    exit_code: ClassVar[int] = 1


class NotFinite(Exception):
    """The first step of an epoch, from 0, in which a value was NaN or infinite, and the places of those values."""

    def __init__(self, step: int, places: Sequence[int]) -> None:
        super().__init__()
        self.step, self.places = step, places


def cause(batch: Batch, read: Mapping[Tap, Tensor], sweep: Sweep) -> str:
    """Which of the inputs and of the frozen networks' tensors are not finite, of which samples; "" where all are.

    Args:
        batch: the one of the step.
        read: what the frozen networks gave on it.
        sweep: the way over the training set, of which as much is read as a minute allows.
    """
    inputs = Tap("batch", "inputs")
    for tap, value in ({inputs: batch.inputs} | dict(read)).items():
        if not value.isfinite().all():
            found = set(_samples(value, batch.index))
            looked = found | set(batch.index.tolist())
            for bad, seen in _swept(tap, sweep):
                found |= bad
                looked |= seen
            what = "the inputs are NaN or infinite" if tap == inputs else f"{_place(tap)} gives NaN or infinite values"
            share = f"{len(found)} of {len(looked)} training samples ({100 * len(found) / len(looked):.2g} %)"
            named = ", ".join(map(str, sorted(found)[:_NAMED])) + (", ..." if len(found) > _NAMED else "")
            return f"{what} for {share}, which are, counted from 0, {named}"
    return ""


def _place(tap: Tap) -> str:
    return f"the {tap.source}" if tap == Tap(tap.source) else f"the {tap.source}, at {tap},"


def _swept(tap: Tap, sweep: Sweep) -> Iterable[tuple[set[int], set[int]]]:
    """Batch by batch, the samples whose tensor is not finite, and all."""
    until = time.monotonic() + _MOST_SECONDS
    for value, index in sweep(tap, Tap("batch", "index")):
        yield set(_samples(value, index)), set(index.tolist())
        if time.monotonic() > until:
            return


def _samples(value: Tensor, index: Tensor) -> list[int]:
    rows: list[int] = index[~value.flatten(1).isfinite().all(dim=1)].tolist()
    return rows
