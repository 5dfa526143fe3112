"""A trained student and the data that it was trained on, also those of a run folder."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from limbeck.core import LimbeckError
from limbeck.data import Data, Progress, load
from limbeck.errors import nearest
from limbeck.experiment.networks import NetworkFactory, ensemble
from limbeck.experiment.runfiles import STUDENT
from limbeck.models import load_network
from limbeck.models.inputs import AS_THE_DATA, Bridge, Input
from limbeck.recipe.blocks import Recipe
from limbeck.report.found import Found, read
from limbeck.user_code import code_notices

TEACHER = "teacher.safetensors"


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
        self._found, self._trust_code = read(folder), trust_code
        self._name = _name(self._found, network)
        result = self._found.network(self._name).result
        student, spec = load_network(self._weights(self._name, STUDENT), trust_code=trust_code)
        if self._found.recipe is None:
            raise LimbeckError(
                f"{folder} does not say how its data is loaded: use limbeck.export in Python with your data"
            )
        self._recipe: Recipe = self._found.recipe
        data = _data(self._found, self._recipe, data_root, trust_code=trust_code, progress=progress)
        reads = AS_THE_DATA
        if spec.mean:
            size = (spec.shape[1], spec.shape[2]) if len(spec.shape) == 3 else None
            reads = Input(mean=spec.mean, std=spec.std, size=size, channels=spec.channels)
        self.source = Source(student, data, reads, name=self._name, weights_sha256=result.weights_sha256)

    def teacher(self) -> nn.Module:
        """The teacher of the student, which reads what the data gives.

        Raises:
            LimbeckError: there is none, or its weights are missing or damaged.
        """
        block, result = self._recipe.teacher, self._found.result.teacher
        if block is None or result is None:
            raise LimbeckError(f"{self._found.folder} has no teacher")
        factory = NetworkFactory(self._recipe, self.source.data, trust_code=self._trust_code)
        members = [network for network, _, _ in factory.restored(block)]
        if not members:
            if block.new_members > 1:
                raise LimbeckError("a deferral to an ensemble that was trained in the run is not supported")
            self._found.network(result.name)
            members = [load_network(self._weights(result.name, TEACHER), trust_code=self._trust_code)[0]]
        return ensemble(members, block, self.source.data.task).eval()

    def _weights(self, name: str, file: str) -> Path:
        return self._found.place(name) / name / file


def _name(found: Found, network: str | None) -> str:
    names = [one.name for one in found.result.runs if one.arm != "teacher"]
    if network is None and found.is_run:
        return next(one for one in names if not one.startswith("alone/") or len(found.result.arms) == 1)
    if network is None:
        raise LimbeckError(f"{found.folder} is a comparison: choose a student with --network, such as {names[-1]}")
    if network not in names:
        raise LimbeckError(f"{found.folder} has no student {network!r}: {nearest(network, names)}")
    return network


def _data(found: Found, recipe: Recipe, root: Path | None, *, trust_code: bool, progress: Progress | None) -> Data:
    options = recipe.data.model_dump()
    if root is not None:
        options["root"] = str(root)
    code = code_notices(options)
    if code and not trust_code:
        raise LimbeckError(f"the data of {found.folder} {code[0]}: allow it with --trust-code")
    data = load(**options, progress=progress)
    if data.test.digest() != found.test_digest:
        raise LimbeckError(f"the test split has changed since the networks in {found.folder} were trained")
    return data
