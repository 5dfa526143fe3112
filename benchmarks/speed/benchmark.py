"""What is measured, in which order and for how long."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.speed import measuring, overhead
from benchmarks.speed.limbeck_loop import pick_engine
from benchmarks.speed.measuring import Run
from benchmarks.speed.memory import peak_memory
from benchmarks.speed.peer import Unavailable
from benchmarks.speed.report import Measured, report
from benchmarks.speed.variants import VARIANTS, make
from benchmarks.speed.workloads import Workload, prepare
from limbeck.train.allocator import keep_memory

LEAST_ROUNDS = 3
"""A median of fewer says little."""

OVERHEAD_ROUNDS = 9
"""Of the overhead of a step, which is a small difference; a round takes a second."""

COMPILING = 20.0
"""Seconds reserved for compiling where time is limited; it took 7 to 20 on 2 cores."""


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    rounds: int
    sample: float  # seconds of a sample, at most; a sample has at least one step
    warm_up: float  # seconds that each variant runs before, after its first step
    budget: float = inf  # seconds for everything; every variant runs one step a round even where that takes longer
    memory: bool = True  # whether peak memory is measured


QUICK = Extent(rounds=3, sample=1.0, warm_up=0.2, budget=50.0, memory=False)
"""Leaves 10 of 60 seconds to the imports before and the table after."""

FULL = Extent(rounds=7, sample=2.0, warm_up=2.0)


def measure(workloads: Sequence[Workload], extent: Extent, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure limbeck's loop beside others, on the CPU. PyTorch's global generator stays as it is.

    Args:
        workloads: at least one.
        extent: how much is measured.
        say: called with what is being measured now.

    Returns:
        All figures as values that JSON takes; see `report`.
    """
    start = time.perf_counter()
    end = start + extent.budget
    kept = keep_memory()
    with torch.random.fork_rng(devices=[]):
        say("start-up time")
        startup = overhead.startup_seconds()
        say("overhead of a step")
        loops = list(overhead.step_overhead(OVERHEAD_ROUNDS, extent.sample / 4, start + extent.budget / 6))
        peak = None
        if extent.memory:
            say("peak memory")
            peak = peak_memory("kd")
        measured = []
        for number, workload in enumerate(workloads):
            now = time.perf_counter()
            measured.append(_measure(workload, extent, now + (end - now) / (len(workloads) - number), say))
    return report(measured, loops, peak, startup, kept)


def _measure(workload: Workload, extent: Extent, end: float, say: Callable[[str], None]) -> Measured:
    """Build and warm up every variant, then measure them in turn."""
    case = prepare(workload)
    engine = pick_engine(case)
    runs: dict[str, Run] = {}
    step_seconds: dict[str, float] = {}  # of each variant, from its warm-up
    costs: dict[str, float] = {}
    skipped: dict[str, str] = {}
    with TemporaryDirectory() as folder:
        for name in VARIANTS:
            say(f"{workload.name}: {name}, first steps")
            start = time.perf_counter()
            if name == "live_compiled" and end - start < _compiling_seconds(step_seconds, extent.rounds):
                skipped[name] = f"no time left to compile, which takes up to {COMPILING:.0f} s"
                continue
            try:
                variant = make(name, case, engine, Path(folder))
            except Unavailable as reason:
                skipped[name] = str(reason)
                continue
            build_seconds = time.perf_counter() - start
            first, last = measuring.warm_up(variant.run, extent.warm_up)
            runs[name], step_seconds[name] = variant.run, last
            if name == "store":
                costs["store_build_s"] = variant.store_seconds
            if name == "live_compiled":
                costs["compile_s"] = build_seconds + first - last
        left = max(end - time.perf_counter(), 0.0)
        steps = measuring.steps_for(
            step_seconds, measuring.sample_seconds(step_seconds, extent.rounds, left, extent.sample)
        )
        samples = []
        for sample in measuring.interleaved(runs, steps, extent.rounds, end=end):
            samples.append(sample)
            say(f"{workload.name}: {sample.variant}, round {sample.round + 1} of {extent.rounds}")
    return Measured(workload, engine.precision, engine.reason, samples, steps, costs, skipped)


def _compiling_seconds(step_seconds: dict[str, float], rounds: int) -> float:
    """What compiling takes, and the rounds after it with one step a sample."""
    return COMPILING + rounds * (sum(step_seconds.values()) + step_seconds["live"])
