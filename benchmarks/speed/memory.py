"""The peak memory of a few steps, each loop in a process of its own: ``python -m benchmarks.speed.memory plain kd``."""

import os
import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.speed.workloads import WORKLOADS, Case, prepare
from limbeck.train.allocator import keep_memory

STEPS = 2
"""The optimizer's state exists after the first step; the second one needs it beside everything else."""

STATUS = Path("/proc/self/status")


def peak_memory(workload: str) -> dict[str, float]:
    """The peak resident memory in MB of ``plain`` and of ``live`` on the workload of that name, in 32 bits.

    Raises:
        subprocess.CalledProcessError: one of the processes failed.
    """
    command = (sys.executable, "-m", "benchmarks.speed.memory")
    single = {**os.environ, "OMP_NUM_THREADS": "1"}
    return {
        name: float(subprocess.run([*command, name, workload], check=True, env=single, stdout=subprocess.PIPE).stdout)
        for name in ("plain", "live")
    }


def train(variant: str, case: Case) -> None:
    """Run `STEPS` steps of ``plain`` or ``live``, importing only what each needs."""
    networks = case.networks()
    if variant == "plain":
        from benchmarks.speed.plain import plain

        losses = plain(case, networks["student"], networks["teacher"])
        for _ in range(STEPS):
            next(losses)
    else:
        from benchmarks.speed.limbeck_loop import LimbeckLoop, engine_of

        LimbeckLoop(case, networks, engine_of("32"))(STEPS)


def peak_mb(status: Path = STATUS) -> float:
    """The peak memory of this process in MB (10^6 bytes).

    Without /proc it is ru_maxrss (bytes on macOS); on Linux that one includes the parent's memory at the start.
    """
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    keep_memory()
    train(sys.argv[1], prepare(WORKLOADS[sys.argv[2]]))
    print(peak_mb())
