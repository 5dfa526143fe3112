"""The folder of a comparison: one run folder for each network, so that several processes can train at the same time.

runs/<name>/
  recipe.yaml              what all networks share: the recipe without its methods and seeds
  <arm>-seed<N>/           a run folder (`limbeck.experiment.folder`) whose recipe trains this network alone
  comparison.yaml          the recipe with the methods and seeds of the last start
  comparison.json          written when all are finished
  locks/                   which process trains what
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from limbeck.core import LimbeckError
from limbeck.experiment.arms import block_of
from limbeck.experiment.folder import RunFolder, refuse_other_recipe
from limbeck.experiment.results import RESULT, NetworkResult, RunResult
from limbeck.experiment.runfiles import CHECKPOINT, RECIPE, holds_epoch
from limbeck.files.atomic import write
from limbeck.methods import METHODS
from limbeck.models import NetworkSpec
from limbeck.options import fill
from limbeck.recipe.blocks import Recipe
from limbeck.recipe.read import dump


class Trials:
    """Where a comparison keeps its networks. The caller locks what it writes.

    Args:
        path: the folder, which need not exist.
        recipe: with the methods that are compared.
        longer: the epochs of arms with more epochs than the recipe, by arm.
        digests: of the data, the files of weights and the code, written below each recipe.

    Raises:
        LimbeckError: the folder holds a run, or a comparison that differs in more than methods and seeds.
    """

    def __init__(self, path: Path, recipe: Recipe, longer: Mapping[str, int], digests: str) -> None:
        self.path = path
        self._recipe, self._longer, self._digests = recipe, longer, digests
        self._environment: Mapping[str, Any] = {}
        self._folders: dict[str, RunFolder] = {}
        self._text = self._text_of("teacher", 0)  # without the options of a method
        if holds_epoch(path):
            raise LimbeckError(f"{path} holds a run, not a comparison: choose another folder with --out")
        refuse_other_recipe(path, self._text, "comparison")

    @property
    def notes(self) -> list[str]:
        """Sentences on what was missing or damaged in the folders of the networks."""
        return [note for folder in self._folders.values() for note in folder.notes]

    def open(self, environment: Mapping[str, Any]) -> None:
        """Write what the networks share.

        Raises:
            LimbeckError: another process has written something else since this object was made.
        """
        refuse_other_recipe(self.path, self._text, "comparison")
        self._environment = environment
        write(self.path / RECIPE, self._text)

    def refresh(self) -> None:
        """Read the folders of the networks again, which other processes may have written."""
        self._folders.clear()

    def folder(self, name: str) -> Path:
        """The run folder of a network."""
        return self.path / name.replace("/", "-")

    def is_finished(self, name: str) -> bool:
        """Whether a network has a result, which `result` verifies."""
        return (self.folder(name) / name / RESULT).exists()

    def result(self, name: str) -> NetworkResult | None:
        """See `RunFolder`, as for the other methods; all of a network's files are in its own run folder."""
        return self._of(name).result(name) if self.is_finished(name) else None  # else its checkpoint would be read

    def write(self, name: str, file: str, network: nn.Module, spec: NetworkSpec) -> None:
        """Write a network's weights."""
        self._of(name).write(name, file, network, spec)

    def write_outputs(self, name: str, outputs: Mapping[str, Tensor]) -> None:
        """Write a network's outputs by split."""
        self._of(name).write_outputs(name, outputs)

    def finish(self, name: str, result: NetworkResult, weights: str) -> NetworkResult:
        """Write a finished network's result, and delete its checkpoint."""
        found = self._of(name).finish(name, result, weights)
        (self.folder(name) / CHECKPOINT).unlink(missing_ok=True)
        return found

    def weights(self, name: str, file: str) -> Path:
        """A file of weights or outputs, as it was written."""
        folder = self._of(name)
        folder.result(name)
        return folder.weights(name, file)

    def state(self, name: str, check: Callable[[Mapping[str, Any]], None]) -> dict[str, Any] | None:
        """The training state of a network; its run folder is created."""
        folder = self._of(name)
        folder.open(self._environment)
        return folder.state(name, check)

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to a network's log of epochs."""
        self._of(line["job"]).log(line)

    def save(self, name: str, state: Callable[[], dict[str, Any]]) -> None:
        """Write a network's checkpoint."""
        self._of(name).save(name, state, beside=len(self._folders) - 1)

    def conclude(self, runs: tuple[NetworkResult, ...], student: str, make: Callable[[], RunResult]) -> RunResult:
        """What the networks come to; see `limbeck.comparison` for what is written."""
        return make()

    def take(self, name: str, trained_as: str) -> None:
        """Other runs are not looked for."""

    def _of(self, name: str) -> RunFolder:
        if name not in self._folders:
            arm, _, seed = name.partition("/seed")
            text = self._text_of(arm, int(seed.partition("-")[0]))
            self._folders[name] = RunFolder(self.folder(name), text, resume=True)
        return self._folders[name]

    def _text_of(self, arm: str, seed: int) -> str:
        """The recipe that trains one network. For a teacher it also trains a student alone."""
        recipe, epochs = self._recipe, self._longer.get(arm, self._recipe.train.epochs)
        method = block_of(recipe, arm)
        if method == fill(METHODS, "alone", kind="method"):  # whether or not it is listed among the methods
            method = {"name": "alone"}
        train = recipe.train.model_copy(update={"epochs": epochs})
        update = {"method": method, "methods": (), "baseline": False, "seeds": (seed,), "train": train}
        return dump(recipe.model_copy(update=update)) + self._digests
