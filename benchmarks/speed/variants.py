"""The variants of a step, by name."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from benchmarks.speed.floors import floor
from benchmarks.speed.limbeck_loop import LimbeckLoop, engine_of
from benchmarks.speed.measuring import Run
from benchmarks.speed.peer import Unavailable, torchdistill
from benchmarks.speed.plain import plain
from benchmarks.speed.workloads import Case
from limbeck.errors import LimbeckError
from limbeck.train.engine import Engine

VARIANTS = ("plain", "plain_tuned", "torchdistill", "live", "store", "floor_live", "floor_store", "live_compiled")
"""In the order in which they are built; the last one is left out where time is short."""


@dataclass(frozen=True)
class Variant:
    """One way to run a workload's steps."""

    run: Run  # returns the loss of the last step, or the mean over all steps
    student: nn.Module
    store_seconds: float = 0.0  # what building the store took


def make(name: str, case: Case, engine: Engine, folder: Path) -> Variant:
    """A variant on copies of the case's networks.

    Args:
        name: one of `VARIANTS`.
        case: networks, data and method.
        engine: limbeck's choice for this training; the tuned loop and the floors use its precision.
        folder: an empty one, in which a store may be built.

    Raises:
        Unavailable: the variant cannot run here.
    """
    networks = case.networks()
    student, teacher = networks["student"], networks["teacher"]
    bf16 = engine.precision == "bf16"
    match name:
        case "plain":
            losses = plain(case, student, teacher)
        case "plain_tuned":
            losses = plain(case, student, teacher, channels_last=True, bf16=bf16)
        case "torchdistill":
            losses = torchdistill(case, student, teacher)
        case "floor_live":
            losses = floor(case, student, teacher, bf16=bf16)
        case "floor_store":
            losses = floor(case, student, None, bf16=bf16)
        case "live":
            return Variant(LimbeckLoop(case, networks, engine), student)
        case "live_compiled":
            return Variant(LimbeckLoop(case, networks, _compiling(engine)), student)
        case "store":
            loop = LimbeckLoop(case, networks, engine, folder / "store")
            return Variant(loop, student, loop.store_seconds)
        case _:
            raise ValueError(f"there is no variant {name!r}: allowed are {', '.join(VARIANTS)}")
    return Variant(_steps(losses), student)


def _steps(losses: Iterator[float]) -> Run:
    def run(count: int) -> float:
        for _ in range(count):
            loss = next(losses)
        return loss

    return run


def _compiling(engine: Engine) -> Engine:
    try:
        return engine_of(engine.precision, compiled=True)
    except LimbeckError as error:
        raise Unavailable(str(error)) from error
