"""Loggers in addition to ``metrics.jsonl``: a table, TensorBoard, Weights & Biases, and MLflow.

A logger is a context manager for a run folder and a recipe. It gives a function that receives the events of the run. It
imports its package when its block begins.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, nearest
from limbeck.experiment.epochlog import EpochLog
from limbeck.experiment.events import Event, Finished, Job, Started, Trained
from limbeck.experiment.folder import log_line
from limbeck.experiment.runfiles import LOG, TABLE
from limbeck.files.atomic import write
from limbeck.recipe.blocks import Recipe
from limbeck.tasks import TASKS

Consumer = Callable[[Event], None]


def check_loggers(names: Sequence[str]) -> None:
    """Raise LimbeckError if a logger does not exist or its package is not installed."""
    for name in names:
        if name not in LOGGERS:
            raise LimbeckError(f"--log is {name!r}: {nearest(name, LOGGERS)}")
        found = None if name == "csv" else find_spec(name)
        if name != "csv" and (found is None or found.origin is None):  # a folder of that name is not the package
            raise LimbeckError(f"--log {name} needs the package {name}: pip install 'limbeck[{name}]'")


@contextmanager
def logged(names: Sequence[str], folder: Path, recipe: Recipe) -> Iterator[Consumer]:
    """Give a function that passes an event to each of these loggers. They are closed at the end of the block."""
    with ExitStack() as stack:
        consumers = [stack.enter_context(LOGGERS[name](folder, recipe)) for name in dict.fromkeys(names)]

        def consume(event: Event) -> None:
            for consumer in consumers:
                consumer(event)

        yield consume


@contextmanager
def csv_table(folder: Path, recipe: Recipe) -> Iterator[Consumer]:
    """``metrics.csv``: the lines of ``metrics.jsonl`` as one table, written after each network and at the end."""

    def consume(event: Event) -> None:
        if isinstance(event, Finished):
            _write_table(folder)

    try:
        yield consume
    finally:
        _write_table(folder)


@contextmanager
def tensorboard(folder: Path, recipe: Recipe) -> Iterator[Consumer]:
    """One TensorBoard run for each network, in ``tensorboard/<arm>/seed<N>``."""
    from torch.utils.tensorboard import SummaryWriter

    writers: dict[Job, Any] = {}
    with ExitStack() as opened:

        def add(job: Job, epoch: int, values: Mapping[str, float]) -> None:
            if job not in writers:  # TensorBoard hides the steps from this epoch on that an earlier run wrote
                writer = SummaryWriter(str(folder / "tensorboard" / str(job)), purge_step=epoch)
                writers[job] = opened.enter_context(writer)
            for name, value in values.items():
                writers[job].add_scalar(name, value, epoch)

        yield _of_events(folder, add)


@contextmanager
def wandb(folder: Path, recipe: Recipe) -> Iterator[Consumer]:
    """One run in the project ``limbeck``, with the recipe as its configuration. Each name begins with its network."""
    import wandb as package  # type: ignore[import-not-found]

    with package.init(project="limbeck", name=recipe.name, config=recipe.model_dump(mode="json")) as run:
        defined: set[Job] = set()

        def add(job: Job, epoch: int, values: Mapping[str, float]) -> None:
            if job not in defined:
                run.define_metric(f"{job}/*", step_metric=f"{job}/epoch")
                defined.add(job)
            run.log({f"{job}/{name}": value for name, value in {"epoch": epoch, **values}.items()})

        yield _of_events(folder, add)


@contextmanager
def mlflow(folder: Path, recipe: Recipe) -> Iterator[Consumer]:
    """One run with the recipe as an artifact. Each name begins with its network."""
    import mlflow as package  # type: ignore[import-not-found]

    with package.start_run(run_name=recipe.name):
        package.log_dict(recipe.model_dump(mode="json"), "recipe.yaml")

        def add(job: Job, epoch: int, values: Mapping[str, float]) -> None:
            named = {re.sub(r"[^\w./ -]", "-", f"{job}/{name}"): value for name, value in values.items()}
            package.log_metrics(named, step=epoch)

        yield _of_events(folder, add)


LOGGERS: Mapping[str, Callable[[Path, Recipe], AbstractContextManager[Consumer]]] = {
    "csv": csv_table,
    "tensorboard": tensorboard,
    "wandb": wandb,
    "mlflow": mlflow,
}
"""By the value of ``--log``, which is also the name of the package and of the extra."""


def _of_events(folder: Path, add: Callable[[Job, int, Mapping[str, float]], None]) -> Consumer:
    """Return a consumer that adds the figures of each epoch and the headline of each finished network.

    It calls ``add(job, number of finished epochs in all stages, values by name)``. The epochs of a network that is
    reused are those of the log in the folder.
    """
    epochs: dict[Job, int] = {}

    def consume(event: Event) -> None:
        if isinstance(event, Started):
            epochs[event.job] = event.done
        elif isinstance(event, Trained):
            epochs[event.job] += 1
            line = log_line(str(event.job), event.epoch, event.validation, TASKS[event.task].headline.key)
            add(event.job, epochs[event.job], _figures(line))
        elif isinstance(event, Finished):
            if event.job not in epochs:
                lines = EpochLog(folder / LOG, kept=True).of(str(event.job))
                epochs[event.job] = len(lines)
                for number, line in enumerate(lines, start=1):
                    add(event.job, number, _figures(line))
            key = TASKS[event.task].headline.key
            if epochs[event.job]:  # not a teacher that is given
                add(event.job, epochs[event.job], {f"test_{key}": getattr(event.result.test, key)})

    return consume


def _figures(line: Mapping[str, Any]) -> dict[str, float]:
    """The figures in a line of the log."""
    values = {key: line[key] for key in ("loss", "images_per_second")}
    values |= {f"terms/{name}": value for name, value in line["terms"].items()}
    return values | {key: line[key] for key in line if key.startswith("validation_") and line[key] is not None}


def _write_table(folder: Path) -> None:
    rows = [
        {name: value for name, value in line.items() if name != "terms"}
        | {f"terms.{name}": value for name, value in line["terms"].items()}
        for line in EpochLog(folder / LOG, kept=True).all()
    ]
    if rows:
        text = io.StringIO()
        table = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write(folder / TABLE, text.getvalue())
