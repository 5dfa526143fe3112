"""What one or two threads, and threads that wait asleep or spinning, cost: alone and beside other work.

Every sample is a process of its own, because OpenMP reads its settings once; the settings take turns, round by round.
Prints a table in Markdown: the milliseconds of a step, median and range over the rounds, and times the first setting.

    python benchmarks/threads.py
    python benchmarks/threads.py --busy 2       # beside so many processes that compute without a pause
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from limbeck.bench.workloads import DIGITS, WORKLOADS, Workload, prepare

_MODELS = {"teacher": {"name": "resnet14"}, "student": {"name": "resnet8"}}
_KD = WORKLOADS["kd"].method

CASES = {
    "digits, two small MLPs": DIGITS,
    "the demo: digits, ResNet-14 to an MLP": Workload(
        "demo",
        _KD,
        **(_MODELS | {"student": {"name": "mlp", "hidden": [200, 200]}}),
        shape=(1, 8, 8),
        classes=10,
        batch_size=64,
        batches=16,
    ),
    "MNIST, two wide MLPs": WORKLOADS["mnist_mlp"],
    "CIFAR-10, ResNet-14 to ResNet-8": Workload("cifar", _KD, **_MODELS, shape=(3, 32, 32), classes=10, batch_size=64),
    "CIFAR-100, resnet32x4 to resnet8x4": WORKLOADS["kd"],
}

SETTINGS = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "all, asleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "all, as the commands": {"GOMP_SPINCOUNT": "30000"},
    "all, as they are": {},
}

BUSY = "while True: pass"


def child(name: str, seconds: float) -> None:
    """Train for about so long, after a while that does not count, and write the milliseconds of a step."""
    from limbeck.bench.own import Own
    from limbeck.train.engine import make_engine

    case = prepare(CASES[name])
    own = Own(case, case.networks(), make_engine(device="cpu", precision="32"))
    own(3)
    start, steps, size = time.perf_counter(), 0, 1
    while (passed := time.perf_counter() - start) < seconds:
        own(size)
        steps, size = steps + size, min(2 * size, 50)
    print(1000 * passed / steps)


def sample(name: str, setting: str, seconds: float) -> float:
    """The milliseconds of a step in a process with this setting."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, __file__, "--child", name, "--seconds", str(seconds)]
    done = subprocess.run(command, env={**kept, **SETTINGS[setting]}, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.seconds)
        return
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(arguments.busy)]
    try:
        print("| workload | " + " | ".join(SETTINGS) + " |")
        print("|---|" + "---|" * len(SETTINGS))
        for name in CASES:
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
