"""The benchmark: what is measured, in which order, in how much time."""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.speed import measuring, overhead
from benchmarks.speed.measuring import Run
from benchmarks.speed.limbeck_loop import pick_engine
from benchmarks.speed.peer import Unavailable
from benchmarks.speed.report import Measured, report
from benchmarks.speed.variants import VARIANTS, make
from benchmarks.speed.workloads import WORKLOADS, Case, Workload, prepare
from limbeck.core import LimbeckError
from limbeck.errors import nearest
from limbeck.train.allocator import keep_memory
from limbeck.train.engine import Engine

LEAST = 5
"""Rounds: a median of fewer is not one."""

COMPILING = 20.0
"""Seconds kept free for it where time is short; it took 7 to 20 on 2 cores."""


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    rounds: int
    sample: float  # seconds of a sample, at most (one step, where that is longer)
    warm_up: float  # seconds of each variant before, besides its first step
    budget: float = inf  # seconds for all; kept as far as the least number of rounds of one step each allows


QUICK = Extent(rounds=5, sample=1.0, warm_up=0.2, budget=50.0)
"""Leaves 10 of 60 seconds to what comes before and after: imports, and the table."""

FULL = Extent(rounds=7, sample=2.0, warm_up=2.0)


@dataclass(frozen=True)
class Progress:
    """What is being measured now, and the share of the whole that is done."""

    text: str
    done: float


@dataclass(frozen=True)
class Report:
    """The end: all figures as plain values."""

    result: dict[str, Any]


def run_bench(
    *, quick: bool = False, workloads: Sequence[str] | None = None, rounds: int | None = None
) -> Iterator[Progress | Report]:
    """Measure limbeck's loop beside others, on the CPU. The last that is given is the `Report`.

    Args:
        quick: end within a minute, and measure ``kd`` alone unless others are named.
        workloads: names out of `benchmarks.speed.workloads.WORKLOADS`; None for all.
        rounds: at least `LEAST`.

    Raises:
        LimbeckError: there is no such workload, or there are too few rounds; at once.
    """
    names = list(workloads) if workloads is not None else ["kd"] if quick else list(WORKLOADS)
    for name in names:
        if name not in WORKLOADS:
            raise LimbeckError(f"there is no workload {name!r}: {nearest(name, WORKLOADS)}")
    extent = QUICK if quick else FULL
    count = extent.rounds if rounds is None else rounds
    if not names or count < LEAST:
        raise LimbeckError(
            f"got {len(names)} workloads and {count} rounds: allowed are 1 and more, and {LEAST} and more"
        )
    return bench([WORKLOADS[name] for name in names], Extent(count, extent.sample, extent.warm_up, extent.budget))


def bench(workloads: Sequence[Workload], extent: Extent, memory: str = "kd") -> Iterator[Progress | Report]:
    """As `run_bench`, of these workloads to this extent; the memory is that of the workload of that name."""
    start = time.perf_counter()
    until = start + extent.budget
    kept = keep_memory()
    work = _Work(len(workloads) * len(VARIANTS) * (1 + extent.rounds))
    with torch.random.fork_rng(devices=[]):
        yield work.step("start-up time", 0)
        startup = overhead.startup_seconds()
        yield work.step("peak memory", 0)
        peak = overhead.peak_memory(memory)
        yield work.step("overhead of a step", 0)
        loops = list(overhead.step_overhead(extent.rounds, extent.sample / 4, start + extent.budget / 3))
        measured = []
        for number, workload in enumerate(workloads):
            now = time.perf_counter()
            share = (until - now) / (len(workloads) - number)
            measured.append((yield from _measure(workload, extent, now + share, work)))
    yield Report(report(measured, loops, peak, startup, kept))


@dataclass
class _Work:
    """How much of the whole is done, in variants built and samples taken."""

    of: int
    done: int = 0

    def step(self, text: str, count: int = 1) -> Progress:
        self.done += count
        return Progress(text, min(self.done / self.of, 1.0))


@dataclass
class _Ready:
    """The variants that can run, warmed up."""

    runs: dict[str, Run] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # of a step, from the warming up
    costs: dict[str, float] = field(default_factory=dict)  # what is paid once
    skipped: dict[str, str] = field(default_factory=dict)  # variant to reason


def _measure(workload: Workload, extent: Extent, until: float, work: _Work) -> Generator[Progress, None, Measured]:
    with TemporaryDirectory() as folder:
        case = prepare(workload)
        engine = pick_engine(case)
        ready = _Ready()
        for name in VARIANTS:
            yield work.step(f"{workload.name}: {name}, first steps")
            if name == "live_compiled" and until - time.perf_counter() < _needs(ready, extent):
                ready.skipped[name] = f"no time left to compile, which takes up to {COMPILING:.0f} s"
            else:
                _build(name, case, engine, Path(folder), extent, ready)
        left = max(until - time.perf_counter(), 0.0)
        length = measuring.sample_seconds(ready.seconds, extent.rounds, left, extent.sample)
        steps = measuring.steps_for(ready.seconds, length)
        samples = []
        for sample in measuring.interleaved(ready.runs, steps, extent.rounds, until=until):
            samples.append(sample)
            yield work.step(f"{workload.name}: {sample.variant}, round {sample.round + 1} of {extent.rounds}")
    work.step("", extent.rounds * len(ready.skipped))
    return Measured(workload, engine.precision, engine.reason, samples, steps, ready.costs, ready.skipped)


def _build(name: str, case: Case, engine: Engine, folder: Path, extent: Extent, ready: _Ready) -> None:
    try:
        variant = make(name, case, engine, folder)
    except Unavailable as reason:
        ready.skipped[name] = str(reason)
        return
    first, last = measuring.warm_up(variant.run, extent.warm_up)
    ready.runs[name], ready.seconds[name] = variant.run, last
    if name == "store":
        ready.costs["store_build_s"] = variant.filling
    if name == "live_compiled":
        ready.costs["compile_s"] = variant.build_seconds + first - last


def _needs(ready: _Ready, extent: Extent) -> float:
    """Seconds that compiling needs, and the rounds after it with one step a sample."""
    return COMPILING + extent.rounds * (sum(ready.seconds.values()) + ready.seconds["live"])
