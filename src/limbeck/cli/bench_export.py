"""`limbeck bench-export`."""

from os.path import commonpath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limbeck.cli.reporting import reporting

if TYPE_CHECKING:
    from rich.table import Table

    from limbeck.exports.bench import Measured

Exports = Annotated[list[Path], typer.Argument(help="Folders that limbeck export wrote, or files of them.")]


def bench_export(exports: Exports) -> None:
    """Measure the size, the latency and the peak memory of exports on this machine.

    Needs neither the run nor the data: the files read one random sample. The latencies are measured in turns.
    """
    with reporting():
        from limbeck.cli.terminal import console, loading

        with loading():
            from limbeck.evaluate.cost import QUIET
            from limbeck.exports.bench import bench_exports

        screen = console(soft_wrap=True)
        with screen.status("measuring"):
            found = bench_exports(exports)
        place = Path(commonpath([path.absolute().parent for path in exports]))
        screen.print(f"in {place}:")
        screen.print(_table(found, place))
        busy = found[0].latency.others_cores or 0.0
        if busy > QUIET:
            screen.print(f"The latencies are unreliable: other processes used {busy:.1f} cores meanwhile.")


def _table(found: "list[Measured]", place: Path) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in ("", "network", "precision"):
        table.add_column(heading, overflow="fold")
    for heading in ("latency ms", "p95 ms", "memory MB", "bytes"):
        table.add_column(heading, justify="right")
    for one in found:
        times = f"{one.latency.median_ms:.3f}", f"{one.latency.p95_ms:.3f}"
        memory = "" if one.memory is None else f"{one.memory / 1e6:.1f}"
        table.add_row(
            str(one.path.absolute().relative_to(place)),
            one.about.network,
            one.about.precision,
            *times,
            memory,
            f"{one.bytes:,}",
        )
    return table
