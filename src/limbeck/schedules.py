"""Weights and learning-rate factors as functions of a stage's progress in [0, 1)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from limbeck.errors import LimbeckError

if TYPE_CHECKING:  # a recipe's schedules are checked before torch, which core needs, is imported
    from limbeck.core import Schedule


def constant(*, value: float = 1.0) -> "Schedule":
    """The same value throughout."""
    return lambda progress: value


def linear(*, start: float = 1.0, end: float = 0.0, until: float = 1.0) -> "Schedule":
    """A straight line from ``start`` to ``end``, reached at progress ``until`` and held from there on."""
    _check_share("until", until)
    return lambda progress: start + (end - start) * min(progress / until, 1.0)


def cosine(*, end: float = 0.0, warmup: float = 0.0) -> "Schedule":
    """Half a cosine from 1 to ``end``, after a linear rise from 0 over the first ``warmup`` share of the stage."""
    if not 0 <= warmup < 1:
        raise LimbeckError(f"warmup is {warmup}: it is a share of the stage, at least 0 and below 1")

    def factor(progress: float) -> float:
        if progress < warmup:
            return progress / warmup
        return end + (1 - end) * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2

    return factor


def steps(*, at: Sequence[float], factor: float = 0.1) -> "Schedule":
    """1, multiplied by ``factor`` at each of the given shares of the stage."""
    for share in at:
        _check_share("at", share)
    return lambda progress: factor ** sum(progress >= share for share in at)


SCHEDULES: Mapping[str, Callable[..., "Schedule"]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "steps": steps,
}


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise LimbeckError(f"{name} is {value}: it is a share of the stage, above 0 and at most 1")
