"""Deep compression (Han et al. 2016) of the students of a run, alone and taught, over its seeds.

Compresses each student, an MLP with two hidden layers, as `limbeck compress` does, and prints a table in Markdown with
the mean and the deviation of the bytes, the ratio and the accuracy after each step. The result of each student is
written when it is finished; a student with a result of the same options is not compressed again.

    limbeck run recipes/lenet_mnist.yaml
    python benchmarks/deep_compression.py runs/lenet_mnist --lr 3e-3
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from limbeck.experiment import results
from limbeck.experiment.results import NetworkResult
from limbeck.exports.compress import Options, of_run
from limbeck.files.atomic import write

KEEP = {"stage1.linear": 0.08, "stage2.linear": 0.09, "head": 0.26}
"""The shares of the weights that the paper keeps of LeNet-300-100 (Table 2)."""

STEPS = {"original": "training", "pruned": "pruning", "quantised": "shared weights", "coded": "coding: the file"}


def compressed(student: NetworkResult, run: Path, lr: float | None) -> list[dict[str, Any]]:
    """The steps of a student."""
    name = student.name
    file = run / "compressed" / f"{name.replace('/', '-')}.safetensors"
    known = file.with_suffix(".json")
    options = {"weights": student.weights_sha256, "keep": KEEP, "lr": lr}
    found: dict[str, Any] = json.loads(known.read_text()) if known.exists() else {}
    if found.get("options") != options:
        work = of_run(run, name, data_root=None, trust_code=False, alone=False, lr=lr)
        done = work.run(file, Options(keep=KEEP), say=lambda text: print(f"{name}: {text}", flush=True))
        found = {"options": options, "steps": [asdict(step) for step in done.steps]}
        write(known, json.dumps(found))
    steps: list[dict[str, Any]] = found["steps"]
    return steps


def spread(values: Sequence[float], digits: int) -> str:
    """``mean ± deviation``."""
    mean = f"{statistics.mean(values):,.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):,.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--lr", type=float, help="as for limbeck compress")
    arguments = parser.parse_args()
    networks = [one for one in results.read(arguments.run).runs if one.arm != "teacher"]
    for arm in dict.fromkeys(one.arm for one in networks):
        students = [compressed(one, arguments.run, arguments.lr) for one in networks if one.arm == arm]
        print(f"\n| {arm}, after | bytes | ratio | test accuracy in % |\n|---|---|---|---|")
        for number, step in enumerate(STEPS.values()):
            sizes = [steps[number]["bytes"] for steps in students]
            ratios = [steps[0]["bytes"] / steps[number]["bytes"] for steps in students]
            scores = [100 * steps[number]["score"] for steps in students]
            print(f"| {step} | {spread(sizes, 0)} | {spread(ratios, 1)} | {spread(scores, 2)} |")


if __name__ == "__main__":
    main()
