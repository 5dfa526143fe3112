"""`limbeck report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limbeck.cli.reporting import reporting

if TYPE_CHECKING:
    from limbeck.data import Data


def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run or comparison.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file; default: report.html in the folder.")] = None,
) -> None:
    """Write the results of a run or comparison as one HTML page.

    The page works without a network and without other files.
    """
    with reporting():
        write_page(folder, out)


def write_page(folder: Path, out: Path | None = None, *, data: "Data | None" = None) -> None:
    """Write the page and print its path; see `limbeck.report.page.write_report`."""
    from limbeck.cli.terminal import console, loading

    with loading():
        from limbeck.cli.progress import reading
        from limbeck.report.page import write_report

    screen = console()
    with reading(screen) as progress:
        path = write_report(folder, out, data=data, progress=progress)
    screen.print(f"written: {path}", highlight=False, soft_wrap=True)
