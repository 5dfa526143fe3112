"""How busy the machine was, and with whom: the cores that others took over a stretch of time."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
_WAITING = (3, 4)  # of the columns of a cpu line: idle, iowait
_COUNTED = 8  # guest and guest_nice are part of user and nice


@dataclass(frozen=True)
class Reading:
    """A moment: seconds since some beginning."""

    wall: float
    own: float  # this process' CPU time, all threads
    busy: float | None  # all CPUs' time at work, and that a hypervisor kept; None where the system does not say
    cpus: int


def parse(stat: str, ticks: int) -> tuple[float, int]:
    """Busy seconds over all CPUs, and their number, of the text of /proc/stat in units of 1 / ``ticks`` seconds."""
    lines = [line.split() for line in stat.splitlines() if line.startswith("cpu")]
    columns = [int(value) for value in lines[0][1 : 1 + _COUNTED]]
    busy = sum(value for position, value in enumerate(columns) if position not in _WAITING)
    return busy / ticks, len(lines) - 1


def read(stat: Path = STAT) -> Reading:
    """The machine at this moment."""
    busy, cpus = parse(stat.read_text(), os.sysconf("SC_CLK_TCK")) if stat.is_file() else (None, os.cpu_count() or 1)
    return Reading(time.perf_counter(), time.process_time(), busy, cpus)


def outside_cores(before: Reading, after: Reading) -> float | None:
    """How many cores others took on average between two readings, up to all; None where the system does not say.

    The kernel counts in ticks, 0.01 seconds on most systems: over 0.2 seconds one tick is 0.05 cores.
    """
    if before.busy is None or after.busy is None:
        return None
    others = after.busy - before.busy - (after.own - before.own)
    return min(max(others / (after.wall - before.wall), 0.0), float(after.cpus))
