"""What the commands show while they work: a progress bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import Tensor

from limbeck.bench import benchmark
from limbeck.core import Batch
from limbeck.display import result_table, verdicts
from limbeck.experiment import Experiment
from limbeck.jobs import Compared, Event, Expected, Finished, Job, Kept, Started, Track, Trained
from limbeck.train import BatchSource

LINE_EVERY = 10.0
"""Seconds between progress lines where there is no terminal."""


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} images/s")


class _Watched:
    """Batches that move a progress bar as they are used."""

    def __init__(self, batches: BatchSource, advance: Any) -> None:
        self.samples = batches.samples
        self._batches = batches
        self._advance = advance

    def __len__(self) -> int:
        return len(self._batches)

    def __call__(self, epoch: int) -> Iterator[Batch]:
        for batch in self._batches(epoch):
            yield batch
            self._advance(len(batch.targets))

    def sweep(self) -> Iterable[Batch]:
        return self._batches.sweep()

    def few(self) -> Tensor:
        return self._batches.few()


def show(experiment: Experiment, console: Console, out: Path) -> None:
    """Run an experiment, showing a progress bar on a terminal and plain lines elsewhere, then its table."""
    engine, data = experiment.engine, experiment.data
    console.print(
        f"{experiment.recipe.name}: {len(data.train):,} training, {len(data.validation):,} validation and "
        f"{len(data.test):,} test samples of {len(data.classes)} classes; on {engine.device.type} in "
        f"{'bfloat16' if engine.precision == 'bf16' else '32 bits'} ({engine.reason})"
        f"{', frozen networks compiled' if engine.compile else ''}",
        highlight=False,
        soft_wrap=True,
    )
    follow(experiment.run, console)
    console.print(result_table(experiment))
    for line in verdicts(experiment):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"written: {out}/result.json and {out}/student.safetensors", highlight=False, soft_wrap=True)


def follow(start: Callable[[Track], Iterator[Event]], console: Console) -> None:
    """Do what ``start`` begins, showing a progress bar on a terminal and plain lines elsewhere."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        _Speed(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        speed_estimate_period=10,
    )
    terminal = console.is_terminal
    samples, keeping = 0, None

    def track(job: Job, epochs: int, batches: BatchSource) -> BatchSource:
        nonlocal samples
        samples = batches.samples
        task = progress.add_task(str(job), total=epochs * samples)
        return _Watched(batches, lambda count: progress.advance(task, count))

    with progress if terminal else nullcontext():
        spoken = time.monotonic()
        for event in start(track):
            if isinstance(event, Finished):
                console.print(_finished(event), highlight=False, soft_wrap=True)
                for task in progress.task_ids:
                    progress.remove_task(task)
            elif isinstance(event, Started) and event.done:
                for task in progress.task_ids:
                    progress.update(task, completed=event.done * samples)
                console.print(f"{event.job}: going on from its checkpoint", highlight=False)
            elif isinstance(event, Expected):
                console.print(_expected(event), highlight=False, soft_wrap=True)
            elif isinstance(event, Kept):
                if keeping is None:
                    keeping = progress.add_task(f"{event.job}'s outputs", total=event.of)
                progress.update(keeping, completed=event.done)
                if event.done == event.of:
                    progress.remove_task(keeping)
                    keeping = None
                    console.print(_kept(event), highlight=False, soft_wrap=True)
            elif isinstance(event, Compared):
                console.print(_compared(event), highlight=False, soft_wrap=True)
            elif isinstance(event, Trained) and not terminal and time.monotonic() - spoken > LINE_EVERY:
                spoken = time.monotonic()
                console.print(_trained(event), highlight=False, soft_wrap=True)


def followed(events: Iterator[benchmark.Progress | benchmark.Report], console: Console) -> dict[str, Any]:
    """Do a benchmark, showing how far it is; gives its figures."""
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=30), TimeElapsedColumn(), console=console, transient=True
    )
    with progress if console.is_terminal else nullcontext():
        task = progress.add_task("", total=1.0)
        for event in events:
            if isinstance(event, benchmark.Report):
                return event.result
            progress.update(task, description=event.text, completed=event.done)
    raise RuntimeError("a benchmark ends with its report")


def _finished(event: Finished) -> str:
    test = event.result["test"]
    how = " (not trained in this run)" if event.reused else ""
    share = f"test accuracy {100 * test['accuracy']:.2f} %"
    return f"{event.job}{how}: {share}, {test['errors']} errors of {test['samples']:,}"


def _trained(event: Trained) -> str:
    epoch = event.epoch
    terms = ", ".join(f"{name} {value:.4f}" for name, value in epoch.terms.items())
    validation = "" if event.validation is None else f", validation {100 * event.validation:.2f} %"
    speed = epoch.images / epoch.seconds
    stage = "" if epoch.stage in ("alone", event.job.arm) else f" of {epoch.stage}"
    return f"{event.job}: epoch {epoch.number}/{epoch.epochs}{stage}, {terms}{validation}, {speed:,.0f} images/s"


def _expected(event: Expected) -> str:
    size, free = decimal(event.bytes), decimal(event.free)
    took = "under a second" if event.seconds < 1 else f"about {timedelta(seconds=round(event.seconds))}"
    return f"{event.job}: keeping its outputs takes {size} ({free} are free) and {took}"


def _kept(event: Kept) -> str:
    return f"{event.job}: its outputs, {event.of:,} rows, are kept ({decimal(event.bytes)} in {event.folder})"


def _compared(event: Compared) -> str:
    return (
        f"{event.job}: {event.rows} random rows of {event.folder} are what the teacher gives "
        f"(the greatest deviation is {event.deviation:.2g}, {event.allowed:.2g} is allowed)"
    )
