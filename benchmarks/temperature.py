"""Which temperature suits which student: Hinton et al. (2015), section 3, on MNIST.

Runs `recipes/hinton_mnist.yaml` for a wide and a narrow student over temperatures and seeds, with one trained teacher,
and prints a table in Markdown. A cell that is finished is not run again, one that was stopped is resumed.

    limbeck run recipes/hinton_mnist.yaml
    python benchmarks/temperature.py --teacher runs/hinton_mnist/teacher/seed0
"""

import argparse
from pathlib import Path
from typing import cast

from rich.console import Console

from limbeck.cli.progress import show
from limbeck.experiment.results import Spread, spread_text
from limbeck.experiment.run import Experiment
from limbeck.recipe.read import read
from limbeck.tasks import TASKS

WIDTHS = (300, 30)
TEMPERATURES = (1, 2, 4, 8, 20)
RECIPE = Path(__file__).parents[1] / "recipes" / "hinton_mnist.yaml"


def cell(width: int, temperature: int | None, arguments: argparse.Namespace) -> Spread:
    """The errors of one student at one temperature, or alone."""
    folder = arguments.out / f"{width}-{'alone' if temperature is None else f'T{temperature}'}"
    settings = [
        f"student.model.hidden=[{width}, {width}]",
        f"train.epochs={arguments.epochs}",
        f"seeds={list(range(arguments.seeds))}",
        f"teacher={{weights: {arguments.teacher}}}",
        "baseline=false",
        "method=alone" if temperature is None else f"method.temperature={temperature}",
    ]
    experiment = Experiment(read(RECIPE, overrides=settings), folder, resume=True)
    show(experiment, Console(), folder)
    return cast("Spread", experiment.result.summary["alone" if temperature is None else "kd"].errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True, help="a run folder or file with the teacher's weights")
    parser.add_argument("--out", type=Path, default=Path("runs/temperature"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    columns = [None, *TEMPERATURES]
    rows = []
    for width in WIDTHS:
        cells = [cell(width, temperature, arguments) for temperature in columns]
        shown = [spread_text(errors, TASKS["classification"].others[0]) for errors in cells]
        rows.append(f"| {width}-{width} | " + " | ".join(shown) + " |")
    headings = ["alone", *(f"T = {temperature}" for temperature in TEMPERATURES)]
    print("| student | " + " | ".join(headings) + " |")
    print("|---" * (len(columns) + 1) + "|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
