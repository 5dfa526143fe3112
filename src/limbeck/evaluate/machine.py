"""The load of the machine: the cores that other processes used over a time interval."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
_WAITING = (3, 4)  # the columns idle and iowait of a cpu line
_COUNTED = 8  # guest and guest_nice are part of user and nice


@dataclass(frozen=True)
class Reading:
    """The clocks of the machine at one time, in seconds."""

    wall: float
    own: float  # CPU time of this process, all threads
    busy: float | None  # busy time of all CPUs, including time taken by a hypervisor; None if unknown
    cpus: int


def parse(stat: str, ticks: int) -> tuple[float, int]:
    """Return the busy seconds of all CPUs and their number from the text of /proc/stat, with ``ticks`` per second."""
    lines = [line.split() for line in stat.splitlines() if line.startswith("cpu")]
    columns = [int(value) for value in lines[0][1 : 1 + _COUNTED]]
    busy = sum(value for position, value in enumerate(columns) if position not in _WAITING)
    return busy / ticks, len(lines) - 1


def read(stat: Path = STAT) -> Reading:
    """Read the clocks of the machine."""
    busy, cpus = parse(stat.read_text(), os.sysconf("SC_CLK_TCK")) if stat.is_file() else (None, os.cpu_count() or 1)
    return Reading(time.perf_counter(), time.process_time(), busy, cpus)


def outside_cores(before: Reading, after: Reading) -> float | None:
    """Return the mean number of cores that other processes used between two readings, or None if unknown.

    The kernel counts in ticks of 0.01 seconds on most systems: over 0.2 seconds, one tick is 0.05 cores.
    """
    if before.busy is None or after.busy is None:
        return None
    others = after.busy - before.busy - (after.own - before.own)
    return min(max(others / (after.wall - before.wall), 0.0), float(after.cpus))
