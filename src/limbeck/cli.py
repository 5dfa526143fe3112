"""The commands. What needs torch is imported inside the command: help must not wait for it."""

import errno
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from limbeck.blocks import Recipe
    from limbeck.experiment import Experiment

SPINS = "30000"
"""How often a thread of GNU's OpenMP looks for work before it sleeps.

Threads that look ten times as often, as they do unless told otherwise, keep the processors from each other where other
work runs too; those that sleep at once cost up to a third of a step where none does. See docs/speed.md for figures.
"""

FULL = 3
"""The exit code where the disk is full."""

WIDTH = 96
"""Columns of the list of methods where the output is no terminal."""

app = typer.Typer(
    name="limbeck",
    help="Distil a trained teacher into a small student, with evidence of what distilling brought.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cache = typer.Typer(help="The store of a teacher's outputs: build, compare, look.", no_args_is_help=True)
app.add_typer(cache, name="cache")

RecipeFile = Annotated[Path, typer.Argument(help="A recipe file, or the name of one that limbeck brings.")]
Seed = Annotated[int | None, typer.Option(help="Run this seed alone.")]
Out = Annotated[Path | None, typer.Option(help="The run folder; the default is runs/<name of the recipe>.")]
DataRoot = Annotated[Path | None, typer.Option(help="Where data lies; the default is the variable LIMBECK_DATA.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Replace a key of the recipe.")]
Allow = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Leave out a refusal, such as chance.")]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Let a weights file name the Python file that builds its network.")
]


@dataclass(frozen=True)
class Asked:
    """What a command is asked of a recipe."""

    recipe: Path
    override: list[str] | None
    seed: int | None
    out: Path | None
    data_root: Path | None
    allow: list[str] | None
    trust_code: bool
    smoke: bool = False

    def checked(self, *more: str) -> "Recipe":
        """The recipe, with what the options change in it, and ``more`` as `--set` has it. Torch is not imported."""
        from limbeck import recipe as recipes
        from limbeck.files import bundled

        root = [f"data.root={json.dumps(str(self.data_root))}"] if self.data_root else []
        ours = not self.recipe.exists() and self.recipe.parent in (Path(), Path("recipes"))
        file = bundled(self.recipe.name, self.recipe) if ours else self.recipe
        overrides = [*(self.override or ()), *root, *more]
        read = recipes.read(file, overrides=overrides, seed=self.seed, allow=self.allow or (), check_paths=True)
        return recipes.smoke(read) if self.smoke else read

    def again(self, command: str) -> str:
        """The command line that goes on where this one stops."""
        line = ["limbeck", *command.split(), str(self.recipe)]
        line += [part for item in self.override or () for part in ("--set", item)]
        line += (["--seed", str(self.seed)] if self.seed is not None else []) + (["--smoke"] if self.smoke else [])
        line += ["--out", str(self.out)] if self.out else []
        line += ["--data-root", str(self.data_root)] if self.data_root else []
        line += [part for name in self.allow or () for part in ("--allow", name)]
        line += ["--trust-code"] if self.trust_code else []
        return shlex.join([*line, *(["--resume"] if command == "run" else [])])


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Distil a trained teacher into a small student, with evidence of what distilling brought."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is first imported
    from limbeck.terminal import plain_where_needed

    plain_where_needed()
    if version:
        from limbeck import __version__

        print(f"limbeck {__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run folder; a demo that it holds is replaced.")] = Path("runs/demo"),
) -> None:
    """Distil on handwritten digits: half a minute.

    Trains a teacher, then for 3 seeds a student alone and a distilled one, and prints a table.
    """
    with reporting(shlex.join(["limbeck", "run", "digits_kd", "--set", "name=demo", "--out", str(out), "--resume"])):
        from limbeck import recipe
        from limbeck.files import bundled

        checked = recipe.read(bundled("digits_kd.yaml"), overrides=["name=demo"])
        from limbeck.runfiles import clear

        known = out / "recipe.yaml"
        if known.is_file() and f"name: {checked.name}" in known.read_text(encoding="utf-8").splitlines():
            clear(out)
        _run(checked, out, resume=False)


@app.command()
def run(
    recipe: RecipeFile,
    override: Set = None,
    seed: Seed = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="The recipe's tiny version, to see that it works.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that the folder holds.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run that the folder holds.")] = False,
    out: Out = None,
    data_root: DataRoot = None,
    allow: Allow = None,
    trust_code: TrustCode = False,
) -> None:
    """Run a recipe.

    Trains the teacher, the student alone and the distilled student, over the recipe's seeds.
    """
    asked = Asked(recipe, override, seed, out, data_root, allow, trust_code, smoke)
    with reporting(asked.again("run")):
        from limbeck.errors import LimbeckError

        if resume and overwrite:
            raise LimbeckError("--resume goes on with the run that --overwrite deletes: leave out one of them")
        checked = asked.checked()
        _run(
            checked,
            out or Path("runs") / checked.name,
            resume=resume,
            overwrite=overwrite,
            trust_code=trust_code,
        )


@cache.command("build")
def cache_build(
    recipe: RecipeFile,
    override: Set = None,
    seed: Seed = None,
    out: Out = None,
    data_root: DataRoot = None,
    allow: Allow = None,
    trust_code: TrustCode = False,
) -> None:
    """Compute what the recipe's method reads of its teacher, for `limbeck run` with `cache: true`.

    A teacher that the recipe trains is trained first, in the run folder; `limbeck run --resume` goes on from there.
    """
    asked = Asked(recipe, override, seed, out, data_root, allow, trust_code)
    with reporting(asked.again("cache build")):
        experiment = _experiment(asked)
        from limbeck.stores import build_stores
        from limbeck.terminal import console
        from limbeck.threads import threads_for
        from limbeck.watching import follow

        with threads_for(experiment.macs):
            follow(lambda track: build_stores(experiment, track), console(), experiment.work)


@cache.command("verify")
def cache_verify(
    recipe: RecipeFile,
    override: Set = None,
    seed: Seed = None,
    out: Out = None,
    data_root: DataRoot = None,
    allow: Allow = None,
    trust_code: TrustCode = False,
) -> None:
    """Compare the store with the teacher on random rows; every file's hash is checked too."""
    with reporting():
        experiment = _experiment(Asked(recipe, override, seed, out, data_root, allow, trust_code))
        from limbeck.stores import compare_stores
        from limbeck.terminal import console
        from limbeck.threads import threads_for
        from limbeck.watching import follow

        with threads_for(experiment.macs):
            follow(lambda track: compare_stores(experiment), console(), {})


@cache.command("info")
def cache_info(
    recipe: RecipeFile,
    override: Set = None,
    seed: Seed = None,
    out: Out = None,
    data_root: DataRoot = None,
    allow: Allow = None,
    trust_code: TrustCode = False,
) -> None:
    """Show what the store holds, and of what."""
    with reporting():
        experiment = _experiment(Asked(recipe, override, seed, out, data_root, allow, trust_code))
        from limbeck.display import store_table
        from limbeck.stores import stores
        from limbeck.terminal import console

        for folder in stores(experiment).values():
            console().print(store_table(folder))


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Soft targets on the ResNets alone, within a minute.")] = False,
    workload: Annotated[list[str] | None, typer.Option(help="kd, hint, srrl, at or mnist_mlp; all by default.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of all variants in turn, at least 5.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure the speed of training on this machine, beside other loops and the floor that the hardware sets."""
    with reporting():
        from limbeck.bench.benchmark import run_bench
        from limbeck.display import bench_tables
        from limbeck.terminal import console
        from limbeck.watching import followed

        result = followed(run_bench(quick=quick, workloads=workload, rounds=rounds), console(stderr=True))
        if as_json:
            print(json.dumps(result, indent=2))
        else:
            for part in bench_tables(result):
                console().print(part)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, in full.")] = None,
    write: Annotated[Path | None, typer.Option(help="Write every page into this folder.")] = None,
) -> None:
    """List the methods, or show one in full."""
    with reporting():
        from limbeck import catalogue, signatures, whole
        from limbeck.terminal import console

        if write is not None:
            for file, text in catalogue.method_pages().items():
                whole.write(write / file, text)
            if signatures.stale():  # never where limbeck is installed as it was released
                whole.write(signatures.FILE, signatures.written())
        elif name is not None:
            console().print(catalogue.method_page(name), soft_wrap=True, end="")
        else:
            listing = console() if console().is_terminal else console(width=WIDTH)
            listing.print(catalogue.method_table())


@app.command()
def models(pattern: Annotated[str, typer.Argument(help="Such as 'resnet*'.")] = "*") -> None:
    """List the networks that limbeck brings."""
    with reporting():
        from limbeck import display
        from limbeck.terminal import console

        console().print(display.model_table(pattern))


@app.command()
def taps(
    model: Annotated[str, typer.Argument(help="A model's name, as in a recipe.")],
    shape: Annotated[str, typer.Option(metavar="C,H,W", help="The shape of one input.")] = "3,32,32",
    classes: Annotated[int, typer.Option(min=2)] = 10,
    override: Annotated[list[str] | None, typer.Option("--set", metavar="A=B", help="An option of the model.")] = None,
) -> None:
    """List a network's layers and their shapes."""
    with reporting():
        from limbeck import display
        from limbeck.terminal import console

        console().print(display.layer_table(model, shape, classes, override or []), soft_wrap=True)


@app.command()
def doctor() -> None:
    """Show versions, device, precision and data."""
    with reporting():
        from limbeck import display
        from limbeck.terminal import console

        console().print(display.doctor_table())


@contextmanager
def reporting(again: str = "") -> Iterator[None]:
    """Errors that the user can mend as a message and an exit code; Ctrl-C and a full disk with how to go on.

    Exit codes are 2 for a message, 3 for a full disk, 130 for Ctrl-C, or the error's own. Torch is not imported.
    """
    from limbeck.errors import LimbeckError
    from limbeck.terminal import console

    screen = console(stderr=True, soft_wrap=True)
    go_on = f"To go on: {again}" if again else ""
    try:
        yield
    except BrokenPipeError:
        raise  # who reads what is written has gone; typer ends in silence
    except (LimbeckError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = FULL if full else error.exit_code if isinstance(error, LimbeckError) else 2
        screen.print("error: ", style="bold red", end="")
        screen.print(f"the disk is full: {error}" if full else str(error))
        if code == FULL and go_on:
            screen.print(f"Make room first. {go_on}")
        raise typer.Exit(code) from error
    except KeyboardInterrupt as stop:
        screen.print(f"\nstopped. {go_on}".rstrip())
        raise typer.Exit(130) from stop


def _experiment(asked: Asked) -> "Experiment":
    """The experiment of a recipe whose outputs are kept, on what its run folder may hold already."""
    checked = asked.checked("cache.use=true")
    from limbeck.experiment import Experiment

    _say(checked)
    out = asked.out or Path("runs") / checked.name
    return Experiment(checked, out, resume=True, trust_code=asked.trust_code)


def _run(recipe: "Recipe", out: Path, *, resume: bool, overwrite: bool = False, trust_code: bool = False) -> None:
    from limbeck.experiment import Experiment
    from limbeck.terminal import console
    from limbeck.threads import threads_for
    from limbeck.watching import show

    _say(recipe)
    experiment = Experiment(recipe, out, resume=resume, overwrite=overwrite, trust_code=trust_code)
    with threads_for(experiment.macs):
        show(experiment, console(), out)


def _say(recipe: "Recipe") -> None:
    """Print which code of the user's is about to be run."""
    from limbeck.terminal import console
    from limbeck.user_code import said

    for sentence in said(recipe.model_dump()):
        console().print(sentence, soft_wrap=True)
