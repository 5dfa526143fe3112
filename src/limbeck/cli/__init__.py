"""The commands, one file each. What needs torch is imported inside a command: help must not wait for it."""

import os
from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from limbeck.cli import (
    bench_export,
    cache,
    compare,
    compress,
    doctor,
    export,
    methods,
    models,
    plan,
    report,
    reproduce,
    run,
    runs,
    tune,
)

COMMANDS: Mapping[str, Callable[..., None]] = {
    "demo": run.demo,
    "plan": plan.plan,
    "run": run.run,
    "compare": compare.compare,
    "tune": tune.tune,
    "report": report.report,
    "reproduce": reproduce.reproduce,
    "export": export.export,
    "bench-export": bench_export.bench_export,
    "compress": compress.compress,
    "runs": runs.runs,
    "methods": methods.methods,
    "models": models.models,
    "taps": models.taps,
    "doctor": doctor.doctor,
}
"""In the order of the help text. A command's docstring is its help text, its arguments are its options."""

CACHE_COMMANDS: Mapping[str, Callable[..., None]] = {
    "build": cache.build,
    "verify": cache.verify,
    "info": cache.info,
}
"""The same below `limbeck cache`."""

SPINS = "30000"
"""How often a thread of GNU's OpenMP looks for work before it sleeps.

The default is ten times as large: waiting threads then slow down the others if other programs run. If threads sleep at
once and no other program runs, a step of a large network takes up to a third longer. See docs/speed.md for figures.
"""


def _group(commands: Mapping[str, Callable[..., None]], text: str, name: str) -> typer.Typer:
    made = typer.Typer(
        name=name,
        help=text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for command, function in commands.items():
        made.command(command)(function)
    return made


app = _group(
    COMMANDS,
    "Train a small student network with a trained teacher network, and measure whether the teacher helped.",
    "limbeck",
)
app.add_typer(_group(CACHE_COMMANDS, "Build, verify or show the store of a teacher's outputs.", "cache"))


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Train a small student network with a trained teacher network, and measure whether the teacher helped."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is first imported
    from limbeck.cli.terminal import plain_where_needed, several_processes

    if several_processes():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no warning that every parameter is used
    plain_where_needed()
    if version:
        from importlib.metadata import version as installed

        print(f"limbeck {installed('limbeck')}")
        raise typer.Exit
