"""`limbeck report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limbeck.cli.reporting import reporting

if TYPE_CHECKING:
    from limbeck.data import Data


def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run or comparison.")],
    out: Annotated[Path | None, typer.Option(help="The file; default: report.html or FIGURE.svg in it.")] = None,
    figure: Annotated[
        str | None,
        typer.Option(help="Write only this figure, as SVG: differences, cost-latency, cost-parameters or cost-size."),
    ] = None,
) -> None:
    """Write the results of a run or comparison as one HTML page, or a figure of the page as SVG.

    The page works without a network and without other files.
    """
    with reporting():
        if figure is None:
            write_page(folder, out)
        else:
            _write_figure(folder, figure, out)


def _write_figure(folder: Path, name: str, out: Path | None) -> None:
    from limbeck.cli.terminal import console, loading

    with loading():
        from limbeck.report.standalone import write_figure

    path = out or folder / f"{name}.svg"
    write_figure(folder, name, path)
    console().print(f"written: {path}", highlight=False, soft_wrap=True)


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
