"""The commands. What needs torch is imported inside the command: help must not wait for it."""

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from limbeck.blocks import Recipe
    from limbeck.experiment import Experiment

SMALL = 2_000_000
"""Multiply-accumulates of one sample through teacher and student below which one thread does all.

On 2 cores a second one gains nothing on two small MLPs and a fifth on the demo (1.7 million) where the machine is idle,
and makes both several times slower beside other work; from 3.7 million on it gains nearly all. See docs/speed.md.
"""

SPINS = "30000"
"""How often a thread of GNU's OpenMP looks for work before it sleeps.

Threads that look ten times as often, as they do unless told otherwise, keep the processors from each other where other
work runs too; those that sleep at once cost up to a third of a step where none does. See docs/speed.md for figures.
"""

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


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Distil a trained teacher into a small student, with evidence of what distilling brought."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is first imported
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
        from limbeck.runfiles import clear

        checked = recipe.read(bundled("digits_kd.yaml"), overrides=["name=demo"])
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
    out: Out = None,
    data_root: DataRoot = None,
) -> None:
    """Run a recipe.

    Trains the teacher, the student alone and the distilled student, over the recipe's seeds.
    """
    with reporting(_again("run", recipe, override, seed, out, data_root, smoke=smoke)):
        from limbeck import recipe as recipes

        checked = _read(recipe, override, seed, data_root)
        checked = recipes.smoke(checked) if smoke else checked
        _run(checked, out or Path("runs") / checked.name, resume=resume)


@cache.command("build")
def cache_build(
    recipe: RecipeFile, override: Set = None, seed: Seed = None, out: Out = None, data_root: DataRoot = None
) -> None:
    """Compute what the recipe's method reads of its teacher, for `limbeck run` with `cache: true`.

    A teacher that the recipe trains is trained first, in the run folder; `limbeck run --resume` goes on from there.
    """
    with reporting(_again("cache build", recipe, override, seed, out, data_root)):
        from limbeck.stores import build_stores
        from limbeck.watching import follow

        experiment = _experiment(recipe, [*(override or ()), "cache.use=true"], seed, out, data_root)
        follow(lambda track: build_stores(experiment, track), Console(markup=False))


@cache.command("verify")
def cache_verify(
    recipe: RecipeFile, override: Set = None, seed: Seed = None, out: Out = None, data_root: DataRoot = None
) -> None:
    """Compare the store with the teacher on random rows; every file's hash is checked too."""
    with reporting():
        from limbeck.stores import compare_stores
        from limbeck.watching import follow

        experiment = _experiment(recipe, [*(override or ()), "cache.use=true"], seed, out, data_root)
        follow(lambda track: compare_stores(experiment), Console(markup=False))


@cache.command("info")
def cache_info(
    recipe: RecipeFile, override: Set = None, seed: Seed = None, out: Out = None, data_root: DataRoot = None
) -> None:
    """Show what the store holds, and of what."""
    with reporting():
        from limbeck.display import store_table
        from limbeck.stores import stores

        experiment = _experiment(recipe, [*(override or ()), "cache.use=true"], seed, out, data_root)
        for folder in stores(experiment).values():
            Console(markup=False).print(store_table(folder))


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
        from limbeck.watching import followed

        result = followed(run_bench(quick=quick, workloads=workload, rounds=rounds), Console(stderr=True))
        if as_json:
            print(json.dumps(result, indent=2))
        else:
            for part in bench_tables(result):
                Console(markup=False, highlight=False).print(part)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, in full.")] = None,
    write: Annotated[Path | None, typer.Option(help="Write every page into this folder.")] = None,
) -> None:
    """List the methods, or show one in full."""
    with reporting():
        from limbeck import catalogue, whole

        console = Console(markup=False, highlight=False)
        if write is not None:
            for file, text in catalogue.method_pages().items():
                whole.write(write / file, text)
        elif name is not None:
            console.print(catalogue.method_page(name), soft_wrap=True, end="")
        else:
            listing = console if console.is_terminal else Console(markup=False, highlight=False, width=WIDTH)
            listing.print(catalogue.method_table())


@app.command()
def models(pattern: Annotated[str, typer.Argument(help="Such as 'resnet*'.")] = "*") -> None:
    """List the networks that limbeck brings."""
    with reporting():
        from limbeck import display

        Console(markup=False).print(display.model_table(pattern))


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

        Console(markup=False).print(display.layer_table(model, shape, classes, override or []), soft_wrap=True)


@app.command()
def doctor() -> None:
    """Show versions, device, precision and data."""
    with reporting():
        from limbeck import display

        Console(markup=False).print(display.doctor_table())


@contextmanager
def reporting(again: str = "") -> Iterator[None]:
    """Errors that the user can mend as a message and exit code 2; Ctrl-C as a word on how to go on."""
    from limbeck.core import LimbeckError
    from limbeck.train import Diverged

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        yield
    except (LimbeckError, OSError) as error:
        console.print("[bold red]error:[/] ", end="")
        console.print(str(error), markup=False)
        raise typer.Exit(1 if isinstance(error, Diverged) else 2) from error
    except KeyboardInterrupt as stop:
        console.print("\nstopped.", f"To go on: {again}" if again else "", markup=False)
        raise typer.Exit(130) from stop


def _again(
    command: str,
    recipe: Path,
    override: list[str] | None,
    seed: int | None,
    out: Path | None,
    data_root: Path | None,
    *,
    smoke: bool = False,
) -> str:
    """The command line that goes on where this one stops."""
    line = ["limbeck", *command.split(), str(recipe), *(part for item in override or () for part in ("--set", item))]
    line += (["--seed", str(seed)] if seed is not None else []) + (["--smoke"] if smoke else [])
    line += (["--out", str(out)] if out else []) + (["--data-root", str(data_root)] if data_root else [])
    return shlex.join([*line, *(["--resume"] if command == "run" else [])])


def _read(recipe: Path, override: list[str] | None, seed: int | None, data_root: Path | None) -> "Recipe":
    from limbeck import recipe as recipes
    from limbeck.files import bundled

    rooted = [*(override or ()), *([f"data.root={json.dumps(str(data_root))}"] if data_root else [])]
    ours = not recipe.exists() and recipe.parent in (Path(), Path("recipes"))
    return recipes.read(bundled(recipe.name, recipe) if ours else recipe, overrides=rooted, seed=seed)


def _experiment(
    recipe: Path, override: list[str] | None, seed: int | None, out: Path | None, data_root: Path | None
) -> "Experiment":
    """The experiment of a recipe, on what its run folder may hold already."""
    from limbeck.experiment import Experiment

    checked = _read(recipe, override, seed, data_root)
    experiment = Experiment(checked, out or Path("runs") / checked.name, resume=True)
    _choose_threads(experiment)
    return experiment


def _choose_threads(experiment: "Experiment") -> None:
    import torch

    if experiment.macs < SMALL:
        torch.set_num_threads(1)


def _run(recipe: "Recipe", out: Path, *, resume: bool) -> None:
    from limbeck.experiment import Experiment
    from limbeck.watching import show

    experiment = Experiment(recipe, out, resume=resume)
    _choose_threads(experiment)
    show(experiment, Console(markup=False), out)
    for note in experiment.folder.notes:
        Console(markup=False).print(f"note: {note}", highlight=False, soft_wrap=True)
