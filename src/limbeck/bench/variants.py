"""The variants of a step by name, ready to run."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from limbeck.bench.floors import floor
from limbeck.bench.own import Own
from limbeck.bench.peer import Unavailable, torchdistill
from limbeck.bench.plain import plain
from limbeck.bench.workloads import Case
from limbeck.core import LimbeckError
from limbeck.train.engine import Engine, make_engine

VARIANTS = ("plain", "plain_tuned", "torchdistill", "live", "store", "floor_live", "floor_store", "live_compiled")
"""In the order in which they are built: last what may be left out for want of time."""


@dataclass(frozen=True)
class Variant:
    """One way to run a workload's steps."""

    run: Callable[[int], float]  # that many steps; gives the last one's loss, or their mean
    student: nn.Module
    build_seconds: float
    filling: float = 0.0  # seconds of these that a store's filling took


def make(name: str, case: Case, engine: Engine, folder: Path) -> Variant:
    """A variant on copies of the case's networks.

    Args:
        name: one of `VARIANTS`.
        case: networks, data and method.
        engine: what limbeck picked for this training; the tuned loop and the floors have its precision.
        folder: an empty one, where a store may be put.

    Raises:
        Unavailable: it cannot run here.
    """
    start = time.perf_counter()
    networks = case.networks()
    student, teacher = networks["student"], networks["teacher"]
    bf16 = engine.precision == "bf16"
    run: Callable[[int], float]
    filling = 0.0
    match name:
        case "plain":
            run = _steps(plain(case, student, teacher))
        case "plain_tuned":
            run = _steps(plain(case, student, teacher, channels_last=True, bf16=bf16))
        case "torchdistill":
            run = _steps(torchdistill(case, student, teacher))
        case "live":
            run = Own(case, networks, engine)
        case "live_compiled":
            run = Own(case, networks, _compiling(engine))
        case "store":
            run = own = Own(case, networks, engine, folder / "store")
            filling = own.filling
        case "floor_live":
            run = _steps(floor(case, student, teacher, bf16=bf16))
        case "floor_store":
            run = _steps(floor(case, student, None, bf16=bf16))
        case _:
            raise ValueError(f"there is no variant {name!r}")
    return Variant(run, student, time.perf_counter() - start, filling)


def _steps(losses: Iterator[float]) -> Callable[[int], float]:
    def run(count: int) -> float:
        for _ in range(count):
            loss = next(losses)
        return loss

    return run


def _compiling(engine: Engine) -> Engine:
    try:
        return make_engine(device="cpu", precision="bf16" if engine.precision == "bf16" else "32", compile=True)
    except LimbeckError as error:
        raise Unavailable(str(error)) from error
