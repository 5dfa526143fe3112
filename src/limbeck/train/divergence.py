"""The means of the terms, and why one became NaN or infinite: searched for when it has happened, not at every step."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.core import Batch, LimbeckError, Stage, Sweep, Tap

_MOST_SECONDS = 60.0  # of reading the training set
_NAMED = 5  # samples in the message


class Diverged(LimbeckError):
    """A term or a weight became NaN or infinite."""

    exit_code: ClassVar[int] = 3


class NotFinite(Exception):
    """The first step of an epoch, from 0, with a NaN or infinite value, and the positions of those values.

    Without positions, weights are NaN or infinite.
    """

    def __init__(self, step: int, places: Sequence[int]) -> None:
        super().__init__()
        self.step, self.places = step, places


class Means:
    """The means of the steps' values, without waiting for the device at every step.

    Raises:
        NotFinite: a value is not finite; raised when the values are summed.
    """

    _MOST = 100  # steps whose values are summed at once: to sum at every step would cost more than the rest of the loop

    def __init__(self) -> None:
        self._waiting: list[Tensor] = []
        self._sums: list[list[float]] = []
        self._steps = 0

    def add(self, values: Sequence[Tensor]) -> None:
        """Add the values of a step, one for each term and the loss."""
        self._waiting += values
        self._steps += 1
        if self._steps % self._MOST == 0:
            self._sum(len(values))

    def read(self) -> list[float]:
        """Their means over the steps."""
        if self._waiting:
            self._sum(len(self._waiting) // (self._steps % self._MOST))
        return [math.fsum(sums) / self._steps for sums in zip(*self._sums, strict=True)]

    def _sum(self, values: int) -> None:
        steps = torch.stack(self._waiting).view(-1, values)
        sums: list[float] = steps.sum(0).tolist()
        self._sums.append(sums)
        self._waiting = []
        if not all(map(math.isfinite, sums)):
            bad = ~steps.isfinite()
            first = int(bad.any(dim=1).int().argmax())
            places = bad[first].nonzero().flatten().tolist()
            places = places or list(range(values))  # all are finite where their sum overflowed
            raise NotFinite(self._steps - len(steps) + first, places)


def explained(stage: Stage, epoch: int, first: NotFinite, steps: int, why: str) -> str:
    """What became NaN or infinite, and when, in which ``epoch`` (from 0) of so many steps; ``why`` is the `cause`."""
    names = [*stage.terms, "loss"]
    learning = " and ".join(stage.networks) or "the losses"
    what = f"{', '.join(names[place] for place in first.places)} became NaN or infinite at"
    if not first.places:
        what = f"weights of {learning} are NaN or infinite after"
    head = f"stage {stage.name!r}, epoch {epoch + 1}: {what} step {first.step + 1} of {steps}"
    if why:
        return f"{head}, because {why}; correct that, or leave these samples out"
    if epoch == 0 and first.step == 0 and first.places:
        return (
            f"{head}, before anything was learnt, from finite inputs: look for NaN in the weights and the forward of "
            f"{learning}, and in the loss"
        )
    return (
        f"{head}; the inputs and the frozen networks are finite: lower the learning rate or the term's weight, and "
        f"start again, because the weights of {learning} have no meaning any more"
    )


def cause(batch: Batch, read: Mapping[Tap, Tensor], sweep: Sweep) -> str:
    """Which of the inputs or of the frozen networks' tensors is not finite, and for which samples; "" where all are.

    Args:
        batch: that of the step.
        read: what the frozen networks gave on it.
        sweep: reads the training set, for a minute at most.
    """
    inputs = Tap("batch", "inputs")
    for tap, value in ({inputs: batch.inputs} | dict(read)).items():
        if not value.isfinite().all():
            found = set(_samples(value, batch.index))
            looked = found | set(batch.index.tolist())
            for bad, seen in _swept(tap, sweep):
                found |= bad
                looked |= seen
            place = f"the {tap.source}" if tap == Tap(tap.source) else f"the {tap.source}, at {tap},"
            what = "the inputs are NaN or infinite" if tap == inputs else f"{place} gives NaN or infinite values"
            share = f"{len(found)} of {len(looked)} training samples ({100 * len(found) / len(looked):.2g} %)"
            named = ", ".join(map(str, sorted(found)[:_NAMED])) + (", ..." if len(found) > _NAMED else "")
            return f"{what} for {share}, which are, counted from 0, {named}"
    return ""


def _swept(tap: Tap, sweep: Sweep) -> Iterable[tuple[set[int], set[int]]]:
    """For each batch, the samples whose tensor is not finite, and all samples."""
    until = time.monotonic() + _MOST_SECONDS
    for value, index in sweep(tap, Tap("batch", "index")):
        yield set(_samples(value, index)), set(index.tolist())
        if time.monotonic() > until:
            return


def _samples(value: Tensor, index: Tensor) -> list[int]:
    rows: list[int] = index[~value.flatten(1).isfinite().all(dim=1)].tolist()
    return rows
