"""Trains a teacher and students on drawn data, and prints a table. What is trained is not trained again."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.tasks.demonstrations import DEMONSTRATIONS, Demonstration
from benchmarks.tasks.picture import DRAWN, picture
from benchmarks.tasks.report import table
from benchmarks.tasks.training import train_student, train_students, train_teacher
from limbeck.data.targets import TaskName
from limbeck.experiment.results import NetworkResult, summarise
from limbeck.tasks import TASKS


def smaller(demonstration: Demonstration) -> Demonstration:
    """The demonstration with few images and epochs: its figures have no meaning."""
    methods = {
        name: {**options, "hint_epochs": 1} if "hint_epochs" in options else options
        for name, options in demonstration.methods.items()
    }
    few: dict[str, Any] = {"images": 400, "teacher_images": 400, "teacher_epochs": 2, "epochs": 2}
    return replace(demonstration, methods=methods, allow=("chance",), **few)  # the teacher has hardly been trained


def main(arguments: list[str] | None = None) -> None:
    """Run a demonstration; the default is the command line of the process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks", description=__doc__)
    parser.add_argument("task", choices=DEMONSTRATIONS)
    parser.add_argument("--seeds", type=int, default=5, help="the number of students for each method (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"), help="a folder (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="the number of processes (default: 2)")
    parser.add_argument("--smoke", action="store_true", help="few images and epochs, to see that it runs")
    parser.add_argument("--picture", type=Path, help=f"also write this PNG file, for {' and '.join(DRAWN)}")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.jobs < 1:
        parser.error(f"--seeds is {options.seeds} and --jobs is {options.jobs}: allowed are 1 and more")
    if options.picture and options.task not in DRAWN:
        parser.error(f"--picture is for {' and '.join(DRAWN)}, not for {options.task}")
    demonstration, folder = DEMONSTRATIONS[options.task], options.out / options.task
    if options.smoke:
        demonstration, folder = smaller(demonstration), options.out / f"{options.task}-smoke"
    run(demonstration, folder, seeds=options.seeds, jobs=options.jobs, target=options.picture)


def run(demonstration: Demonstration, folder: Path, *, seeds: int, jobs: int, target: Path | None = None) -> None:
    """Train, print the table to stdout and progress to stderr, and write the picture to ``target``."""
    task, threads = demonstration.task, torch.get_num_threads()
    torch.set_num_threads(1)
    teacher, figures = train_teacher(demonstration, folder)
    results, headline = [figures], TASKS[task].headline
    for result in train_students(demonstration, teacher, seeds=range(seeds), folder=folder, jobs=jobs):
        results.append(result)
        value = headline.text(getattr(result.validation, headline.key))
        print(f"{result.name}: validation {headline.label} {value}", file=sys.stderr, flush=True)
    arms = ("teacher", *demonstration.arms)
    results.sort(key=lambda result: (arms.index(result.arm), result.seed))
    print("\n".join(table(results, task)))
    if target is not None:
        shown = ("alone", best(results, task))
        networks = {arm: train_student(demonstration, teacher, arm, 0, folder)[0] for arm in shown}
        picture(demonstration.data(), networks).save(target, optimize=True)
    torch.set_num_threads(threads)


def best(results: Sequence[NetworkResult], task: TaskName) -> str:
    """The method with the best mean headline on the validation split."""
    methods = [result for result in results if result.arm not in ("teacher", "alone")]
    seen = [replace(result, test=result.validation) for result in methods if result.validation is not None]
    means = {arm: row.headline.mean for arm, row in summarise(seen, task).items()}
    return max(means, key=lambda arm: TASKS[task].headline.score(means[arm]))
