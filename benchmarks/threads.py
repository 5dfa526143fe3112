"""What one thread or all, waiting asleep or spinning, or two processes cost: alone and beside other work.

Every sample is a separate process, because OpenMP reads its settings once. The settings take turns, round by round.
Prints a table in Markdown: the milliseconds of a step, median and range over the rounds, and times the first setting.

    python -m benchmarks.threads
    python -m benchmarks.threads --busy 2       # beside two processes that compute without a pause
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace

from benchmarks.speed.workloads import DIGITS, WORKLOADS, Workload, prepare

_KD = WORKLOADS["kd"].method

CASES = {
    "digits, two small MLPs": DIGITS,
    "the demo: digits, ResNet-14 to an MLP": Workload(
        "demo",
        _KD,
        teacher={"name": "resnet14"},
        student={"name": "mlp", "hidden": [200, 200]},
        shape=(1, 8, 8),
        classes=10,
        batch_size=64,
        batches=16,
    ),
    "MNIST, two wide MLPs": WORKLOADS["mnist_mlp"],
    "CIFAR-10, ResNet-14 to ResNet-8": Workload(
        "cifar",
        _KD,
        teacher={"name": "resnet14"},
        student={"name": "resnet8"},
        shape=(3, 32, 32),
        classes=10,
        batch_size=64,
    ),
    "CIFAR-100, resnet32x4 to resnet8x4": WORKLOADS["kd"],
}

SETTINGS = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "all, asleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "all, as the commands": {"GOMP_SPINCOUNT": "30000"},
    "all, as they are": {},
    "two processes": {"OMP_NUM_THREADS": "1"},
}

BUSY = "while True: pass"


def child(name: str, seconds: float) -> None:
    """Warm up, train for about that many seconds, and print the milliseconds of a step."""
    from benchmarks.speed.limbeck_loop import LimbeckLoop, engine_of
    from limbeck.train.processes import processes

    case = prepare(CASES[name])
    with processes("cpu", os.getppid()) as ours:
        loop = LimbeckLoop(case, case.networks(), replace(engine_of("32"), processes=ours))
        loop(3)
        start, steps, size = time.perf_counter(), 0, 1
        while ours.first(lambda: time.perf_counter() - start < seconds):
            loop(size)
            steps, size = steps + size, min(2 * size, 50)
        if ours.rank == 0:
            print(1000 * (time.perf_counter() - start) / steps)


def sample(name: str, setting: str, seconds: float) -> float:
    """The milliseconds of a step in a process with this setting."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    start = [sys.executable, *(launcher if setting == "two processes" else [])]
    command = [*start, "-m", "benchmarks.threads", "--child", name, "--seconds", str(seconds)]
    done = subprocess.run(command, env={**kept, **SETTINGS[setting]}, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--workloads", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.seconds)
        return
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(arguments.busy)]
    try:
        print("| workload | " + " | ".join(SETTINGS) + " |")
        print("|---|" + "---|" * len(SETTINGS))
        for name in arguments.workloads:
            found: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
            for _ in range(arguments.rounds):
                for setting in SETTINGS:
                    found[setting].append(sample(name, setting, arguments.seconds))
            first = statistics.median(found["1 thread"])
            cells = [
                f"{statistics.median(values):.3g} [{min(values):.3g} - {max(values):.3g}], "
                f"{statistics.median(values) / first:.2f}"
                for values in found.values()
            ]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    finally:
        for process in busy:
            process.kill()


if __name__ == "__main__":
    main()
