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

SMALL = 2_000_000
"""Multiply-accumulates of one sample through teacher and student below which several threads cost more than they save.

On 2 cores, the demo (1.7 million) took 32 s with one thread and 69 s with two; MNIST (3.7 million) gains from two.
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

DataRoot = Annotated[Path | None, typer.Option(help="Where data lies; the default is the variable LIMBECK_DATA.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Replace a key of the recipe.")]


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Distil a trained teacher into a small student, with evidence of what distilling brought."""
    # Threads that wait by spinning, as they do unless told otherwise, make training beside other work many times
    # slower: beside two busy processes on 2 cores one run took 22 s with this and over 60 s without (one reading each).
    # Read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
        from limbeck.runfolder import clear

        checked = recipe.read(bundled("digits_kd.yaml"), overrides=["name=demo"])
        known = out / "recipe.yaml"
        if known.is_file() and f"name: {checked.name}" in known.read_text(encoding="utf-8").splitlines():
            clear(out, arms=("teacher", "alone", checked.method["name"]))
        _run(checked, out, resume=False)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe file, or the name of one that limbeck brings.")],
    override: Set = None,
    seed: Annotated[int | None, typer.Option(help="Run this seed alone.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="The recipe's tiny version, to see that it works.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that the folder holds.")] = False,
    out: Annotated[Path | None, typer.Option(help="The run folder; the default is runs/<name of the recipe>.")] = None,
    data_root: DataRoot = None,
) -> None:
    """Run a recipe.

    Trains the teacher, the student alone and the distilled student, over the recipe's seeds.
    """
    again = ["limbeck", "run", str(recipe), *(part for item in override or () for part in ("--set", item))]
    again += (["--seed", str(seed)] if seed is not None else []) + (["--smoke"] if smoke else [])
    again += (["--out", str(out)] if out else []) + (["--data-root", str(data_root)] if data_root else [])
    with reporting(shlex.join([*again, "--resume"])):
        from limbeck import recipe as recipes
        from limbeck.files import bundled

        rooted = [*(override or ()), *([f"data.root={json.dumps(str(data_root))}"] if data_root else [])]
        ours = not recipe.exists() and recipe.parent in (Path(), Path("recipes"))
        checked = recipes.read(bundled(recipe.name, recipe) if ours else recipe, overrides=rooted, seed=seed)
        checked = recipes.smoke(checked) if smoke else checked
        _run(checked, out or Path("runs") / checked.name, resume=resume)


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


def _run(recipe: "Recipe", out: Path, *, resume: bool) -> None:
    import torch

    from limbeck.display import show
    from limbeck.experiment import Experiment

    experiment = Experiment(recipe, out, resume=resume)
    if experiment.macs < SMALL:
        torch.set_num_threads(1)
    show(experiment, Console(markup=False), out)
