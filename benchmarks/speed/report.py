"""What was measured as plain values, and as rows and sentences to show."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from benchmarks.speed.measuring import DISTURBED, Sample, ratios, spread
from benchmarks.speed.peer import installed
from benchmarks.speed.workloads import Workload
from limbeck.evaluate import machine
from limbeck.experiment.environment import environment

SHOWN = ("plain", "plain_tuned", "torchdistill", "live", "live_compiled", "store", "floor_live", "floor_store")
"""The variants in the order of tables and of the result."""

FLOORS = {"live": "floor_live", "live_compiled": "floor_live", "store": "floor_store"}
"""The work that each of limbeck's variants cannot do without. It is that of eager networks: compiled ones may need
less.
"""

GATES = {
    ("kd", "live"): 1.10,
    ("kd", "store"): 1.08,
    ("hint", "live"): 1.15,
    ("hint", "store"): 1.15,
    ("srrl", "live"): 1.15,
    ("srrl", "store"): 1.15,
}
"""How many times its floor a step of a workload's variant may take."""

MOST_OVERHEAD_US, MOST_MEMORY, MOST_STARTUP_S = 60.0, 1.15, 0.4
"""Of a step over the plain loop's; of the plain loop's peak; of the help."""


@dataclass(frozen=True)
class Measured:
    """A workload's samples, and how they were taken."""

    workload: Workload
    precision: str  # of limbeck, of the tuned loop and of the floors
    reason: str  # why that one
    samples: Sequence[Sample]
    steps: Mapping[str, int]  # of a sample, by variant
    costs: Mapping[str, float]  # seconds that are paid once
    skipped: Mapping[str, str]  # variant to reason


class Rows(NamedTuple):
    """A table: its title, then its headings and its lines, each with as many cells."""

    title: str
    lines: list[list[str]]


def report(
    measured: Sequence[Measured], loops: Sequence[Sample], peak: Mapping[str, float], startup: float, kept: bool
) -> dict[str, Any]:
    """All figures as plain values, as JSON takes them.

    Args:
        measured: the workloads.
        loops: samples of ``plain`` and ``live`` on networks of next to no work.
        peak: MB of the same two on a real workload.
        startup: seconds of the help.
        kept: whether the allocator keeps memory.
    """
    steps = {name: [sample.seconds for sample in loops if sample.variant == name] for name in ("plain", "live")}
    over = spread([1e6 * (live - plain) for plain, live in zip(steps["plain"], steps["live"], strict=True)])
    memory = {**peak, "ratio": peak["live"] / peak["plain"]}
    workloads = {one.workload.name: _workload(one) for one in measured}
    quiet = _quiet(loops)
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
    gates.append(_gate("overhead of a step, us", over.median, MOST_OVERHEAD_US, quiet["outside_cores"]))
    gates.append(_gate("peak memory, live over plain", memory["ratio"], MOST_MEMORY))
    gates.append(_gate("start-up of the command, s", startup, MOST_STARTUP_S))
    return {
        "machine": {
            **environment(),
            "torchdistill": installed(),
            "device": "cpu",
            "allocator": "keeps memory" if kept else "as it is",
        },
        "workloads": workloads,
        "step_overhead_us": over.median,
        "step_overhead": {
            **asdict(over),
            "plain_us": 1e6 * statistics.median(steps["plain"]),
            "live_us": 1e6 * statistics.median(steps["live"]),
            **quiet,
        },
        "peak_memory_mb": memory,
        "startup_s": startup,
        "gates": gates,
    }


def _workload(measured: Measured) -> dict[str, Any]:
    of = {name: [one.seconds for one in measured.samples if one.variant == name] for name in SHOWN}
    speeds = {
        name: spread([measured.workload.batch_size / seconds for seconds in of[name]]) for name in SHOWN if of[name]
    }

    def times(over: str, under: str) -> dict[str, float]:
        return asdict(ratios(measured.samples, over, under))

    return {
        "images_per_second": {name: speeds[name].median if name in speeds else None for name in SHOWN},
        "range": {name: [speeds[name].least, speeds[name].most] if name in speeds else None for name in SHOWN},
        "rounds": max(one.round for one in measured.samples) + 1,
        **_quiet(measured.samples),
        "over_floor": {name: times(name, under) for name, under in FLOORS.items() if name in speeds},
        "faster_than_plain": {name: times("plain", name) for name in speeds if name != "plain"},
        "batch_size": measured.workload.batch_size,
        "samples": measured.workload.batches * measured.workload.batch_size,
        "ends": measured.workload.ends,
        "steps_a_sample": dict(measured.steps),
        "precision": measured.precision,
        "precision_reason": measured.reason,
        **measured.costs,
        "skipped": dict(measured.skipped),
    }


def _quiet(samples: Sequence[Sample]) -> dict[str, Any]:
    """How much of the machine others took while these were taken: cores, and their share of all."""
    known = [sample.outside for sample in samples if sample.outside is not None]
    cores = statistics.mean(known) if known else None
    return {
        "outside_cores": cores,
        "outside_share": None if cores is None else cores / machine.read().cpus,
        "disturbed": sum(sample.disturbed for sample in samples),
        "repeated": sum(sample.repeated for sample in samples),
    }


def _gate(what: str, value: float, limit: float, outside: float | None = None) -> dict[str, Any]:
    """A figure and what it may be at most; ``disturbed`` where others took so many cores that it says little."""
    disturbed = outside is not None and outside > DISTURBED
    return {"what": what, "value": value, "limit": limit, "holds": value <= limit, "disturbed": disturbed}


def rows(result: Mapping[str, Any]) -> Iterator[Rows]:
    """One table a workload."""
    for name, found in result["workloads"].items():
        lines = [["", "images/s", "range", "x plain", "time / floor"]]
        for variant, speed in found["images_per_second"].items():
            if speed is None:
                lines.append([variant, "-", "", "", ""])
                continue
            least, most = found["range"][variant]
            faster, over = found["faster_than_plain"].get(variant), found["over_floor"].get(variant)
            lines.append(
                [
                    variant,
                    f"{speed:,.1f}",
                    f"{least:,.1f} - {most:,.1f}",
                    _spread(faster) if faster else "1",
                    _spread(over) if over else "",
                ]
            )
        yield Rows(f"{name}, batches of {found['batch_size']}, {_precision(found)}, {found['rounds']} rounds", lines)


def sentences(result: Mapping[str, Any]) -> Iterator[str]:
    """What the tables do not say, one line each."""
    for name, found in result["workloads"].items():
        cores = found["outside_cores"]
        others = "what others took is not known" if cores is None else f"others took {cores:.2f} cores on average"
        yield (
            f"{name}: {others}; {found['repeated']} samples repeated, {found['disturbed']} kept although "
            f"others took more than {DISTURBED:g} of a core"
        )
        if found["ends"]:
            yield f"{name}: plain and plain_tuned also run the layers above the hint, as people write it"
        if "compile_s" in found:
            yield f"{name}: compiling took {found['compile_s']:.1f} s, once"
        if "store_build_s" in found:
            seconds = found["store_build_s"]
            yield f"{name}: the store of its {found['samples']:,} samples was filled in {seconds:.1f} s, once"
        yield from (f"{name}: no {variant}: {reason}" for variant, reason in found["skipped"].items())
    over, memory = result["step_overhead"], result["peak_memory_mb"]
    yield (
        f"a step of a tiny network: plain {over['plain_us']:.0f} us, live {over['live_us']:.0f} us, "
        f"{over['median']:+.0f} us [{over['least']:+.0f} to {over['most']:+.0f}]"
    )
    yield f"peak memory: plain {memory['plain']:,.0f} MB, live {memory['live']:,.0f} MB, {memory['ratio']:.2f} times"
    yield f"start-up of the command: {result['startup_s']:.2f} s"
    for gate in result["gates"]:
        word = "holds" if gate["holds"] else "MISSED"
        doubt = ", on a machine that others used too: measure again" if gate["disturbed"] else ""
        yield f"{word}: {gate['what']}: {gate['value']:.3g}, at most {gate['limit']:g}{doubt}"


def _precision(found: Mapping[str, Any]) -> str:
    """Which loops run in which: those of others, but for the tuned one, know of 32 bits alone."""
    reason = found["precision_reason"]
    if found["precision"] != "bf16":
        return f"32 bits ({reason})"
    return f"limbeck, plain_tuned and the floors in bfloat16 ({reason}), plain and torchdistill in 32 bits"


def _spread(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f} [{found['least']:.2f} - {found['most']:.2f}]"
