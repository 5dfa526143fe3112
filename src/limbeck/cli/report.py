"""`limbeck report`."""

from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.reporting import reporting


def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run or comparison.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file; default: report.html in the folder.")] = None,
) -> None:
    """Write one HTML page with the results of a run or comparison.

    The page needs no other file and no network. Images are taken from the data that the recipe names.
    """
    with reporting():
        say_report(folder, out)


def say_report(folder: Path, out: Path | None = None) -> None:
    """Write the page, and print its path."""
    from limbeck.cli.terminal import console
    from limbeck.report.page import write_report

    console().print(f"written: {write_report(folder, out)}", highlight=False, soft_wrap=True)
