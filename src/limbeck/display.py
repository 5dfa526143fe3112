"""What the commands show: progress, tables, verdicts. It returns things to print; `show` alone drives a console."""

import fnmatch
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from limbeck.core import Batch, LimbeckError
from limbeck.data import data_root
from limbeck.engine import pick_precision
from limbeck.environment import environment
from limbeck.evaluate import parameters
from limbeck.experiment import Experiment
from limbeck.jobs import Finished, Job, Started, Trained
from limbeck.models import MODELS, build, layers
from limbeck.models import options as model_options
from limbeck.options import nearest
from limbeck.summary import summarise
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


def show(experiment: Experiment, console: Console, out: Path) -> None:
    """Run an experiment, showing a progress bar on a terminal and plain lines elsewhere, then its table."""
    engine, data = experiment.engine, experiment.data
    console.print(
        f"{experiment.recipe.name}: {len(data.train):,} training, {len(data.validation):,} validation and "
        f"{len(data.test):,} test samples of {len(data.classes)} classes; on {engine.device.type} in "
        f"{'bfloat16' if engine.precision == 'bf16' else '32 bits'} ({engine.reason})",
        highlight=False,
        soft_wrap=True,
    )
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

    samples = 0

    def track(job: Job, epochs: int, batches: BatchSource) -> BatchSource:
        nonlocal samples
        samples = batches.samples
        task = progress.add_task(str(job), total=epochs * samples)
        return _Watched(batches, lambda count: progress.advance(task, count))

    with progress if terminal else nullcontext():
        spoken = time.monotonic()
        for event in experiment.run(track):
            if isinstance(event, Finished):
                console.print(_finished(event), highlight=False, soft_wrap=True)
                for task in progress.task_ids:
                    progress.remove_task(task)
            elif isinstance(event, Started) and event.done:
                for task in progress.task_ids:
                    progress.update(task, completed=event.done * samples)
                console.print(f"{event.job}: going on from its checkpoint", highlight=False)
            elif isinstance(event, Trained) and not terminal and time.monotonic() - spoken > LINE_EVERY:
                spoken = time.monotonic()
                console.print(_trained(event), highlight=False, soft_wrap=True)
    console.print(result_table(experiment))
    for line in verdicts(experiment):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"written: {out}/result.json and {out}/student.safetensors", highlight=False, soft_wrap=True)


def result_table(experiment: Experiment) -> Table:
    """One row a network: quality over the seeds, and cost."""
    results, figures = list(experiment.results.values()), experiment.figures
    summary = summarise(results)
    seeds = max(row["accuracy"]["n"] for row in summary.values())
    table = Table(
        title=f"{experiment.recipe.name}: test split, {seeds} seed{'s' if seeds > 1 else ''}, mean ± deviation",
        box=box.SIMPLE_HEAD,
        padding=0,  # its numbers are whole in 80 columns, the width where the output is no terminal
        show_edge=False,
    )
    for heading in (
        "",
        "accuracy %",
        f"errors of {results[0]['test']['samples']:,}",
        "agrees with teacher %",
        "parameters",
        "MACs",
        "latency ms",
        "p95 ms",
    ):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=not heading, overflow="fold")
    for arm, row in summary.items():
        agreement = [
            100 * result["test"]["agreement"]
            for result in results
            if result["arm"] == arm and "agreement" in result["test"]
        ]
        cost = figures.get(arm, {})
        table.add_row(
            arm,
            spread_text(row["accuracy"], 100, 2),
            spread_text(row["errors"], 1, 1),
            f"{sum(agreement) / len(agreement):.2f}" if agreement else "",
            f"{cost['parameters']:,}" if cost else "",
            f"{cost['macs']:,}" if cost else "",
            f"{cost['latency_ms']:.3f}" if cost else "",
            f"{cost['latency_p95_ms']:.3f}" if cost else "",
        )
    return table


def verdicts(experiment: Experiment) -> Iterator[str]:
    """What the method gained over the student alone, and the omitted-class study where there is one."""
    for arm, row in summarise(experiment.results.values()).items():
        gain = row.get("fewer_errors_than_alone")
        if gain is not None:
            error = gain["standard_error"]
            doubt = "one pair, so no deviation" if error is None else f"standard error {error:.1f}, {gain['n']} pairs"
            more = "fewer" if gain["mean"] >= 0 else "more"
            yield f"{arm}: {abs(gain['mean']):.1f} {more} errors than alone ({doubt})"
    for result in experiment.results.values():
        taught = result.get("teacher_after")
        if taught is not None:
            of = f"{result['arm']} seed {result['seed']}"
            yield f"{of}: the teacher that it trained gets {100 * taught['accuracy']:.2f} % of the test split right"
        study = result.get("bias_shift")
        if study is not None:
            before, after, oracle = study["before"], study["validation_tuned"], study["test_tuned"]
            yield (
                f"{result['arm']} seed {result['seed']}, classes {study['classes']}: {before['errors']} errors, "
                f"{100 * before['share_right']:.1f} % of them right; "
                f"bias {after['delta']:+.1f} (chosen on validation): "
                f"{after['errors']} errors, {100 * after['share_right']:.1f} % right; "
                f"bias {oracle['delta']:+.1f} (tuned on test, as the paper did): "
                f"{oracle['errors']} errors, {100 * oracle['share_right']:.1f} % right"
            )


def spread_text(spread: Mapping[str, Any], factor: float, digits: int) -> str:
    """``mean ± deviation``; the mean alone where there is one value."""
    mean = f"{factor * spread['mean']:.{digits}f}"
    return mean if spread["deviation"] is None else f"{mean} ± {factor * spread['deviation']:.{digits}f}"


def model_table(pattern: str) -> Table:
    """The zoo's networks whose name matches, with their parameters for 10 classes."""
    names = fnmatch.filter(MODELS, pattern if set(pattern) & set("*?[") else f"*{pattern}*")
    if not names:
        raise LimbeckError(f"no model matches {pattern!r}: {nearest(pattern, MODELS)}")
    table = Table("model", "options", "parameters", title="for 10 classes of 3x32x32 images")
    for name in names:
        options = model_options(name)
        needed = [key for key, option in options.items() if option.default is option.empty]
        with torch.device("meta"):
            count = "" if needed else f"{parameters(build(name, classes=10, shape=(3, 32, 32))):,}"
        shown = [key if key in needed else f"{key}={option.default}" for key, option in options.items()]
        table.add_row(name, ", ".join(shown), count)
    return table


def layer_table(model: str, shape: str, classes: int, settings: Iterable[str]) -> Table:
    """Every layer of a network that a tap can read, with its output's shape for one sample."""
    try:
        sizes = tuple(int(size) for size in shape.split(","))
        options = {key: YAML(typ="safe").load(value) for key, _, value in (item.partition("=") for item in settings)}
    except (ValueError, YAMLError) as error:
        raise LimbeckError(
            f"--shape is written C,H,W and --set option=value, got {shape!r} and {list(settings)}"
        ) from error
    network = build(model, classes=classes, shape=sizes, **options)
    try:
        found = layers(network, sizes)
    except Exception as error:  # the network may be anybody's, and raise anything
        raise LimbeckError(
            f"{model} does not run on samples of shape {sizes}: {type(error).__name__}: {error}"
        ) from error
    table = Table("layer", "kind", "output", "parameters")
    for layer in found:
        table.add_row(
            layer.name, layer.kind, "x".join(map(str, layer.shape)) if layer.shape else "", f"{layer.parameters:,}"
        )
    return table


def doctor_table() -> Table:
    """Versions, device, precision and data, as this machine has them."""
    found = environment()
    device = torch.device(
        "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    )
    precision, reason = pick_precision(device, "auto")
    try:
        root = data_root(None)
        data = f"{root} ({'is there' if root.is_dir() else 'not there yet'})"
    except LimbeckError as error:
        data = str(error)
    rows = {
        "python": found["python"],
        **found["packages"],
        "platform": found["platform"],
        "cpu": f"{found['cpu']}, {found['cores']} cores",
        "threads": str(found["threads"]),
        "device": f"{device.type} {', '.join(found['gpus'])}".strip(),
        "precision": f"{'bfloat16' if precision == 'bf16' else '32 bits'} ({reason})",
        "data": data,
        "commit": found["commit"] or "installed without one",
    }
    table = Table("", "", show_header=False)
    for key, value in rows.items():
        table.add_row(key, value)
    return table


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
