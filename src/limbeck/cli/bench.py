"""`limbeck bench`."""

import json
from typing import Annotated

import typer

from limbeck.cli.reporting import reporting


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Soft targets on the ResNets alone, within a minute.")] = False,
    workload: Annotated[list[str] | None, typer.Option(help="kd, hint, srrl, at or mnist_mlp; all by default.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of all variants in turn, at least 5.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure the speed of training on this machine, beside other loops and the floor that the hardware sets."""
    with reporting():
        from limbeck.bench.benchmark import run_bench
        from limbeck.cli.progress import followed
        from limbeck.cli.tables import bench_tables
        from limbeck.cli.terminal import console

        result = followed(run_bench(quick=quick, workloads=workload, rounds=rounds), console(stderr=True))
        if as_json:
            print(json.dumps(result, indent=2))
        else:
            for part in bench_tables(result):
                console().print(part)
