"""`limbeck runs`: the runs on disk."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from limbeck.cli.reporting import reporting

if TYPE_CHECKING:
    from limbeck.comparison.listing import ListedRun

Folder = Annotated[Path, typer.Argument(metavar="[FOLDER]", help="A run, a comparison, or a folder of them.")]


def runs(
    folder: Folder = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the runs and comparisons in a folder: by task, the best student first, and smoke tests after them.

    Prints the command that makes or resumes each. Of a comparison, the student is that of the best method.
    """
    with reporting():
        from limbeck.cli.terminal import console
        from limbeck.comparison.listing import list_runs

        found = list_runs(folder)
        if as_json:
            print(json.dumps([asdict(run) for run in found], indent=2))
            return
        console().print(_table(found) if found else f"no run or comparison in {folder}")
        commands = [run.command for run in found if run.command is not None]
        if commands:
            console().print("\nTo make a run again, or to resume it:\n" + "\n".join(commands), soft_wrap=True)


def _table(found: "list[ListedRun]") -> Table:
    from limbeck.tasks import TASKS

    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in ("run", "method", "teacher", "alone", "student", "figure", "seeds", "state", "date"):
        table.add_column(heading, overflow="fold")
    for run in found:
        figure = TASKS[run.task or "classification"].headline
        shares = [figure.number(one) if one is not None else "" for one in (run.teacher, run.alone, run.student)]
        date = run.date[:16].replace("T", " ")
        seeds = ", ".join(map(str, run.seeds))
        told = f"{figure.label}{' %' * figure.percent}{', lower is better' * figure.falls}" * (run.task is not None)
        shares[-1] += f" {run.best}" * (run.best is not None)
        table.add_row(Path(run.folder).name, run.method or "", *shares, told, seeds, run.state, date)
    return table
