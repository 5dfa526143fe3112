"""Schedules: loss weights and learning-rate factors as functions of the progress of a stage in [0, 1)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from limbeck.errors import LimbeckError

if TYPE_CHECKING:  # core imports torch, and a recipe is validated without torch
    from limbeck.core import Schedule


def constant(*, value: float = 1.0) -> "Schedule":
    """Return the schedule of a constant value."""
    return lambda progress: value


def linear(*, start: float = 1.0, end: float = 0.0, until: float = 1.0) -> "Schedule":
    """Return a linear schedule from ``start`` to ``end``. It reaches ``end`` at progress ``until`` and stays there."""
    _check_share("until", until)
    return lambda progress: start + (end - start) * min(progress / until, 1.0)


def cosine(*, end: float = 0.0, warmup: float = 0.0) -> "Schedule":
    """Return a cosine schedule from 1 to ``end`` after a linear rise from 0 over a fraction ``warmup`` of the stage."""
    if not 0 <= warmup < 1:
        raise LimbeckError(f"got warmup {warmup}, allowed are fractions of the stage, 0 <= warmup < 1")

    def factor(progress: float) -> float:
        if progress < warmup:
            return progress / warmup
        return end + (1 - end) * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2

    return factor


def steps(*, at: Sequence[float], factor: float = 0.1) -> "Schedule":
    """Return a step schedule: 1, multiplied by ``factor`` at each fraction of the stage in ``at``."""
    for share in at:
        _check_share("at", share)
    return lambda progress: factor ** sum(progress >= share for share in at)


def after_warmup(schedule: "Schedule", warmup: float) -> "Schedule":
    """Return a linear rise from 0 over a fraction ``warmup`` of the stage; the schedule covers the rest."""

    def factor(progress: float) -> float:
        if progress < warmup:
            return schedule(0.0) * progress / warmup
        return schedule((progress - warmup) / (1 - warmup))

    return factor


SCHEDULES: Mapping[str, Callable[..., "Schedule"]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "steps": steps,
}


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise LimbeckError(f"got {name} {value}, allowed are fractions of the stage, 0 < {name} <= 1")
