"""What a claim consists of: what a paper says, the studies that measure it, and the test that decides."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from limbeck.claims.checks import Part
from limbeck.claims.ensembles import Ensemble
from limbeck.comparison.results import ComparisonResult
from limbeck.methods.about import Paper
from limbeck.recipe.blocks import Recipe, Refusal
from limbeck.recipe.bundled import bundled
from limbeck.recipe.read import read, smoke

Scale = Literal["smoke", "cpu", "paper"]
"""Only whether it runs; about an hour for a claim on two cores (estimated); the data of the paper, for a GPU."""


@dataclass(frozen=True)
class Results:
    """The results of studies by name."""

    comparisons: dict[str, ComparisonResult] = field(default_factory=dict)
    ensembles: dict[str, list[Ensemble]] = field(default_factory=dict)  # of the studies that have them

    def __getitem__(self, study: str) -> ComparisonResult:
        return self.comparisons[study]


@dataclass(frozen=True)
class Study:
    """Students of several methods over several seeds, trained once for all claims that need them."""

    name: str
    recipe: str  # a bundled one
    settings: tuple[str, ...]  # ``KEY=VALUE`` as of `--set`, at every scale
    paper: tuple[str, ...] = ()  # further ones at the scale ``paper``
    teacher: "Study | None" = None  # the study whose teacher this one has
    fine_tunes: bool = False  # the student, which starts from this teacher, instead of learning from it
    ensemble: int = 1  # if above 1, the students of so many seeds in a row are one ensemble
    starts: "tuple[Study, str] | None" = None  # of ensembles: where their students start, see `divided`
    changes: tuple[str, ...] = ()  # settings of this teacher
    allow: tuple[Refusal, ...] = ()  # as of `--allow`, at every scale

    def __post_init__(self) -> None:
        if self.starts is not None and self.ensemble == 1:
            raise ValueError(f"{self.name} has starts, but no ensembles")

    def at(
        self, scale: Scale, *, data_root: Path | None = None, teacher: Path | None = None, first_seed: int = 0
    ) -> Recipe:
        """The recipe at a scale.

        ``teacher`` is the file of the trained teacher of another study, ``first_seed`` that of the students.

        Raises:
            LimbeckError: the data or a file does not exist.
        """
        settings = [f"name={self.name}", *self.settings, *(self.paper if scale == "paper" else ())]
        if teacher is not None and self.fine_tunes:
            settings += ["teacher=null", "student.init=fine_tune", f"student.weights={json.dumps(str(teacher))}"]
        elif teacher is not None:
            settings += [f"teacher={json.dumps({'weights': [str(teacher)]})}", *self.changes]
        settings += [] if data_root is None else [f"data.root={json.dumps(str(data_root))}"]
        hardly_trained: tuple[Refusal, ...] = ("chance", "permuted", "input") if scale == "smoke" else ()
        allow = (*self.allow, *hardly_trained)
        recipe = read(bundled(self.recipe), overrides=settings, allow=allow, check_paths=True)
        recipe = recipe.model_copy(update={"seeds": tuple(first_seed + seed for seed in recipe.seeds)})
        if scale != "smoke":
            return recipe
        return smoke(recipe).model_copy(update={"seeds": recipe.seeds[: min(self.ensemble, 2)]})

    def needed(self) -> "Iterator[Study]":
        """The study after those that train its teacher and the weights from which its students start."""
        if self.teacher is not None:
            yield from self.teacher.needed()
        if self.starts is not None:
            yield from self.starts[0].needed()
        yield self

    def divided(self, recipe: Recipe, folder: Path) -> dict[Path, Recipe]:
        """The recipes to train, by their folders in ``folder``, for the one that `at` gives.

        With ``starts``, each ensemble has a recipe and a folder of its own: its students start from the same weights.
        ``starts`` names their file in the folder of another study, where ``{seed}`` is the first seed of the ensemble.
        """
        if self.starts is None:
            return {folder / self.name: recipe}
        study, file = self.starts
        found = {}
        for place in range(0, len(recipe.seeds), self.ensemble):
            seeds = recipe.seeds[place : place + self.ensemble]
            weights = str(folder / study.name / file.format(seed=seeds[0]))
            update = {"seeds": seeds, "student": recipe.student.model_copy(update={"weights": weights})}
            found[folder / f"{self.name}-seed{seeds[0]}"] = recipe.model_copy(update=update)
        return found


@dataclass(frozen=True)
class Curve:
    """The figure of a claim."""

    x: str  # what the axes show
    y: str
    lines: Callable[[Results], Mapping[str, Sequence[tuple[float, float]]]]  # by name, points (x, y)


@dataclass(frozen=True)
class Claim:
    """One claim of a paper. It is measured if there are studies, and computed if there are none."""

    name: str  # such as E1
    says: str
    published: str  # the paper's figures
    parts: Callable[[Results], Iterable[Part]]
    studies: tuple[Study, ...] = ()
    curve: Curve | None = None


@dataclass(frozen=True)
class System:
    """A paper and its claims."""

    name: str
    paper: Paper
    claims: tuple[Claim, ...]
