"""The progress of the commands: a progress bar on a terminal, plain lines elsewhere."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor

from limbeck.cache.building import Estimate
from limbeck.cli import terminal
from limbeck.cli.tables import result_table, verdicts
from limbeck.comparison.sweep import Sweep
from limbeck.core import Batch
from limbeck.data.targets import UNITS
from limbeck.evaluate import ClassFigures
from limbeck.experiment.events import (
    Elsewhere,
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
from limbeck.experiment.several import trainings
from limbeck.recipe.blocks import Recipe
from limbeck.tasks import TASKS
from limbeck.train.loop import BatchSource, Epoch

LINE_EVERY = 10.0
"""Seconds between progress lines if there is no terminal."""

FEWEST, MOST = 20, 200
"""The fewest and the most lines for a stage if there is no terminal; a stage of fewer epochs has a line for each."""


class _Watched:
    """Batches that advance a progress bar as they are used."""

    def __init__(self, batches: BatchSource, advance: Any) -> None:
        self.samples = batches.samples
        self._batches = batches
        self._advance = advance

    def __len__(self) -> int:
        return len(self._batches)

    def __call__(self, epoch: int) -> Iterator[Batch]:
        for batch in self._batches(epoch):
            yield batch
            self._advance(batch.total or len(batch.targets))

    def sweep(self) -> Iterable[Batch]:
        return self._batches.sweep()

    def example_inputs(self) -> Tensor:
        return self._batches.example_inputs()


@contextmanager
def reading(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show that an experiment is being prepared; yield a function that takes the number of files read and of all files.

    A terminal shows a spinner. Elsewhere a line is printed every `LINE_EVERY` seconds while files are read.
    """
    spoken = time.monotonic()

    def read(done: int, total: int) -> None:
        nonlocal spoken
        line = f"reading the data: {done:,} of {total:,}"
        spinner.update(line if done < total else "checking the data and the networks")
        if not _live(console) and time.monotonic() - spoken > LINE_EVERY:
            spoken = time.monotonic()
            _print(console, line)

    with console.status("reading the data, checking the networks", spinner="line") as spinner:
        yield read


def show(
    experiment: Experiment, console: Console, out: Path, consume: Callable[[Event], object] = lambda _: None
) -> None:
    """Run an experiment with a progress bar on a terminal and plain lines elsewhere, and print its table.

    ``consume`` is called with each event.
    """

    def start(track: Track) -> Iterator[Event]:
        for event in experiment.run(track):
            consume(event)
            yield event

    _follow(experiment, start, console, experiment.work)
    console.print(result_table(experiment.result))
    for line in verdicts(experiment.result, experiment.recipe):
        _print(console, line)
    _print(console, f"written: {out}/result.json and {out}/student.safetensors")


def show_sweep(sweep: Sweep, console: Console, *, processes: int = 1, wait: bool = True) -> None:
    """Train what is missing in a comparison, with a progress bar on a terminal and plain lines elsewhere.

    ``processes`` share it; ``wait`` as for `Sweep.run`.
    """
    work, run = sweep.work, partial(sweep.run, wait=wait)
    seeds = len({job.seed for job in work if not job.teaches})
    _follow(sweep.experiment, run, console, work, share(seeds, processes))


def share(parts: int, processes: int) -> float:
    """The largest share of equal parts of work that one of several processes does."""
    return math.ceil(parts / processes) / max(parts, 1)


def watch(experiment: Experiment, start: Callable[[Track], Iterator[Event]], work: Mapping[Job, float]) -> None:
    """Show the progress of a training on stderr, for a program that calls limbeck."""
    _follow(experiment, start, terminal.console(stderr=True), work)


def _follow(
    experiment: Experiment,
    start: Callable[[Track], Iterator[Event]],
    console: Console,
    work: Mapping[Job, float],
    share: float = 1.0,
) -> None:
    """Print the data, the device and the notes, follow the training, and print the notes that it added."""
    engine, data, notes = experiment.engine, experiment.data, experiment.notes
    lines = [
        f"{experiment.recipe.name}: {len(data.train):,} training, {len(data.validation):,} validation and "
        f"{len(data.test):,} test samples of {len(data.classes)} {UNITS.get(data.task, 'classes')}; "
        f"on {engine.device.type} in "
        f"{'bfloat16' if engine.precision == 'bf16' else '32 bits'} ({engine.reason})"
        f"{', frozen networks compiled' if engine.compile else ''}",
        *([_batch_sizes(experiment.recipe, engine.processes.count)] if engine.processes.count > 1 else []),
        *(f"{split}: {origin}" for split, origin in data.origins.items()),
        *(f"note: {note}" for note in notes),
    ]
    for line in lines:
        _print(console, line)
    told = set(notes)

    def tell() -> None:
        for note in experiment.notes:
            if note not in told:
                told.add(note)
                _print(console, f"note: {note}")

    def noted(track: Track) -> Iterator[Event]:
        for event in start(track):
            tell()
            yield event

    teacher = experiment.recipe.teacher
    slow = experiment.recipe.method["name"] if teacher is not None and teacher.shard else ""
    follow(noted, console, work, share, slow)
    tell()


def _batch_sizes(recipe: Recipe, processes: int) -> str:
    sizes = zip(("student", "teacher"), trainings(recipe), strict=False)
    said = ", ".join(f"{block.batch_size} for the {name}" for name, block in sizes)
    return f"batch size of all {processes} processes together: {said}"


def _live(console: Console) -> bool:
    return console.is_terminal or console.is_jupyter


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)


class _Account:
    """The progress of a whole run, over all its trainings; ``work`` is the cost of each, in order.

    This process does ``share`` of it. The time that is left is estimated from the first training on, or from the first
    one of the arm ``slow``, which takes far longer than its work says.
    """

    def __init__(self, work: Mapping[Job, float], share: float = 1.0, slow: str = "") -> None:
        self._work, self._places = work, {job: place for place, job in enumerate(work, start=1)}
        self._done: dict[Job, float] = {}  # the finished fraction of each training
        self._found = 0.0  # the work that was done before the time is counted
        self._start: float | None = None  # of the time
        self._slow = slow
        self._alone, self._unknown = share == 1, False
        self.total = sum(work.values()) * share

    def place(self, job: Job) -> str:
        """Return a label such as ``[2/6] kd/seed0``; only the name if there is a single training."""
        return (
            f"[{self._places[job]}/{len(self._work)}] {job}"
            if job in self._places and len(self._work) > 1
            else str(job)
        )

    def begin(self, job: Job, share: float) -> None:
        """A training begins, of which this fraction was done before this run."""
        self.reach(job, share, found=True)
        if self._start is None and self._slow in ("", job.arm):
            self._start, self._found = time.monotonic(), self.done

    def reach(self, job: Job, share: float, *, found: bool = False) -> None:
        """Set the finished fraction of a training; ``found`` means that it was done before this run."""
        if found:
            self._found += (share - self._done.get(job, 0.0)) * self._work.get(job, 0.0)
        self._done[job] = share

    def advance(self, job: Job, share: float) -> None:
        """Add to the finished fraction of a training."""
        self._done[job] = min(1.0, self._done.get(job, 0.0) + share)

    def see_others(self) -> None:
        """Another process was found to do a part of the work; the time left is then unknown, unless it was expected."""
        self._unknown = self._alone

    @property
    def done(self) -> float:
        """The finished part of `total`."""
        return sum(share * self._work.get(job, 0.0) for job, share in self._done.items())

    @property
    def left(self) -> str:
        """The estimated remaining time; empty while it is unknown."""
        here = self.done - self._found
        if self._start is None or here <= 0 or self.total <= 0 or self._unknown:
            return ""
        seconds = (time.monotonic() - self._start) * (self.total - self.done) / here
        return str(timedelta(seconds=max(0, round(seconds))))


def follow(
    start: Callable[[Track], Iterator[Event]],
    console: Console,
    work: Mapping[Job, float],
    share: float = 1.0,
    slow: str = "",
) -> None:
    """Run the events of ``start`` with a progress bar on a terminal and plain lines elsewhere.

    ``work`` is that of the `Experiment`: all trainings with their approximate cost. This process does ``share`` of it.
    ``slow`` is an arm that takes far longer than its cost says, because the teacher is divided among processes.
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
    screen = _Screen(console, progress, _Account(work, share, slow))

    def track(job: Job, epochs: int, batches: BatchSource) -> BatchSource:
        return _Watched(batches, lambda count: screen.advance(job, count / (epochs * batches.samples)))

    with progress if screen.terminal else nullcontext():
        for event in start(track):
            screen.tell(event)


class _Screen:
    """The lines and the progress bar for each event."""

    def __init__(self, console: Console, progress: Progress, account: _Account) -> None:
        self.terminal = _live(console)
        self._console, self._progress, self._account = console, progress, account
        self._run = progress.add_task("", visible=False, total=account.total, left="", epoch="")
        self._store = progress.add_task("", visible=False, left="", epoch="")
        self._spoken = time.monotonic()

    def advance(self, job: Job, share: float) -> None:
        """Advance the bar."""
        self._account.advance(job, share)
        self._show(job)

    def tell(self, event: Event) -> None:
        """Print a line for an event or update the bar."""
        if isinstance(event, Started):
            self._account.begin(event.job, event.done / event.epochs)
            if event.done:
                _print(self._console, f"{event.job}: resuming from its checkpoint")
            self._show(event.job, epoch="")
        elif isinstance(event, Trained):
            self._show(event.job, epoch=_epoch(event, f"loss {event.epoch.loss:.4f}"))
            if not self.terminal and self._is_due(event.epoch):
                self._spoken = time.monotonic()
                left = self._account.left
                line = _trained(event, self._account.place(event.job))
                _print(self._console, f"{line}{left and f', {left} left'}")
        elif isinstance(event, Found):
            self._account.reach(event.job, 1.0, found=True)
            how = f"reused from {event.folder}: the same student, data and training"
            _print(self._console, f"{event.job}: {how}")
        elif isinstance(event, Finished):
            self._account.reach(event.job, 1.0, found=event.reused)
            _print(self._console, _finished(event))
        elif isinstance(event, StoreEstimate):
            _print(self._console, _estimated(event))
        elif isinstance(event, StoreProgress):
            self._tell_store(event)
        elif isinstance(event, Elsewhere):
            self._tell_elsewhere(event)
        else:
            _print(self._console, _verified(event))

    def _is_due(self, epoch: Epoch) -> bool:
        """Whether an epoch gets a line: at least `FEWEST` of its stage do, and up to `MOST` if the last line is old."""
        late = time.monotonic() - self._spoken > LINE_EVERY
        least = math.ceil(epoch.epochs / MOST)
        every = least if late else least * max(epoch.epochs // FEWEST // least, 1)
        return epoch.number % every == 0 or epoch.number == epoch.epochs

    def _show(self, job: Job, **fields: Any) -> None:
        if self.terminal and self._account.total:
            left, done, place = self._account.left, self._account.done, self._account.place(job)
            fields["left"] = left and f"{left} left"
            self._progress.update(self._run, visible=True, description=place, completed=done, **fields)

    def _tell_elsewhere(self, event: Elsewhere) -> None:
        self._account.see_others()
        if event.waits:
            self._progress.update(self._run, description=f"waiting for {event.part}", left="", epoch="")
            _print(self._console, f"waiting for another process, which works on {event.part}")

    def _tell_store(self, event: StoreProgress) -> None:
        what, ended = f"{event.job}'s outputs", event.done == event.total
        self._progress.update(self._store, visible=not ended, description=what, total=event.total, completed=event.done)
        if ended and not event.total:
            _print(self._console, f"{event.job}: this shard is empty, because the store has fewer files than shards")
        elif ended:
            size = f"about {decimal(event.bytes)} in {event.folder}"
            _print(self._console, f"{event.job}: stored {event.total:,} rows of its outputs ({size})")


def _finished(event: Finished) -> str:
    test = event.result.test
    how = " (not trained in this run)" if event.reused else ""
    figure = TASKS[event.task].headline
    share = f"test {figure.label} {figure.text(getattr(test, figure.key))}"
    if isinstance(test, ClassFigures):
        share += f", {test.errors} errors of {test.samples:,}"
    kept = "" if event.result.best_epoch is None else f", best epoch {event.result.best_epoch}"
    return f"{event.job}{how}: {share}{kept}"


def _trained(event: Trained, place: str) -> str:
    terms = ", ".join(f"{name} {value:.4f}" for name, value in event.epoch.terms.items())
    return f"{place}: {_epoch(event, terms)}"


def _epoch(event: Trained, losses: str) -> str:
    epoch = event.epoch
    validation = "" if event.validation is None else f", validation {TASKS[event.task].headline.text(event.validation)}"
    stage = "" if epoch.stage in ("alone", event.job.arm) else f" of {epoch.stage}"
    speed = epoch.images / epoch.seconds
    return f"epoch {epoch.number}/{epoch.epochs}{stage}, {losses}{validation}, {speed:,.0f} samples/s"


def _estimated(event: StoreEstimate) -> str:
    size, whole, free = decimal(event.bytes), decimal(event.whole), decimal(event.free)
    if event.bytes < event.whole:
        size = f"{whole}, this shard {size}"
    return f"{event.job}: the store of its outputs will take about {size} ({free} free); {building(event)}"


def building(store: StoreEstimate | Estimate) -> str:
    """How long a store takes to build, and how fast a disk must be for it to be worth it."""
    if store.seconds < 1:
        return "building it takes under a second"
    return (
        f"building it takes about {timedelta(seconds=round(store.seconds))}. Reading it is faster than running the "
        f"teacher in every step if the disk reads more than {decimal(round(store.bytes / store.seconds))} a second"
    )


def _verified(event: StoreVerified) -> str:
    return (
        f"{event.job}: {event.rows} random rows of {event.folder} match the teacher's outputs "
        f"(largest difference {event.deviation:.2g}, allowed {event.allowed:.2g})"
    )
