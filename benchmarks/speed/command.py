"""The command: options, progress and what is printed.

Progress goes to stderr. The exit code is 0 also where a gate fails, because a busy machine can be the cause.
"""

import argparse
import json
from dataclasses import replace

from rich.console import Console

from benchmarks.speed.benchmark import FULL, LEAST_ROUNDS, QUICK, measure
from benchmarks.speed.tables import sentences, tables
from benchmarks.speed.workloads import WORKLOADS


def rounds(text: str) -> int:
    """A number of rounds that is large enough for a median."""
    count = int(text)
    if count < LEAST_ROUNDS:
        raise argparse.ArgumentTypeError(f"got {count}, allowed are {LEAST_ROUNDS} and more")
    return count


def main(arguments: list[str] | None = None) -> None:
    """Measure what the arguments name; the default is the process's command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description="Measure the speed of a step.")
    parser.add_argument("--quick", action="store_true", help="end within a minute; only kd unless named; no memory")
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help="may be repeated; all by default")
    parser.add_argument("--rounds", type=rounds, help=f"how often each variant is measured, at least {LEAST_ROUNDS}")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    options = parser.parse_args(arguments)
    extent = QUICK if options.quick else FULL
    if options.rounds:
        extent = replace(extent, rounds=options.rounds)
    names = options.workload or (["kd"] if options.quick else list(WORKLOADS))
    with Console(stderr=True).status("") as status:
        result = measure([WORKLOADS[name] for name in names], extent, status.update)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    console = Console(markup=False, highlight=False, soft_wrap=True, width=100)  # the tables are whole
    for part in (*tables(result), *sentences(result)):
        console.print(part)
