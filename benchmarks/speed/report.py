"""All figures of a benchmark as plain values, and the gates."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.speed.measuring import Sample, is_disturbed, ratios, spread
from benchmarks.speed.peer import installed
from benchmarks.speed.variants import VARIANTS
from benchmarks.speed.workloads import Workload
from limbeck.evaluate import machine
from limbeck.experiment.environment import environment

FLOORS = {"live": "floor_live", "live_compiled": "floor_live", "store": "floor_store"}
"""The work that limbeck's variants cannot do without, as eager networks do it; compiled ones may need less."""

GATES = {
    ("kd", "live"): 1.10,
    ("kd", "store"): 1.08,
    ("hint", "live"): 1.15,
    ("hint", "store"): 1.15,
    ("srrl", "live"): 1.15,
    ("srrl", "store"): 1.15,
}
"""By workload and variant, how many times its floor a step may take."""

MOST_OVERHEAD_US = 60.0
"""Microseconds that limbeck's step may take more than the step of the shortest loop."""

MOST_MEMORY = 1.15
"""Times the peak memory of the plain loop."""

MOST_STARTUP_S = 0.3
"""Seconds that ``limbeck --help`` may take."""


@dataclass(frozen=True)
class Measured:
    """A workload's samples, and how they were taken."""

    workload: Workload
    precision: str  # of limbeck, the tuned loop and the floors
    reason: str  # why this precision
    samples: Sequence[Sample]
    steps: Mapping[str, int]  # per sample, by variant
    costs: Mapping[str, float]  # seconds that are spent once
    skipped: Mapping[str, str]  # variant to reason


def report(
    measured: Sequence[Measured], loops: Sequence[Sample], peak: Mapping[str, float] | None, startup: float, kept: bool
) -> dict[str, Any]:
    """All figures, as values that JSON takes.

    Args:
        measured: the workloads.
        loops: samples of ``plain`` and ``live`` on tiny networks.
        peak: MB of ``plain`` and ``live`` on ``kd``; None if not measured.
        startup: seconds of ``limbeck --help``.
        kept: whether the allocator keeps the memory that a step frees.
    """
    plain, live = ([sample.seconds for sample in loops if sample.variant == name] for name in ("plain", "live"))
    over = spread([1e6 * (one - other) for one, other in zip(live, plain, strict=True)])
    times = {"plain_us": 1e6 * statistics.median(plain), "live_us": 1e6 * statistics.median(live)}
    workloads = {one.workload.name: _workload(one) for one in measured}
    outside = _outside(loops)
    gates = [
        _gate(
            f"{name}: {variant} over {FLOORS[variant]}",
            workloads[name]["over_floor"][variant]["median"],
            limit,
            workloads[name]["outside_cores"],
        )
        for (name, variant), limit in GATES.items()
        if name in workloads
    ]
    gates.append(_gate("overhead of a step, us", over["median"], MOST_OVERHEAD_US, outside["outside_cores"]))
    ratio = peak["live"] / peak["plain"] if peak else None
    if ratio is not None:
        gates.append(_gate("peak memory over plain", ratio, MOST_MEMORY, None))
    gates.append(_gate("limbeck --help, s", startup, MOST_STARTUP_S, None))
    return {
        "machine": {
            **environment(),
            "torchdistill": installed(),
            "device": "cpu",
            "allocator": "keeps memory" if kept else "unchanged",
        },
        "workloads": workloads,
        "step_overhead_us": over["median"],
        "step_overhead": {**over, **times, **outside},
        "peak_memory_mb": {**peak, "ratio": ratio} if peak else None,
        "startup_s": startup,
        "gates": gates,
    }


def _workload(measured: Measured) -> dict[str, Any]:
    batch_size, samples = measured.workload.batch_size, measured.samples
    speeds = {
        name: spread([batch_size / sample.seconds for sample in samples if sample.variant == name])
        for name in VARIANTS
        if name in measured.steps
    }
    return {
        "images_per_second": {name: speeds[name]["median"] if name in speeds else None for name in VARIANTS},
        "range": {name: [speeds[name]["least"], speeds[name]["most"]] if name in speeds else None for name in VARIANTS},
        "rounds": max(sample.round for sample in samples) + 1,
        **_outside(samples),
        "over_floor": {name: ratios(samples, name, under) for name, under in FLOORS.items() if name in speeds},
        "faster_than_plain": {name: ratios(samples, "plain", name) for name in speeds if name != "plain"},
        "batch_size": batch_size,
        "samples": measured.workload.batches * batch_size,
        "ends": measured.workload.ends,
        "steps_a_sample": dict(measured.steps),
        "precision": measured.precision,
        "precision_reason": measured.reason,
        **measured.costs,
        "skipped": dict(measured.skipped),
    }


def _outside(samples: Sequence[Sample]) -> dict[str, Any]:
    """How much of the machine other processes used during the samples: cores, and their share of all cores."""
    known = [sample.outside for sample in samples if sample.outside is not None]
    cores = statistics.mean(known) if known else None
    return {
        "outside_cores": cores,
        "outside_share": None if cores is None else cores / machine.read().cpus,
        "disturbed": sum(is_disturbed(sample.outside) for sample in samples),
        "repeated": sum(sample.repeated for sample in samples),
    }


def _gate(what: str, value: float, limit: float, outside: float | None) -> dict[str, Any]:
    """A figure and its limit; ``disturbed`` where other processes used so many cores that the figure says little."""
    return {"what": what, "value": value, "limit": limit, "holds": value <= limit, "disturbed": is_disturbed(outside)}
