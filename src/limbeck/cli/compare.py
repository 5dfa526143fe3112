"""`limbeck compare`."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from limbeck.cli.recipe_options import (
    Allow,
    Asked,
    DataRoot,
    Methods,
    RecipeFile,
    Set,
    TrustCode,
    Worker,
    names,
    say_code,
)
from limbeck.cli.report import write_page
from limbeck.cli.reporting import reporting

if TYPE_CHECKING:
    from limbeck.recipe.blocks import Recipe

Others = Callable[[], AbstractContextManager[Callable[[], list[str]]]]
"""Starts more processes; gives what waits for them, and returns a sentence for each that failed."""

STOPPED = (0, 130, -signal.SIGINT, -signal.SIGTERM)
"""The exit codes of a process that was finished or stopped."""

Out = Annotated[Path | None, typer.Option(help="The folder; the default is runs/NAME-compared with the recipe's name.")]
Seeds = Annotated[int | None, typer.Option(min=1, max=1000, help="The number of seeds; default: those of the recipe.")]
Jobs = Annotated[int, typer.Option(min=1, max=256, help="The number of processes; each trains one seed at a time.")]
Adjust = Annotated[str, typer.Option(help="How p-values are adjusted over the methods: holm or fdr.")]


def compare(
    recipe: RecipeFile,
    methods: Methods = None,
    seeds: Seeds = None,
    override: Set = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Run a tiny version of the recipe as a test.")] = False,
    jobs: Jobs = 1,
    adjust: Adjust = "holm",
    out: Out = None,
    data_root: DataRoot = None,
    allow: Allow = None,
    trust_code: TrustCode = False,
    worker: Worker = False,
) -> None:
    """Compare methods over seeds with each other and with the student alone.

    Trains the students of a seed together, with one run of the teacher for all. A second start, also with more methods
    or seeds, trains only what is missing.
    """
    more = [f"seeds={json.dumps(list(range(seeds)))}"] if seeds else []
    asked = Asked(recipe, override, None, out, data_root, allow, trust_code, smoke, methods=names(methods))
    again = asked.again("compare")
    again += (f" --methods {shlex.quote(methods)}" if methods else "") + (f" --seeds {seeds}" if seeds else "")
    again += f" --adjust {adjust}" if adjust != "holm" else ""
    if jobs > 1:  # before torch is imported; the other processes inherit it, so that all compute the same bits
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    with reporting(f"{again} --jobs {jobs}" if jobs > 1 else again):
        from limbeck.errors import LimbeckError, nearest

        if adjust not in ("holm", "fdr"):
            raise LimbeckError(f"--adjust is {adjust!r}: {nearest(adjust, ('holm', 'fdr'))}")
        checked = asked.checked(*more)
        folder = out or Path("runs") / f"{checked.name}-compared"
        others = partial(processes, jobs - 1, again, folder)
        _compare(checked, folder, adjust, jobs, others, trust_code=trust_code, worker=worker)


def _compare(
    recipe: "Recipe", folder: Path, adjust: str, jobs: int, others: Others, *, trust_code: bool, worker: bool
) -> None:
    from limbeck.cli.terminal import console, loading

    with loading():
        from limbeck.cli.progress import reading, show_sweep
        from limbeck.cli.tables import comparison_table
        from limbeck.comparison.results import COMPARISON, evidence
        from limbeck.comparison.sweep import Sweep
        from limbeck.train.allocator import keep_memory
        from limbeck.train.threads import threads_for

    keep_memory()
    say_code(recipe.model_dump())
    screen = console()
    with reading(screen) as progress:
        sweep = Sweep(recipe, folder, trust_code=trust_code, progress=progress)
    with threads_for(sweep.experiment.macs):
        with others() as wait:
            show_sweep(sweep, screen, processes=jobs, wait=not worker)
            for line in wait():
                screen.print(line, highlight=False, soft_wrap=True)
        if worker:
            return
        found = sweep.conclude("fdr" if adjust == "fdr" else "holm")
    screen.print(comparison_table(found))
    for line in evidence(found):
        screen.print(line, highlight=False, soft_wrap=True)
    screen.print(f"written: {folder / COMPARISON}", highlight=False, soft_wrap=True)
    write_page(folder, data=sweep.experiment.data)


def _log(folder: Path, number: int) -> BinaryIO:
    from limbeck.experiment.runfiles import LOCKS

    place = folder / LOCKS / f"process{number}.log"
    place.parent.mkdir(parents=True, exist_ok=True)
    return place.open("wb")


@contextmanager
def processes(count: int, command: str, folder: Path) -> Iterator[Callable[[], list[str]]]:
    """Start so many more processes with this command line, as `Others`. They are stopped with the block."""
    running: dict[str, subprocess.Popen[bytes]] = {}  # by log
    line = [sys.executable, "-m", *shlex.split(command), "--worker"]
    with ExitStack() as logs:
        for number in range(1, count + 1):
            log = logs.enter_context(_log(folder, number))
            running[log.name] = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT)

        def failed() -> list[str]:
            codes = {log: process.wait() for log, process in running.items()}
            found = {log: code for log, code in codes.items() if code not in STOPPED}
            return [f"a process of --jobs failed with exit code {code}: see {log}" for log, code in found.items()]

        try:
            yield failed
        finally:
            for process in running.values():
                process.terminate()
                process.wait()
