"""`limbeck methods`."""

from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.reporting import reporting

WIDTH = 96
"""Columns of the list where the output is no terminal."""


def methods(
    name: Annotated[str | None, typer.Argument(help="The method to show in full.")] = None,
    write: Annotated[Path | None, typer.Option(help="Write the documentation pages to this folder.")] = None,
) -> None:
    """List the methods, or show one in full."""
    with reporting():
        from limbeck.cli import catalogue
        from limbeck.cli.terminal import console
        from limbeck.files import atomic
        from limbeck.recipe.signatures import FILE

        if write is not None:
            for file, text in catalogue.method_pages().items():
                atomic.write(write / file, text)
            if FILE.read_text(encoding="utf-8") != catalogue.signatures():  # never where limbeck is installed
                atomic.write(FILE, catalogue.signatures())
        elif name is not None:
            console().print(catalogue.method_page(name), soft_wrap=True, end="")
        else:
            listing = console() if console().is_terminal else console(width=WIDTH)
            listing.print(catalogue.method_table())
