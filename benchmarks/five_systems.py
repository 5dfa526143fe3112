"""The five systems on one data set, with one teacher for those that take a trained one: a table in Markdown.

Runs the recipes `<system>_<data>.yaml`. The student alone is trained once, with the first of them, and the first's
teacher serves the others, as the recipes would train it again to the bit. A cell that is finished is not run again,
one that was stopped is resumed.

    python benchmarks/five_systems.py --data digits
    LIMBECK_DATA=... python benchmarks/five_systems.py --data cifar10
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from rich.console import Console

from limbeck.cli.progress import show
from limbeck.evaluate.metrics import ClassFigures
from limbeck.experiment.results import ArmSummary, NetworkResult, RunResult, spread_text
from limbeck.experiment.run import Experiment
from limbeck.recipe.read import read
from limbeck.tasks import TASKS

SYSTEMS = ("hinton", "fitnets", "fsp", "class_distance", "srrl", "mimic", "longer")
"""After the five: class distance's baseline, a student that regresses the feature of the teacher that the others have;
and the student alone for twice the epochs, which is what the student of two stages gets.
"""
RECIPES = Path(__file__).parents[1] / "recipes"


def result(system: str, arguments: argparse.Namespace) -> RunResult:
    """The result of one system's recipe."""
    first = arguments.out / f"{SYSTEMS[0]}_{arguments.data}"
    settings = [] if system == SYSTEMS[0] else ["baseline=false"]
    if system not in (SYSTEMS[0], "class_distance", "longer"):
        settings.append(f"teacher={{weights: {first / 'teacher' / 'seed0'}}}")
    folder = arguments.out / f"{system}_{arguments.data}"
    recipe = RECIPES / f"{SYSTEMS[0] if system in ('mimic', 'longer') else system}_{arguments.data}.yaml"
    settings += [f"method={'mimic' if system == 'mimic' else 'alone'}"] if system in ("mimic", "longer") else []
    settings += ["name=mimic"] if system == "mimic" else []
    if system == "longer":
        settings += [f"train.epochs={2 * read(recipe).train.epochs}", "teacher=null", "name=longer"]
    experiment = Experiment(read(recipe, overrides=settings), folder, resume=True)
    show(experiment, Console(), folder)
    return experiment.result


def _figures(test: object) -> ClassFigures:
    return cast("ClassFigures", test)


def row(name: str, summary: ArmSummary, alone: dict[int, int], runs: Sequence[NetworkResult]) -> str:
    """One line of the table: accuracy and the errors fewer than alone, paired by seed."""
    pairs = [alone[run.seed] - _figures(run.test).errors for run in runs if run.seed in alone]
    gain = ""
    if name not in ("teacher", "alone") and len(pairs) > 1:
        values = torch.tensor(pairs, dtype=torch.float64)
        gain = f"{values.mean():+.1f} (SE {values.std() / len(pairs) ** 0.5:.1f})"
    after = [_figures(run.teacher_after.test).accuracy for run in runs if run.teacher_after is not None]
    taught = f"{100 * sum(after) / len(after):.2f}" if after else ""
    accuracy = spread_text(summary.headline, TASKS["classification"].headline)
    return f"| {name} | {accuracy} | {summary.headline.n} | {gain} | {taught} |"


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
        for arm, summary in found.summary.items():
            runs = found.of(arm)
            if arm == "alone" and system == SYSTEMS[0]:
                alone = {run.seed: _figures(run.test).errors for run in runs}
            if arm != "teacher" or system == SYSTEMS[0]:
                rows.append(row("alone, twice the epochs" if system == "longer" else arm, summary, alone, runs))
    print("| | test accuracy % | seeds | errors fewer than alone | its teacher % |")
    print("|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
