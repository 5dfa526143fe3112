"""`limbeck plan`."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich import box
from rich.filesize import decimal
from rich.table import Table

from limbeck.cli.recipe_options import (
    Allow,
    Asked,
    DataRoot,
    Methods,
    Out,
    RecipeFile,
    Seed,
    Set,
    TrustCode,
    names,
    say_code,
)
from limbeck.cli.reporting import reporting

if TYPE_CHECKING:
    from limbeck.experiment.forecast import ArmForecast, Forecast


def plan(
    recipe: RecipeFile,
    methods: Methods = None,
    override: Set = None,
    seed: Seed = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Plan the tiny version of the recipe.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: Out = None,
    data_root: DataRoot = None,
    allow: Allow = None,
    trust_code: TrustCode = False,
) -> None:
    """Show what a run or comparison would do and cost, and what the checks say. Nothing is trained or written.

    The exit code is 2 if `limbeck run` or `limbeck compare` would refuse the recipe.
    """
    asked = Asked(recipe, override, seed, out, data_root, allow, trust_code, smoke, methods=names(methods))
    with reporting():
        checked = asked.checked()
        from limbeck.cli.terminal import console, loading
        from limbeck.recipe.blocks import Refusal

        with loading():
            from limbeck.cli.progress import reading
            from limbeck.comparison.sweep import as_compared
            from limbeck.experiment.forecast import forecast
            from limbeck.experiment.run import Experiment
            from limbeck.train.threads import threads_for

        if not as_json:
            say_code(checked.model_dump())
        used = as_compared(checked) if checked.methods else checked
        lenient = used.model_copy(update={"allow": get_args(Refusal)})
        with reading(console(stderr=True)) as progress:
            folder = out or Path("runs") / f"{checked.name}{'-compared' * bool(checked.methods)}"
            experiment = Experiment(lenient, folder, trust_code=trust_code, keep="memory", progress=progress)
        with threads_for(experiment.macs):
            found = forecast(experiment, checked.allow)
        if as_json:
            print(json.dumps(asdict(found), indent=2))
        else:
            _show(found)
        if any(verdict.state == "refused" for verdict in found.verdicts):
            raise typer.Exit(2)


def _show(found: "Forecast") -> None:
    from limbeck.cli.terminal import console
    from limbeck.data.targets import UNITS

    screen = console()
    shape = " x ".join(map(str, found.shape))
    precision = "bfloat16" if found.precision == "bf16" else "32 bits"
    units = UNITS.get(found.task, "classes")
    classes = f"{found.classes} {units if found.classes > 1 else units.removesuffix('s')}"
    screen.print(f"{found.name}: inputs of {shape}, targets of {classes}; on {found.device} in {precision}")
    data = _table("data", "split", "samples", "origin")
    for name, split in found.splits.items():
        data.add_row(name, f"{split.samples:,}", split.origin)
    networks = _table("networks", "network", "parameters", "MACs", "reads")
    for name, network in found.networks.items():
        macs = "" if network.macs is None else f"{network.macs:,}"
        networks.add_row(name, f"{network.parameters:,}", macs, network.reads)
    verdicts = _table("checks", "verdict", "check", "")
    for (state, said), same in groupby(found.verdicts, key=lambda verdict: (verdict.state, verdict.said)):
        verdicts.add_row(state, ", ".join(verdict.check for verdict in same), said)
    for table in (data, networks, *(_arm(name, arm) for name, arm in found.arms.items()), verdicts):
        screen.print()
        screen.print(table)
    screen.print()
    for line in (*_costs(found), *(f"note: {note}" for note in found.notes)):
        screen.print(line, soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    return table


def _arm(name: str, arm: "ArmForecast") -> Table:
    """What one training reads, term by term."""
    times = "once" if arm.trainings == 1 else f"{arm.trainings} times"
    table = _table(f"training {name}, {times}", "term", "weight", "reads", "shape", "why")
    for stage in arm.stages:
        table.add_section()
        epochs = f"{stage.epochs:,} epoch{'s' * (stage.epochs > 1)} of {stage.steps:,} step{'s' * (stage.steps > 1)}"
        shared = ", once for all seeds" * (stage.trainings < arm.trainings)
        table.add_row(f"stage {stage.name}", "", f"{epochs}{shared}", "", "")
        table.add_row("", "", f"{', '.join(stage.learns)} learn{'s' * (len(stage.learns) == 1)}", "", "")
        for term, about in stage.terms.items():
            own = f" ({about.parameters:,} parameters)" if about.parameters else ""
            labels = [f"{term}{own}", " to ".join(f"{weight:g}" for weight in about.weight)]
            for read in about.reads:
                table.add_row(*labels, read.tap, "x".join(map(str, read.shape)), read.why)
                labels = ["", ""]
    return table


def _costs(found: "Forecast") -> Iterator[str]:
    """What the run takes, in sentences."""
    kept = found.kept
    store = f", and {decimal(kept.store)} for the outputs of the teacher" if kept.store else ""
    yield (
        f"{kept.folder} will hold about {decimal(kept.weights)} of weights, a checkpoint of {decimal(kept.checkpoint)}"
        f"{store}"
    )
    if found.store:
        from limbeck.cli.progress import building

        yield f"the store of a teacher's outputs: {building(found.store)}"
    if kept.in_use:
        yield f"{kept.folder} already holds a run: choose --resume, --overwrite or another --out for limbeck run"
    if found.seconds is None:
        yield "the time is not estimated, because the networks cannot be copied"
    else:
        taken = "under a second" if found.seconds < 1 else f"about {timedelta(seconds=round(found.seconds))}"
        yield f"estimated time of all training steps, from a few that were timed: {taken}"
    yield f"estimated memory, without PyTorch itself: about {decimal(found.memory)}"
