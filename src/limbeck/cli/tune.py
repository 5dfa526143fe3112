"""`limbeck tune`."""

import logging
import os
import shlex
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limbeck.cli.compare import Others, processes
from limbeck.cli.recipe_options import Allow, Asked, DataRoot, RecipeFile, Set, TrustCode, Worker, say_code
from limbeck.cli.reporting import reporting

if TYPE_CHECKING:
    from rich.table import Table

    from limbeck.comparison.tuning import Tried, Tuning
    from limbeck.experiment.events import Event, Track
    from limbeck.recipe.blocks import Recipe

SEED = 1_000_000
"""No student or teacher of `limbeck compare --seeds N` has it."""

Method = Annotated[str | None, typer.Option(help="The method whose options are searched; default: that of the recipe.")]
Trials = Annotated[int, typer.Option(min=2, max=10_000, help="The number of trials, with those of earlier starts.")]
Search = Annotated[list[str] | None, typer.Option(metavar="KEY=LOW..HIGH", help="Add or replace a range.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The seed of all trials; not one that is compared.")]
Jobs = Annotated[int, typer.Option(min=1, max=256, help="The number of processes; each trains one student at a time.")]
Out = Annotated[Path | None, typer.Option(help="The folder; the default is runs/NAME-tuned with the recipe's name.")]


def tune(
    recipe: RecipeFile,
    method: Method = None,
    trials: Trials = 20,
    search: Search = None,
    seed: Seed = SEED,
    override: Set = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Run a tiny version of the recipe as a test.")] = False,
    jobs: Jobs = 1,
    out: Out = None,
    data_root: DataRoot = None,
    allow: Allow = None,
    trust_code: TrustCode = False,
    worker: Worker = False,
) -> None:
    """Find options of one method on the validation split, and write the recipe with them.

    Tries the recipe's own options first. A second start continues up to the number of trials.
    """
    asked = Asked(recipe, override, None, out, data_root, allow, trust_code, smoke)
    again = f"{asked.again('tune')} --trials {trials} --seed {seed}" + (f" --method {method}" if method else "")
    again += "".join(f" --search {shlex.quote(text)}" for text in search or ())
    if jobs > 1:  # before torch is imported; the other processes inherit it, so that all compute the same bits
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    with reporting(f"{again} --jobs {jobs}" if jobs > 1 else again):
        checked = asked.checked()
        if method:
            (block,) = replace(asked, methods=[method]).checked().methods
            checked = checked.model_copy(update={"method": block})
        folder = out or Path("runs") / f"{checked.name}-tuned"
        others = partial(processes, jobs - 1, again, folder)
        _tune(checked, folder, trials, search or [], seed, jobs, others, trust_code=trust_code, worker=worker)


def _tune(
    recipe: "Recipe",
    folder: Path,
    trials: int,
    search: list[str],
    seed: int,
    jobs: int,
    others: Others,
    *,
    trust_code: bool,
    worker: bool,
) -> None:
    from limbeck.cli.terminal import console, loading

    with loading():
        from limbeck.cli.progress import follow, reading, share
        from limbeck.comparison.tuning import Tried, Tuning
        from limbeck.experiment.events import Elsewhere, Started, Trained
        from limbeck.train.allocator import keep_memory
        from limbeck.train.threads import threads_for

    logging.getLogger("optuna").setLevel(logging.WARNING)
    keep_memory()
    say_code(recipe.model_dump())
    screen = console(soft_wrap=True)
    with reading(screen) as progress:
        tuning = Tuning(
            recipe, folder, trials=trials, search=search, seed=seed, trust_code=trust_code, progress=progress
        )
    experiment = tuning.experiment
    told = experiment.notes
    screen.print(
        f"{recipe.name}: {len(experiment.data.train):,} training and {len(experiment.data.validation):,} validation "
        f"samples; on {experiment.engine.device.type}"
    )
    for note in told:
        screen.print(f"note: {note}")

    def start(track: "Track") -> "Iterator[Event]":
        for event in tuning.run(track, wait=not worker):
            if isinstance(event, Tried):
                options = ", ".join(f"{key} {value:.3g}" for key, value in event.options.items())
                screen.print(f"trial {event.number}: {_value(tuning, event)} with {options}")
            elif isinstance(event, Started | Elsewhere) or (isinstance(event, Trained) and event.job.teaches):
                yield event  # the rest would show the validation split as test split

    with threads_for(experiment.macs), others() as wait:
        follow(start, screen, tuning.work, share(trials - len(tuning.tried), jobs))
        for note in experiment.notes:
            if note not in told:  # on the teacher that was trained
                screen.print(f"note: {note}")
        for line in wait():
            screen.print(line)
    if worker:
        return
    screen.print(_table(tuning))
    screen.print(_gain(tuning))
    path = tuning.write()
    screen.print(f"written: {path}")
    screen.print(_next_step(tuning, shlex.quote(str(path))))


def _next_step(tuning: "Tuning", file: str) -> str:
    name = tuning.recipe.method["name"]
    if name == "alone":
        rate = tuning.best.options["lr"]
        return f"tune a method with this rate: limbeck tune {file} --method kd --search lr={rate}..{rate}"
    return f"compare it: limbeck compare {file} --methods {name} --seeds 6"


def _value(tuning: "Tuning", tried: "Tried") -> str:
    return "diverged" if tried.value is None else tuning.figure.text(tried.value)


def _table(tuning: "Tuning") -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=f"{tuning.recipe.name}: validation split", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in ("trial", *tuning.own.options, tuning.figure.label):
        table.add_column(heading, justify="right", overflow="fold")
    for tried in tuning.tried:
        values = (f"{value:.3g}" for value in tried.options.values())
        table.add_row(f"{tried.number}{' *' * (tried == tuning.best)}", *values, _value(tuning, tried))
    return table


def _gain(tuning: "Tuning") -> str:
    best, own = tuning.best, tuning.own
    if best == own:
        return f"no trial is better than the recipe's own options, {tuning.figure.label} {_value(tuning, own)}"
    return (
        f"trial {best.number} is the best: {tuning.figure.label} {_value(tuning, best)} on the validation split; the "
        f"recipe's own options (trial {own.number}): {_value(tuning, own)}. This difference is optimistic: the best of "
        f"{len(tuning.tried)} trials was chosen on the samples on which it is measured, with one seed"
    )
