"""A trained student and the data that it was trained on, also those of a run folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.comparison import results as compared
from limbeck.comparison.results import COMPARISON
from limbeck.core import LimbeckError
from limbeck.data import Data, Progress, load
from limbeck.errors import nearest
from limbeck.experiment import results as runs
from limbeck.experiment.events import Job
from limbeck.experiment.networks import NetworkFactory, ensemble
from limbeck.experiment.prepared import Prepared
from limbeck.experiment.results import NetworkResult
from limbeck.experiment.runfiles import RECIPE, STUDENT, Network, read_network
from limbeck.files.paths import is_url
from limbeck.models import GIVEN, load_network
from limbeck.models.inputs import AS_THE_DATA, Bridge, Input
from limbeck.recipe.blocks import Recipe
from limbeck.recipe.read import reread
from limbeck.user_code import code_notices


@dataclass(frozen=True)
class Source:
    """What is exported."""

    student: nn.Module
    data: Data
    reads: Input = AS_THE_DATA  #: what the student reads
    output: str | None = None  #: the part of its output with the logits, see `limbeck.models.outputs`
    name: str = "student"
    weights_sha256: str | None = None  #: if the weights come from a run folder

    @cached_property
    def expected(self) -> Input:
        """What the student reads, in full: the normalisation of values in [0, 1], the size and the channels."""
        data = self.data
        bridge = Bridge(self.reads, data.shape, data.mean, data.std)
        size = (bridge.own[1], bridge.own[2]) if len(bridge.own) == 3 else None
        return Input(mean=bridge.mean, std=bridge.std, size=size, channels=self.reads.channels)


class Finished:
    """The folder of a finished run or comparison, and its data.

    Args:
        folder: of a finished run or comparison.
        network: such as ``kd/seed0``; by default the student of a run's first seed.
        data_root: the data folder, if it is not that of the recipe.
        trust_code: run the Python files that the recipe or the weights name.
        progress: as for `limbeck.data.load`.

    Attributes:
        source: the student and the data. recipe: with which it was trained. spec: in the file of its weights.

    Raises:
        LimbeckError: the folder has no such network, or it is damaged; the data has changed.
    """

    def __init__(
        self,
        folder: Path,
        network: str | None = None,
        *,
        data_root: Path | None = None,
        trust_code: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._folder, self._trust_code = folder, trust_code
        if not folder.is_dir():
            raise LimbeckError(f"there is no folder {folder}")
        self._compared = (folder / COMPARISON).exists()
        result = compared.read(folder) if self._compared else runs.read(folder)
        self._teacher = result.teacher
        name = self._chosen([one for one in result.runs if not Job(one.arm, one.seed).teaches], network)
        known = self._network(name)
        student, self.spec = load_network(self._place(name) / name / STUDENT, trust_code=trust_code)
        self.recipe, test = self._read_recipe(name, known)
        data = self._data(self.recipe.data.model_dump(), test, data_root, progress)
        reads = AS_THE_DATA
        if self.spec.mean:
            size = (self.spec.shape[1], self.spec.shape[2]) if len(self.spec.shape) == 3 else None
            reads = Input(mean=self.spec.mean, std=self.spec.std, size=size, channels=self.spec.channels)
        output = self.recipe.student.output
        self.source = Source(student, data, reads, output, name=name, weights_sha256=known.result.weights_sha256)

    def teacher(self) -> nn.Module:
        """The teacher of the student, which reads what the data gives.

        Raises:
            LimbeckError: there is none, or its weights are missing or damaged.
        """
        block, result = self.recipe.teacher, self._teacher
        if block is None or result is None:
            raise LimbeckError(f"{self._folder} has no teacher")
        if not block.is_trained:
            if block.new_members > 1:
                raise LimbeckError("a deferral to an ensemble that was trained in the run is not possible")
            self._network(result.name)
            file = self._place(result.name) / result.name / Job(result.arm, result.seed).file
            block = block.model_copy(update={"weights": (str(file),), "init": "as_is"})
        factory = NetworkFactory(self.recipe, self.source.data, trust_code=self._trust_code)
        members = Prepared(factory, self.recipe, self.source.data).restored(block)
        return ensemble(members, block, self.source.data.task).eval()

    def _chosen(self, students: Sequence[NetworkResult], network: str | None) -> str:
        names = [one.name for one in students]
        if not names:
            raise LimbeckError(f"{self._folder} has no student")
        if network is None and self._compared:
            raise LimbeckError(f"{self._folder} is a comparison: choose a student with --network, such as {names[-1]}")
        if network is not None and network not in names:
            raise LimbeckError(f"{self._folder} has no student {network!r}: {nearest(network, names)}")
        return network or next((name for name in names if not name.startswith("alone/")), names[0])

    def _place(self, name: str) -> Path:
        """The run folder of a network."""
        return self._folder / name.replace("/", "-") if self._compared else self._folder

    def _network(self, name: str) -> Network:
        """What is known of an intact network."""
        found = read_network(self._place(name) / name, name)
        if found is None:
            raise LimbeckError(f"there is no finished network in {self._place(name) / name}")
        return found

    def _read_recipe(self, name: str, known: Network) -> tuple[Recipe, str]:
        """The recipe with which a network was trained, and the digest of the test split."""
        path = self._place(name) / RECIPE
        recipe, text = reread(path), path.read_bytes()
        if sha256(text).hexdigest() != known.recipe:
            raise LimbeckError(f"{path} was changed after {name} was trained")
        if recipe.data.source.startswith(GIVEN):
            raise LimbeckError(
                f"{self._folder} does not say how its data is loaded: use limbeck.export in Python with your data"
            )
        digest = next((line[8:] for line in text.decode().splitlines() if line.startswith("# test: ")), "")
        return recipe, digest

    def _data(self, options: dict[str, Any], test: str, root: Path | None, progress: Progress | None) -> Data:
        code = code_notices(options)
        if code and not self._trust_code:
            raise LimbeckError(f"the data of {self._folder} {code[0]}: allow it with --trust-code")
        url = next((str(value) for value in options.values() if is_url(str(value))), None)
        if url is not None and not self._trust_code:
            raise LimbeckError(f"the data of {self._folder} is read from {url}: allow it with --trust-code")
        data = load(**options | ({} if root is None else {"root": str(root)}), progress=progress)
        if data.test.digest() != test:
            raise LimbeckError(f"the test split has changed since the networks in {self._folder} were trained")
        return data
