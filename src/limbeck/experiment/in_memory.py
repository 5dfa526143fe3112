"""A run that is not written: what stands in the place of its folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from limbeck.core import LimbeckError
from limbeck.experiment.folder import RunFolder
from limbeck.experiment.results import NetworkResult, RunResult
from limbeck.experiment.trials import Trials
from limbeck.models import NetworkSpec
from limbeck.recipe.blocks import Recipe
from limbeck.recipe.read import dump


class InMemory:
    """In the place of a folder for a run that is not written; ``path`` is for what memory may not hold, as a store."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []

    def open(self, environment: Mapping[str, Any]) -> None:
        """Nothing is written."""

    def result(self, name: str) -> None:
        """Nothing is resumed."""

    def write(self, name: str, file: str, network: nn.Module, spec: NetworkSpec) -> None:
        """Nothing is written."""

    def write_outputs(self, name: str, outputs: Mapping[str, Tensor]) -> None:
        """Nothing is written."""

    def finish(self, name: str, result: NetworkResult, weights: str) -> NetworkResult:
        """The result as it is."""
        return result

    def weights(self, name: str, file: str) -> Path:
        """There are none: networks that are given are not trained again from a file."""
        raise LimbeckError(f"the weights of {name} are not stored: pass a run folder")

    def state(self, name: str, check: Callable[[Mapping[str, Any]], None]) -> None:
        """Nothing is resumed."""

    def log(self, line: Mapping[str, Any]) -> None:
        """Nothing is written."""

    def save(self, name: str, state: Callable[[], dict[str, Any]]) -> None:
        """Nothing is written."""

    def conclude(self, runs: tuple[NetworkResult, ...], student: str, make: Callable[[], RunResult]) -> RunResult:
        """A new result."""
        return make()

    def take(self, name: str, trained_as: str) -> None:
        """Other runs are not looked for."""


Folder = RunFolder | Trials | InMemory
"""Where a run keeps what it has."""

Keep = Literal["run", "trials", "memory"]


def folder_of(
    keep: Keep, path: Path, recipe: Recipe, *, longer: Mapping[str, int], digests: Callable[[], str], resume: bool
) -> Folder:
    """What keeps a run at ``path``; ``longer`` as for `Trials`, ``digests`` gives what is written below the recipe."""
    if keep == "memory":
        return InMemory(path)
    if keep == "trials":
        return Trials(path, recipe, longer, digests())
    return RunFolder(path, dump(recipe) + digests(), resume=resume)
