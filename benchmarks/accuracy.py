"""Whether speed costs accuracy: a recipe in 32 bits with a live teacher, as `auto` runs it, in bf16, from a store.

Every setting trains the same student from the same teacher over the same seeds; the table has the errors on the test
split and the difference to the first setting, paired by seed. A cell that is finished is not run again, one that was
stopped goes on.

    LIMBECK_DATA=... python benchmarks/accuracy.py --data mnist
    LIMBECK_DATA=... python benchmarks/accuracy.py --data cifar10
"""

import argparse
import json
import os
from pathlib import Path
from typing import cast

import torch
from rich.console import Console

from limbeck.cli.progress import show
from limbeck.evaluate.metrics import ClassFigures
from limbeck.experiment.run import Experiment
from limbeck.recipe.read import read

LIVE = ("precision=32", "cache=false")
AUTO = ("precision=auto",)
SHIFT = "train.augment.shift=2"
STORE = ("cache.use=true", "cache.views=4")
SETTINGS = {
    "mnist": {
        "32 bits, live": LIVE,
        "auto": AUTO,
        "bf16, live": ("precision=bf16", "cache=false"),
        "shifted images: 32 bits, live": (*LIVE, SHIFT),
        "shifted images: auto, store of 4 views": (*AUTO, *STORE, SHIFT),
    },
    "cifar10": {
        "32 bits, live": LIVE,
        "auto": AUTO,
        "auto, store of 4 views": (*AUTO, *STORE),
        "bf16, live": ("precision=bf16", "cache=false"),
    },
}
"""By data set; the first of a group, up to the colon, is what the others are compared with."""

EPOCHS = {"mnist": 12, "cifar10": 16}
TEACHER_EPOCHS = {"mnist": 12, "cifar10": 16}
RECIPES = Path(__file__).parents[1] / "recipes"


def errors(name: str, settings: tuple[str, ...], arguments: argparse.Namespace) -> dict[int, int]:
    """The students' errors by seed."""
    words = "".join(letter if letter.isalnum() else "_" for letter in name)
    folder = arguments.out / arguments.data / words
    teacher = arguments.out / arguments.data / "teacher"
    overrides = [
        f"teacher={{weights: {teacher / 'student.safetensors'}}}",
        f"train.epochs={EPOCHS[arguments.data]}",
        f"seeds={list(range(arguments.seeds))}",
        "baseline=false",
        *settings,
    ]
    recipe = read(RECIPES / f"hinton_{arguments.data}.yaml", overrides=overrides)
    experiment = Experiment(recipe, folder, resume=True)
    show(experiment, Console(), folder)
    return {run.seed: cast("ClassFigures", run.test).errors for run in experiment.result.of("kd")}


def train_teacher(arguments: argparse.Namespace) -> None:
    """One teacher for all cells: the recipe's, for fewer epochs, trained as a student alone."""
    values = json.loads(read(RECIPES / f"hinton_{arguments.data}.yaml").model_dump_json())
    epochs = values["teacher"]["train"]["epochs"]
    overrides = [
        f"student={json.dumps({'model': values['teacher']['model']})}",
        f"train={json.dumps(values['teacher']['train'])}",
        f"train.epochs={min(epochs, TEACHER_EPOCHS[arguments.data])}",
        "teacher=null",
        "method=alone",
        "seeds=[1000]",
        "precision=32",
        "name=teacher",
    ]
    folder = arguments.out / arguments.data / "teacher"
    show(
        Experiment(read(RECIPES / f"hinton_{arguments.data}.yaml", overrides=overrides), folder, resume=True),
        Console(),
        folder,
    )


def row(name: str, found: dict[int, int], base: dict[int, int] | None) -> str:
    """One line of the table."""
    values = torch.tensor(list(found.values()), dtype=torch.float64)
    shown = f"{values.mean():.1f} ± {values.std():.1f}" if len(values) > 1 else f"{values.mean():.0f}"
    difference = ""
    if base is not None:
        pairs = torch.tensor([found[seed] - base[seed] for seed in found], dtype=torch.float64)
        difference = f"{pairs.mean():+.1f} (SE {pairs.std() / len(pairs) ** 0.5:.1f})" if len(pairs) > 1 else ""
    return f"| {name} | {shown} | {len(found)} | {difference} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(SETTINGS), required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="the settings whose name holds this")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    train_teacher(arguments)
    rows, bases = [], dict[str, dict[int, int]]()
    for name, settings in SETTINGS[arguments.data].items():
        if arguments.only and arguments.only not in name:
            continue
        found = errors(name, settings, arguments)
        group = name.partition(":")[0] if ":" in name else ""
        rows.append(row(name, found, bases.get(group)))
        bases.setdefault(group, found)
    print("| setting | errors | n | more than the first |")
    print("|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
