"""`limbeck compare`."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from limbeck.cli.recipe_options import Allow, Asked, DataRoot, Out, RecipeFile, Set, TrustCode, say_code
from limbeck.cli.report import write_page
from limbeck.cli.reporting import reporting

if TYPE_CHECKING:
    from limbeck.recipe.blocks import Recipe

Others = Callable[[], AbstractContextManager[Callable[[], None]]]
"""Starts more processes; gives what waits for them."""

Methods = Annotated[str | None, typer.Option(help="What to compare, such as kd,srrl,kd+at; default: methods: [...]")]
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
) -> None:
    """Compare methods over seeds with each other and with the student alone.

    Trains the students of a seed together, with one run of the teacher for all. A second start, also with more methods
    or seeds, trains only what is missing.
    """
    listed = [name.strip() for name in methods.split(",")] if methods is not None else []
    more = [f"seeds={json.dumps(list(range(seeds)))}"] if seeds else []
    asked = Asked(recipe, override, None, out, data_root, allow, trust_code, smoke, methods=listed)
    again = asked.again("compare")
    again += (f" --methods {shlex.quote(methods)}" if methods else "") + (f" --seeds {seeds}" if seeds else "")
    again += f" --adjust {adjust}" if adjust != "holm" else ""
    if jobs > 1:  # before torch is imported; the other processes inherit it, so that all compute the same bits
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    with reporting(again):
        from limbeck.errors import LimbeckError, nearest

        if adjust not in ("holm", "fdr"):
            raise LimbeckError(f"--adjust is {adjust!r}: {nearest(adjust, ('holm', 'fdr'))}")
        checked = asked.checked(*more)
        folder = out or Path("runs") / f"{checked.name}-compared"
        others = partial(processes, jobs - 1, [sys.executable, "-m", *shlex.split(again)], folder)
        _compare(checked, folder, adjust, jobs, others, trust_code=trust_code)


def _compare(recipe: "Recipe", folder: Path, adjust: str, jobs: int, others: Others, *, trust_code: bool) -> None:
    from limbeck.cli.terminal import console, loading
    from limbeck.errors import LimbeckError

    with loading():
        from limbeck.cli.comparison_tables import comparison_table, evidence
        from limbeck.cli.progress import reading, show_sweep
        from limbeck.comparison.results import COMPARISON
        from limbeck.comparison.sweep import Sweep
        from limbeck.experiment.runfiles import LOCKS
        from limbeck.train.allocator import keep_memory
        from limbeck.train.threads import threads_for

    keep_memory()
    say_code(recipe.model_dump())
    screen = console()
    with reading(screen) as progress:
        sweep = Sweep(recipe, folder, trust_code=trust_code, progress=progress)
    with threads_for(sweep.experiment.macs):
        with others() as wait:
            show_sweep(sweep, screen)
            wait()
        missing = sweep.missing
        if missing and jobs > 1 and not sweep.diverged:  # one of the others was stopped
            show_sweep(sweep, screen)
            missing = sweep.missing
        if missing and not sweep.diverged:
            told = ", ".join(map(str, missing[:5])) + ", ..." * (len(missing) > 5)
            raise LimbeckError(
                f"{len(missing)} of {len(sweep.jobs)} students are not finished, because another process trains them "
                f"or was stopped: {told}. Start the command again when it has ended. The output of processes that "
                f"--jobs starts is in {folder / LOCKS}"
            )
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


def _wait_for(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        process.wait()


@contextmanager
def processes(count: int, command: Sequence[str], folder: Path) -> Iterator[Callable[[], None]]:
    """Start so many more processes with this command; gives what waits for them. They are stopped with the block."""
    running: list[subprocess.Popen[bytes]] = []
    with ExitStack() as logs:
        for number in range(1, count + 1):
            log = logs.enter_context(_log(folder, number))
            running.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        try:
            yield lambda: _wait_for(running)
        finally:
            for process in running:
                process.terminate()
                process.wait()
