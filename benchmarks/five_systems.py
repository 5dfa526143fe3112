"""The five systems on one data set, with one teacher for those that take a trained one: a table in Markdown.

Runs the recipes `<system>_<data>.yaml`. The student alone is trained once, with the first of them, and the first's
teacher serves the others, as the recipes would train it again to the bit. A cell that is finished is not run again,
one that was stopped goes on.

    python benchmarks/five_systems.py --data digits
    LIMBECK_DATA=... python benchmarks/five_systems.py --data cifar10
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from limbeck.display import show
from limbeck.experiment import Experiment
from limbeck.recipe import read

SYSTEMS = ("hinton", "fitnets", "fsp", "class_distance", "srrl", "mimic")
"""The last is class distance's baseline: the student regresses the feature of the teacher that the others have."""
RECIPES = Path(__file__).parents[1] / "recipes"


def result(system: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The result of one system's recipe."""
    first = arguments.out / f"{SYSTEMS[0]}_{arguments.data}"
    settings = [] if system == SYSTEMS[0] else ["baseline=false"]
    if system not in (SYSTEMS[0], "class_distance"):
        settings.append(f"teacher={{weights: {first / 'teacher' / 'seed0'}}}")
    settings += ["method=mimic", "name=mimic"] if system == "mimic" else []
    folder = arguments.out / f"{system}_{arguments.data}"
    recipe = RECIPES / f"{SYSTEMS[0] if system == 'mimic' else system}_{arguments.data}.yaml"
    show(Experiment(read(recipe, overrides=settings), folder, resume=True), Console(), folder)
    return json.loads((folder / "result.json").read_text())


def row(name: str, summary: dict[str, Any], alone: dict[int, int], runs: list[dict[str, Any]]) -> str:
    """One line of the table: accuracy and the errors fewer than alone, paired by seed."""
    accuracy = summary["accuracy"]
    shown = f"{100 * accuracy['mean']:.2f}" + (f" ± {100 * accuracy['deviation']:.2f}" if accuracy["deviation"] else "")
    pairs = [alone[run["seed"]] - run["test"]["errors"] for run in runs if run["seed"] in alone]
    gain = ""
    if name not in ("teacher", "alone") and len(pairs) > 1:
        values = torch.tensor(pairs, dtype=torch.float64)
        gain = f"{values.mean():+.1f} (SE {values.std() / len(pairs) ** 0.5:.1f})"
    after = [run["teacher_after"]["accuracy"] for run in runs if "teacher_after" in run]
    taught = f"{100 * sum(after) / len(after):.2f}" if after else ""
    return f"| {name} | {shown} | {accuracy['n']} | {gain} | {taught} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("digits", "cifar10"), required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/five_systems"))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, help="run these alone")
    arguments = parser.parse_args()
    arguments.out = arguments.out.absolute()
    torch.set_num_threads(1)
    rows: list[str] = []
    alone: dict[int, int] = {}
    for system in arguments.systems:
        found = result(system, arguments)
        for arm, summary in found["summary"].items():
            runs = [run for run in found["runs"] if run["arm"] == arm]
            if arm == "alone":
                alone = {run["seed"]: run["test"]["errors"] for run in runs}
            if arm not in ("teacher", "alone") or system == SYSTEMS[0]:
                rows.append(row(arm, summary, alone, runs))
    print("| | test accuracy % | seeds | errors fewer than alone | its teacher % |")
    print("|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
