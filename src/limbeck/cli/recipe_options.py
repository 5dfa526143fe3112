"""The options that every command of a recipe has, and the recipe that they come to."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from limbeck.recipe.blocks import Recipe

RecipeFile = Annotated[Path, typer.Argument(help="A recipe file, or the name of a bundled one.")]
Seed = Annotated[int | None, typer.Option(help="Run this seed alone.")]
Out = Annotated[Path | None, typer.Option(help="The run folder; the default is runs/<name of the recipe>.")]
DataRoot = Annotated[Path | None, typer.Option(help="The folder of the data; the default is LIMBECK_DATA's.")]
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
        from limbeck.recipe.bundled import bundled
        from limbeck.recipe.read import read, smoke

        root = [f"data.root={json.dumps(str(self.data_root))}"] if self.data_root else []
        ours = not self.recipe.exists() and self.recipe.parent in (Path(), Path("recipes"))
        file = bundled(self.recipe.name, self.recipe) if ours else self.recipe
        overrides = [*(self.override or ()), *root, *more]
        found = read(file, overrides=overrides, seed=self.seed, allow=self.allow or (), check_paths=True)
        return smoke(found) if self.smoke else found

    def again(self, command: str) -> str:
        """The command line that resumes this one."""
        line = ["limbeck", *command.split(), str(self.recipe)]
        line += [part for item in self.override or () for part in ("--set", item)]
        line += (["--seed", str(self.seed)] if self.seed is not None else []) + (["--smoke"] if self.smoke else [])
        line += ["--out", str(self.out)] if self.out else []
        line += ["--data-root", str(self.data_root)] if self.data_root else []
        line += [part for name in self.allow or () for part in ("--allow", name)]
        line += ["--trust-code"] if self.trust_code else []
        return shlex.join([*line, *(["--resume"] if command == "run" else [])])


def say_code(recipe: "Recipe") -> None:
    """Print which code of the user's is about to be run."""
    from limbeck.cli.terminal import console
    from limbeck.user_code import code_notices

    for notice in code_notices(recipe.model_dump()):
        console().print(notice, soft_wrap=True)
