"""How fast a teacher is read while its store is built: by PyTorch, by its compiler, through OpenVINO.

Prints a table in Markdown: images a second of resnet32x4 in batches of 64, median and range of rounds in which the
runtimes take turns, and times PyTorch's. Making what is run is not counted.

    python benchmarks/runtimes.py
"""

import argparse
import statistics
import time
from contextlib import ExitStack

from limbeck.bench.own import first_stage, training_of
from limbeck.bench.workloads import WORKLOADS, prepare
from limbeck.experiment.caching import reading, teacher_taps
from limbeck.experiment.plan import training_batches
from limbeck.train.engine import make_engine

RUNTIMES = {"PyTorch": ("torch", False), "PyTorch, compiled": ("torch", True), "OpenVINO": ("openvino", False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    case = prepare(WORKLOADS["kd"])
    networks, training = case.networks(), training_of(case)
    taps = teacher_taps(first_stage(case, networks, training))
    with ExitStack() as stack:
        reads = {}
        for name, (runtime, compiles) in RUNTIMES.items():
            engine = make_engine(device="cpu", precision="32", compile=compiles)
            batches = training_batches(case.data, training, seed=0, engine=engine)
            few, batch = batches.example_inputs(), next(iter(batches.view(0)))
            reads[name] = stack.enter_context(reading(networks["teacher"], taps, few, engine, runtime))
            reads[name](batch)
        speeds: dict[str, list[float]] = {name: [] for name in reads}
        for _ in range(arguments.rounds):
            for name, read in reads.items():
                start = time.perf_counter()
                read(batch)
                speeds[name].append(len(batch.index) / (time.perf_counter() - start))
    print("| runtime | images/s | times PyTorch's |")
    print("|---|---|---|")
    for name, found in speeds.items():
        ratio = statistics.median(one / base for one, base in zip(found, speeds["PyTorch"], strict=True))
        print(f"| {name} | {statistics.median(found):.0f} [{min(found):.0f} - {max(found):.0f}] | {ratio:.2f} |")


if __name__ == "__main__":
    main()
