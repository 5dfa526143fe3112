"""What a claim consists of: what a paper says, the studies that measure it, and the test that decides."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from limbeck.claims.checks import Part
from limbeck.comparison.results import ComparisonResult
from limbeck.methods.about import Paper
from limbeck.recipe.blocks import Recipe
from limbeck.recipe.bundled import bundled
from limbeck.recipe.read import read, smoke

Scale = Literal["smoke", "cpu", "paper"]
"""Only whether it runs; about an hour for a claim on two cores (estimated); the data of the paper, for a GPU."""

Results = Mapping[str, ComparisonResult]
"""The results of studies by name."""


@dataclass(frozen=True)
class Study:
    """Students of several methods over several seeds, trained once for all claims that need them."""

    name: str
    recipe: str  # a bundled one
    settings: tuple[str, ...]  # ``KEY=VALUE`` as of `--set`, at every scale
    paper: tuple[str, ...] = ()  # further ones at the scale ``paper``
    teacher: "Study | None" = None  # the study whose teacher this one has
    fine_tunes: bool = False  # the student, which starts from this teacher, instead of learning from it

    def at(self, scale: Scale, *, data_root: Path | None = None, teacher: Path | None = None) -> Recipe:
        """The recipe at a scale; ``teacher`` is the file of the trained teacher of another study.

        Raises:
            LimbeckError: the data or a file does not exist.
        """
        settings = [f"name={self.name}", *self.settings, *(self.paper if scale == "paper" else ())]
        if teacher is not None and self.fine_tunes:
            settings += ["teacher=null", "student.init=fine_tune", f"student.weights={json.dumps(str(teacher))}"]
        elif teacher is not None:
            settings.append(f"teacher={json.dumps({'weights': [str(teacher)]})}")
        settings += [] if data_root is None else [f"data.root={json.dumps(str(data_root))}"]
        allow = ("chance", "permuted", "input") if scale == "smoke" else ()  # its teachers are hardly trained
        recipe = read(bundled(self.recipe), overrides=settings, allow=allow, check_paths=True)
        return smoke(recipe) if scale == "smoke" else recipe


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
