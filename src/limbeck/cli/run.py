"""`limbeck run` and `limbeck demo`."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limbeck.cli.recipe_options import Allow, Asked, DataRoot, Out, RecipeFile, Seed, Set, TrustCode, say_code
from limbeck.cli.report import write_page
from limbeck.cli.reporting import reporting, started_again

if TYPE_CHECKING:
    from limbeck.recipe.blocks import Recipe

LAUNCHER = os.getppid()
"""The process that started this one, read before torch is imported, because torchrun may be killed meanwhile."""


def demo(
    out: Annotated[Path, typer.Option(help="The run folder; a previous demo is replaced.")] = Path("runs/demo"),
) -> None:
    """Run a distillation on handwritten digits, in half a minute.

    Trains a teacher, then for 3 seeds a student without and with the teacher, prints a table, and writes a page.
    """
    changes = ["name=demo"]
    asked = Asked(Path("digits_kd"), changes, out=out)
    with reporting(asked.again("run")):
        from limbeck.recipe.bundled import bundled
        from limbeck.recipe.read import read

        _run(asked, read(bundled("digits_kd.yaml"), overrides=changes), out, replaces=True)
        write_page(out)


def run(
    recipe: RecipeFile,
    override: Set = None,
    seed: Seed = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Run a tiny version of the recipe as a test.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run in the folder first.")] = False,
    out: Out = None,
    data_root: DataRoot = None,
    allow: Allow = None,
    trust_code: TrustCode = False,
    log: Annotated[list[str] | None, typer.Option(help="Also log to csv, tensorboard, wandb or mlflow.")] = None,
) -> None:
    """Run a recipe.

    Trains the teacher if the recipe says so, then for each seed the student without and with the teacher.
    """
    asked = Asked(recipe, override, seed, out, data_root, allow, trust_code, smoke, log)
    with reporting(asked.again("run"), several=True):
        from limbeck.errors import LimbeckError

        if resume and overwrite:
            raise LimbeckError("--resume needs the run that --overwrite deletes: use only one of them")
        checked = asked.checked()
        folder = out or Path("runs") / checked.name
        _run(asked, checked, folder, resume=resume, overwrite=overwrite, replaces=smoke)


def _run(
    asked: Asked, recipe: "Recipe", out: Path, *, replaces: bool, resume: bool = False, overwrite: bool = False
) -> None:
    """Run a recipe; with ``replaces``, it overwrites an earlier run of its kind, see `holds_run_of`."""
    from limbeck.cli.terminal import console, loading

    with loading():
        from limbeck.cli.progress import reading, show
        from limbeck.experiment.loggers import check_loggers, logged
        from limbeck.experiment.run import Experiment
        from limbeck.experiment.runfiles import holds_run_of
        from limbeck.files.alone import alone
        from limbeck.train.allocator import keep_memory
        from limbeck.train.processes import processes
        from limbeck.train.threads import threads_for

    check_loggers(asked.log or ())
    overwrite = overwrite or (replaces and not resume and holds_run_of(out, recipe))
    keep_memory()
    say_code(recipe.model_dump())
    with processes(recipe.device, LAUNCHER) as ours, ExitStack() as held:
        resume, overwrite = resume or ours.restarted, overwrite and not ours.restarted
        ours.first(lambda: held.enter_context(alone(out)))  # before anything is read or deleted
        with reading(console()) as progress:
            experiment = Experiment(
                recipe,
                out,
                resume=resume,
                overwrite=overwrite,
                trust_code=asked.trust_code,
                progress=progress,
                processes=ours,
            )
        if ours.count > 1:  # now, because a process that is killed says nothing
            again = started_again(asked.again("run"))
            console().print(f"{ours.count} processes; to resume if one of them fails: {again}", soft_wrap=True)
        log = () if ours.rank else asked.log or ()
        with threads_for(experiment.macs), logged(log, out, experiment.recipe) as consume:
            show(experiment, console(), out, consume)
