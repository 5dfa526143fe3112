"""What the commands show while they work: a progress bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from torch import Tensor

from limbeck.cli import terminal
from limbeck.cli.tables import result_table, verdicts
from limbeck.core import Batch
from limbeck.experiment.events import (
    Event,
    Finished,
    Found,
    Job,
    Started,
    StoreEstimate,
    StoreProgress,
    StoreVerified,
    Track,
    Trained,
)
from limbeck.experiment.run import Experiment
from limbeck.train.loop import BatchSource

LINE_EVERY = 10.0
"""Seconds between progress lines where there is no terminal."""


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

    def example_inputs(self) -> Tensor:
        return self._batches.example_inputs()


@contextmanager
def reading(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Gives what shows how many files of the data are read: a bar on a terminal, else a line every `LINE_EVERY` s."""
    columns = (
        TextColumn("reading the data"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:,} of {task.total:,}"),
    )
    bar = Progress(*columns, console=console, transient=True)
    spoken = time.monotonic()

    def read(done: int, total: int) -> None:
        nonlocal spoken
        if console.is_terminal or console.is_jupyter:
            task = bar.task_ids[0] if bar.task_ids else bar.add_task("")
            bar.update(task, completed=done, total=total)
            if done == total:
                bar.stop()
            elif not bar.live.is_started:
                bar.start()
        elif time.monotonic() - spoken > LINE_EVERY:
            spoken = time.monotonic()
            console.print(f"reading the data: {done:,} of {total:,} files", highlight=False, soft_wrap=True)

    try:
        yield read
    finally:
        if bar.live.is_started:
            bar.stop()


def introduce(experiment: Experiment, console: Console) -> None:
    """Say what is about to be run: on what, from where, and what a user should know of it."""
    engine, data = experiment.engine, experiment.data
    lines = [
        f"{experiment.recipe.name}: {len(data.train):,} training, {len(data.validation):,} validation and "
        f"{len(data.test):,} test samples of {len(data.classes)} classes; on {engine.device.type} in "
        f"{'bfloat16' if engine.precision == 'bf16' else '32 bits'} ({engine.reason})"
        f"{', frozen networks compiled' if engine.compile else ''}",
        *(f"{split}: {origin}" for split, origin in data.origins.items()),
        *(f"note: {note}" for note in experiment.notes),
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def show(experiment: Experiment, console: Console, out: Path) -> None:
    """Run an experiment, showing a progress bar on a terminal and plain lines elsewhere, then its table."""
    _follow(experiment, experiment.run, console)
    console.print(result_table(experiment.result))
    for line in verdicts(experiment.result, experiment.recipe):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"written: {out}/result.json and {out}/student.safetensors", highlight=False, soft_wrap=True)


def watch(experiment: Experiment, start: Callable[[Track], Iterator[Event]]) -> None:
    """Show a training that is no command's own, beside what its program writes."""
    _follow(experiment, start, terminal.console(stderr=True))


def _follow(experiment: Experiment, start: Callable[[Track], Iterator[Event]], console: Console) -> None:
    """The same for both: what is known before, the training, and what was found while it ran."""
    introduce(experiment, console)
    told = set(experiment.notes)
    follow(start, console, experiment.work)
    for note in experiment.notes:
        if note not in told:
            console.print(f"note: {note}", highlight=False, soft_wrap=True)


class _Account:
    """How much of a run is done: the whole of it is one bar, whatever it trains.

    Args:
        work: what each training takes, in order.
    """

    def __init__(self, work: Mapping[Job, float]) -> None:
        self._work, self._places = work, {job: place for place, job in enumerate(work, start=1)}
        self._done: dict[Job, float] = {}  # a share of each
        self._found = 0.0  # what was there already
        self._start = time.monotonic()
        self.total = sum(work.values())

    def place(self, job: Job) -> str:
        """``[2/6] kd/seed0``; the name alone where one thing is done."""
        return (
            f"[{self._places[job]}/{len(self._work)}] {job}"
            if job in self._places and len(self._work) > 1
            else str(job)
        )

    def reach(self, job: Job, share: float, *, found: bool = False) -> None:
        """So much of a training is done, or was there."""
        if found:
            self._found += (share - self._done.get(job, 0.0)) * self._work.get(job, 0.0)
        self._done[job] = share

    def advance(self, job: Job, share: float) -> None:
        """So much more of it is done."""
        self._done[job] = min(1.0, self._done.get(job, 0.0) + share)

    @property
    def done(self) -> float:
        """Of `total`."""
        return sum(share * self._work.get(job, 0.0) for job, share in self._done.items())

    @property
    def left(self) -> str:
        """The time until all is done, as it went so far; empty while that cannot be told."""
        here = self.done - self._found
        if here <= 0 or self.total <= 0:
            return ""
        seconds = (time.monotonic() - self._start) * (self.total - self.done) / here
        return str(timedelta(seconds=max(0, round(seconds))))


def follow(start: Callable[[Track], Iterator[Event]], console: Console, work: Mapping[Job, float]) -> None:
    """Do what ``start`` begins, showing a progress bar on a terminal and plain lines elsewhere.

    Args:
        start: gives the events.
        console: where to show them.
        work: all trainings with about what each takes; see `Experiment.work`.
    """
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[epoch]}"),
        console=console,
        transient=True,
    )
    screen = _Screen(console, progress, _Account(work))

    def track(job: Job, epochs: int, batches: BatchSource) -> BatchSource:
        return _Watched(batches, lambda count: screen.advance(job, count / (epochs * batches.samples)))

    with progress if screen.terminal else nullcontext():
        for event in start(track):
            screen.tell(event)


class _Screen:
    """What is written of each event."""

    def __init__(self, console: Console, progress: Progress, account: _Account) -> None:
        self.terminal = console.is_terminal or console.is_jupyter
        self._console, self._progress, self._account = console, progress, account
        self._run: TaskID | None = None
        self._keeping: TaskID | None = None
        self._spoken = time.monotonic()
        self._epoch = ""

    def advance(self, job: Job, share: float) -> None:
        """Move the bar."""
        self._account.advance(job, share)
        self._show(job)

    def tell(self, event: Event) -> None:
        """Write a line, or change the bar."""
        if isinstance(event, Started):
            self._account.reach(event.job, event.done / event.epochs, found=True)
            if event.done:
                self._print(f"{event.job}: resuming from its checkpoint")
            self._show(event.job, "")
        elif isinstance(event, Trained):
            self._show(event.job, _epoch(event))
            if not self.terminal and time.monotonic() - self._spoken > LINE_EVERY:
                self._spoken = time.monotonic()
                left = self._account.left
                self._print(f"{_trained(event, self._account.place(event.job))}{left and f', {left} left'}")
        elif isinstance(event, Found):
            self._account.reach(event.job, 1.0, found=True)
            self._print(_found(event))
        elif isinstance(event, Finished):
            self._account.reach(event.job, 1.0, found=event.reused)
            self._print(_finished(event))
        elif isinstance(event, StoreProgress):
            self._keep(event)
        else:
            self._print(_LINES[type(event)](event))

    def _show(self, job: Job, epoch: str | None = None) -> None:
        if not self.terminal or not self._account.total:
            return
        if self._run is None:
            self._run = self._progress.add_task("", total=self._account.total, left="", epoch="")
        left = self._account.left
        left = f"{left} left" if left else ""
        place, done = self._account.place(job), self._account.done
        self._epoch = self._epoch if epoch is None else epoch
        self._progress.update(self._run, description=place, completed=done, left=left, epoch=self._epoch)

    def _keep(self, event: StoreProgress) -> None:
        if self.terminal and self._keeping is None:
            self._keeping = self._progress.add_task(f"{event.job}'s outputs", total=event.total, left="", epoch="")
        if self._keeping is not None:
            self._progress.update(self._keeping, completed=event.done)
        if event.done == event.total:
            if self._keeping is not None:
                self._progress.remove_task(self._keeping)
                self._keeping = None
            self._print(_kept(event))

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)


def _finished(event: Finished) -> str:
    test = event.result.test
    how = " (not trained in this run)" if event.reused else ""
    share = f"test accuracy {100 * test.accuracy:.2f} %"
    return f"{event.job}{how}: {share}, {test.errors} errors of {test.samples:,}"


def _trained(event: Trained, place: str) -> str:
    epoch = event.epoch
    terms = ", ".join(f"{name} {value:.4f}" for name, value in epoch.terms.items())
    validation = "" if event.validation is None else f", validation {100 * event.validation:.2f} %"
    speed = epoch.images / epoch.seconds
    stage = "" if epoch.stage in ("alone", event.job.arm) else f" of {epoch.stage}"
    return f"{place}: epoch {epoch.number}/{epoch.epochs}{stage}, {terms}{validation}, {speed:,.0f} images/s"


def _epoch(event: Trained) -> str:
    """What stands behind the bar."""
    epoch = event.epoch
    validation = "" if event.validation is None else f", validation {100 * event.validation:.1f} %"
    stage = "" if epoch.stage in ("alone", event.job.arm) else f" of {epoch.stage}"
    speed = epoch.images / epoch.seconds
    return f"epoch {epoch.number}/{epoch.epochs}{stage}, loss {epoch.loss:.4f}{validation}, {speed:,.0f} images/s"


def _found(event: Found) -> str:
    return f"{event.job}: found in {event.folder}: the same student, data and training"


def _expected(event: StoreEstimate) -> str:
    size, free = decimal(event.bytes), decimal(event.free)
    took = "under a second" if event.seconds < 1 else f"about {timedelta(seconds=round(event.seconds))}"
    return f"{event.job}: keeping its outputs takes about {size} ({free} are free) and {took}"


def _kept(event: StoreProgress) -> str:
    return f"{event.job}: its outputs, {event.total:,} rows, are kept (about {decimal(event.bytes)} in {event.folder})"


def _compared(event: StoreVerified) -> str:
    return (
        f"{event.job}: {event.rows} random rows of {event.folder} are what the teacher gives "
        f"(the greatest deviation is {event.deviation:.2g}, {event.allowed:.2g} is allowed)"
    )


_LINES: Mapping[type, Callable[[Any], str]] = {StoreEstimate: _expected, StoreVerified: _compared}
