"""The options that all commands with a recipe share, and the recipe that they select."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from limbeck.recipe.blocks import Recipe

RecipeFile = Annotated[Path, typer.Argument(help="A recipe file, or the name of a bundled one.")]
Methods = Annotated[str | None, typer.Option(help="What to compare, such as kd,srrl,kd+at; default: methods: [...]")]
Seed = Annotated[int | None, typer.Option(help="Run only this seed.")]
Out = Annotated[Path | None, typer.Option(help="The run folder; the default is runs/ and the name of the recipe.")]
DataRoot = Annotated[Path | None, typer.Option(help="The data folder; the default is LIMBECK_DATA.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Set a key of the recipe.")]
Allow = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Ignore a failed check, such as chance.")]
Worker = Annotated[bool, typer.Option("--worker", hidden=True)]
"""The process is one of those that --jobs starts: it only trains, and does not wait for others."""

TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Run the Python file that a weights file names to build its network.")
]


@dataclass(frozen=True)
class Asked:
    """The recipe and the options of a command."""

    recipe: Path
    override: list[str] | None = None
    seed: int | None = None
    out: Path | None = None
    data_root: Path | None = None
    allow: list[str] | None = None
    trust_code: bool = False
    smoke: bool = False
    log: list[str] | None = None
    methods: Sequence[str] = ()

    def checked(self, *more: str) -> "Recipe":
        """Read the recipe with the options applied; ``more`` are further `--set` texts."""
        from limbeck.cli.terminal import loading
        from limbeck.recipe.bundled import bundled
        from limbeck.recipe.read import read, smoke

        root = [f"data.root={json.dumps(str(self.data_root))}"] if self.data_root else []
        ours = not self.recipe.exists() and self.recipe.parent in (Path(), Path("recipes"))
        file = bundled(self.recipe.name, self.recipe) if ours else self.recipe
        overrides = [*(self.override or ()), *root, *more]
        with loading():  # only to look up a network of timm or torchvision
            recipe = read(
                file,
                overrides=overrides,
                seed=self.seed,
                allow=self.allow or (),
                methods=self.methods,
                check_paths=True,
            )
        return smoke(recipe) if self.smoke else recipe

    def again(self, command: str) -> str:
        """Return the command line that resumes this command."""
        line = ["limbeck", *command.split(), str(self.recipe)]
        line += [part for item in self.override or () for part in ("--set", item)]
        line += (["--seed", str(self.seed)] if self.seed is not None else []) + (["--smoke"] if self.smoke else [])
        line += ["--out", str(self.out)] if self.out else []
        line += ["--data-root", str(self.data_root)] if self.data_root else []
        line += [part for name in self.allow or () for part in ("--allow", name)]
        line += ["--trust-code"] if self.trust_code else []
        line += [part for name in self.log or () for part in ("--log", name)]
        return shlex.join([*line, *(["--resume"] if command == "run" else [])])


def names(methods: str | None) -> list[str]:
    """The methods that `--methods` lists."""
    return [] if methods is None else [name.strip() for name in methods.split(",")]


def say_code(values: Mapping[str, Any]) -> None:
    """Print which of the user's code is about to run: that of the blocks of a recipe, such as ``{"data": {...}}``."""
    from limbeck.cli.terminal import console
    from limbeck.user_code import code_notices

    for notice in code_notices(values):
        console().print(notice, soft_wrap=True)
