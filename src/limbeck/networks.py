"""A recipe's networks: built fresh, or restored from files and run folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.blocks import Recipe, StudentBlock, TeacherBlock
from limbeck.core import Batch, LimbeckError, Stage
from limbeck.data import Data, normalise
from limbeck.models import Ensemble, NetworkSpec, build, load_network, load_weights, read_spec
from limbeck.models.net2net import net2net
from limbeck.models.transfer import load_all_but_classifier
from limbeck.options import Block
from limbeck.outline import outline
from limbeck.store import BlackBox

PROBE = 64
"""Training samples that a network is looked at with before it is trained."""


class Cast:
    """The networks of one recipe on its data."""

    def __init__(self, recipe: Recipe, data: Data) -> None:
        self._recipe, self._data = recipe, data

    def student(self, seed: int, arm: str) -> tuple[nn.Module, NetworkSpec, dict[str, nn.Module]]:
        """The student, what builds it again, and the recipe's other networks by name, all new."""
        made = {
            name: self._started(name, block, seed)
            for name, block in {"student": self._recipe.student, **self._recipe.networks}.items()
        }
        others = {name: network for name, (network, _) in made.items() if name != "student"}
        return *made["student"], others

    def teacher(self, block: TeacherBlock) -> tuple[nn.Module, NetworkSpec]:
        """A new teacher, or a new member of an ensemble, and what builds it again.

        Raises:
            LimbeckError: the block names no model.
        """
        if block.model is None:
            raise LimbeckError("the teacher block has no weights:, so it needs a model:")
        return fresh(block.model, self._data)

    def restored(self, block: TeacherBlock) -> list[nn.Module]:
        """The trained teacher, or the members of an ensemble, that the block has files of; none otherwise.

        For a table of soft labels it is a stand-in that no training may run.
        """
        if block.table is not None:
            return [BlackBox(len(self._data.classes))]
        return [restored(path, block.model, self._data) for path in block.weights or ()]

    def _started(self, name: str, block: StudentBlock, seed: int) -> tuple[nn.Module, NetworkSpec]:
        if block.init == "as_is" or block.weights is None:
            return fresh(block.model, self._data, weights=block.weights)
        network, spec = fresh(block.model, self._data)
        file = find_weights(block.weights)
        few = torch.arange(min(PROBE, len(self._data.train)))
        split, scaling = self._data.train, (self._data.mean, self._data.std)
        probe = Batch(normalise(split.inputs[few], *scaling), split.targets[few], few, 0)
        if block.init == "fine_tune":
            load_all_but_classifier(network, file, outline(name, network, probe).classifier)
            return network, spec
        small, known = load_network(file)
        _check_use(file, known, self._data)
        net2net(small, network, probe.inputs, noise=block.noise, seed=seed)
        return network, spec


def teaches(stages: Sequence[Stage]) -> bool:
    """Whether the teacher, or a part of it, learns."""
    return any(name.partition(".")[0] == "teacher" for stage in stages for name in stage.learns)


def check_use(recipe: Recipe, stages: Sequence[Stage]) -> None:
    """Raise LimbeckError where the recipe names networks that its method has no use for."""
    name = recipe.method["name"]
    used = {part.partition(".")[0] for stage in stages for part in stage.learns}
    used |= {tap.source for stage in stages for term in stage.terms.values() for tap in term.reads}
    idle = sorted(set(recipe.networks) - used)
    if idle:
        raise LimbeckError(f"networks: {name} has no use for {', '.join(idle)}")
    if recipe.teacher is not None and recipe.teacher.untrained and not teaches(stages):
        raise LimbeckError(f"teacher: {name} does not train its teacher: give it train: or weights:")
    if recipe.share_first_stage and len(stages) < 2:
        raise LimbeckError(f"share_first_stage: {name} has one stage, so there is nothing to share")
    if recipe.share_first_stage and stages[0].learns != ("student",):
        raise LimbeckError(f"share_first_stage: in {name}'s first stage {', '.join(stages[0].learns)} learns")


def joined(members: list[nn.Module], block: TeacherBlock) -> nn.Module:
    """The teacher: one network, or the ensemble of several."""
    return members[0] if len(members) == 1 else Ensemble(members, block.mean)


def fresh(block: Block, data: Data, *, weights: str | None = None) -> tuple[nn.Module, NetworkSpec]:
    """A new network for the data, and what is needed to build it again; ``weights`` is a file to start from.

    Raises:
        LimbeckError: there is no such model or option; the weights do not fit.
    """
    options = {key: value for key, value in block.items() if key != "name"}
    spec = NetworkSpec(
        block["name"], options, len(data.classes), data.shape, data.classes, mean=data.mean, std=data.std
    )
    network = build(spec.name, classes=spec.classes, shape=spec.shape, **options)
    if weights is not None:
        file = find_weights(weights)
        _check_use(file, read_spec(file), data)
        load_weights(network, file)
    return network, spec


def restored(path: str, block: Block | None, data: Data) -> nn.Module:
    """A trained network from a file or a run folder.

    Args:
        path: a weights file, or a folder that `find_weights` finds one in.
        block: the model to load it into; needed for a file that limbeck did not write.
        data: what the network is to be used on.

    Raises:
        LimbeckError: no such file; it is damaged; it does not say which model it holds; its classes are not the data's.
    """
    file = find_weights(path)
    spec = read_spec(file)
    if block is not None:
        return fresh(block, data, weights=path)[0]
    if spec is None:
        raise LimbeckError(f"{file} does not say which model it holds: name it under model:")
    _check_use(file, spec, data)
    network, _ = load_network(file)
    return network


def find_weights(path: str) -> Path:
    """The weights file that a path means: the file itself, or the student's or teacher's in a run folder.

    Raises:
        LimbeckError: there is none.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        found = [place / name for name in ("student.safetensors", "teacher.safetensors") if (place / name).is_file()]
        if not found:
            raise LimbeckError(f"the folder {place} holds no student.safetensors and no teacher.safetensors")
        return found[0]
    return place


def _check_use(file: Path, spec: NetworkSpec | None, data: Data) -> None:
    if spec is None:
        return
    if spec.classes != len(data.classes):
        raise LimbeckError(f"{file} has {spec.classes} classes, but the data has {len(data.classes)}")
    if spec.labels and tuple(spec.labels) != data.classes:
        wrong: list[Any] = [pair for pair in zip(spec.labels, data.classes, strict=True) if pair[0] != pair[1]]
        raise LimbeckError(
            f"{file} orders its classes otherwise than the data: {wrong[0][0]!r} where the data has {wrong[0][1]!r}"
        )
    scales = zip(spec.mean, spec.std, data.mean, data.std, strict=False)
    if any(abs(m - n) > 0.1 * s or abs(s - t) > 0.1 * s for m, s, n, t in scales):
        raise LimbeckError(
            f"{file} was trained on inputs normalised by mean {spec.mean} and deviation {spec.std}, but the data is by "
            f"{data.mean} and {data.std}: set data.normalise as it was there"
        )
