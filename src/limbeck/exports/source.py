"""The student of a run folder, and the data that it was trained on."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from limbeck.core import LimbeckError
from limbeck.data import Data, Progress, load
from limbeck.errors import nearest
from limbeck.experiment.runfiles import STUDENT
from limbeck.models import load_network
from limbeck.models.inputs import AS_THE_DATA, Input
from limbeck.report.found import Found, read
from limbeck.user_code import code_notices


@dataclass(frozen=True)
class Source:
    """A trained student with what it was trained on."""

    student: nn.Module
    data: Data
    reads: Input
    name: str
    weights_sha256: str | None


def source(
    folder: Path,
    network: str | None = None,
    *,
    data_root: Path | None = None,
    trust_code: bool = False,
    progress: Progress | None = None,
) -> Source:
    """Load a student and its data.

    Args:
        folder: of a finished run or comparison.
        network: such as ``kd/seed0``; by default the student of a run's first seed.
        data_root: the data folder, if it is not that of the recipe.
        trust_code: run the Python files that the recipe or the weights name.
        progress: as for `limbeck.data.load`.

    Raises:
        LimbeckError: the folder has no such network, or it is damaged; the data has changed.
    """
    found = read(folder)
    name = _name(found, network)
    known = found.network(name).result
    student, spec = load_network(found.place(name) / name / STUDENT, trust_code=trust_code)
    data = _data(found, data_root, trust_code=trust_code, progress=progress)
    reads = AS_THE_DATA
    if spec.mean:
        size = (spec.shape[1], spec.shape[2]) if len(spec.shape) == 3 else None
        reads = Input(mean=spec.mean, std=spec.std, size=size, channels=spec.channels)
    return Source(student, data, reads, name, known.weights_sha256)


def _name(found: Found, network: str | None) -> str:
    names = [one.name for one in found.result.runs if one.arm != "teacher"]
    if network is None and found.is_run:
        return next(one for one in names if not one.startswith("alone/") or len(found.result.arms) == 1)
    if network is None:
        raise LimbeckError(f"{found.folder} is a comparison: choose a student with --network, such as {names[-1]}")
    if network not in names:
        raise LimbeckError(f"{found.folder} has no student {network!r}: {nearest(network, names)}")
    return network


def _data(found: Found, root: Path | None, *, trust_code: bool, progress: Progress | None) -> Data:
    if found.recipe is None:
        raise LimbeckError(
            f"{found.folder} does not say how its data is loaded: use limbeck.export in Python with your data"
        )
    options = found.recipe.data.model_dump()
    if root is not None:
        options["root"] = str(root)
    code = code_notices(options)
    if code and not trust_code:
        raise LimbeckError(f"the data of {found.folder} {code[0]}: allow it with --trust-code")
    data = load(**options, progress=progress)
    if data.test.digest() != found.test_digest:
        raise LimbeckError(f"the test split has changed since the networks in {found.folder} were trained")
    return data
