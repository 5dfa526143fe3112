"""A process of its own that trains a few steps and says how much memory that took at most.

python -m limbeck.bench.memory plain kd
"""

import resource
import sys
from pathlib import Path

from limbeck.bench.workloads import WORKLOADS, Case, prepare
from limbeck.train.allocator import keep_memory

STEPS = 2
"""The optimizer's state is there after the first; the second needs it beside all else."""

STATUS = Path("/proc/self/status")


def train(variant: str, case: Case) -> None:
    """Run `STEPS` steps of ``plain`` or ``live``, both in 32 bits, importing only what each needs."""
    networks = case.networks()
    if variant == "plain":
        from limbeck.bench.plain import plain

        losses = plain(case, networks["student"], networks["teacher"])
        for _ in range(STEPS):
            next(losses)
    else:
        from limbeck.bench.own import Own
        from limbeck.train.engine import make_engine

        Own(case, networks, make_engine(device="cpu", precision="32"))(STEPS)


def peak_mb(status: Path = STATUS) -> float:
    """The most memory that this process had in use so far, in MB of 10^6 bytes.

    Where there is no /proc, ru_maxrss (bytes on macOS). On Linux that one would be wrong: a process starts with its
    parent's.
    """
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e6


def main(variant: str, workload: str) -> None:
    """Train and write the peak."""
    keep_memory()
    train(variant, prepare(WORKLOADS[workload]))
    sys.stdout.write(f"{peak_mb()}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
