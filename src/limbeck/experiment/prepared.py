"""A run's networks, without torch.compile's wrapper, and with the logits as their only output."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from limbeck.data import Data
from limbeck.experiment.checks import unwrapped
from limbeck.experiment.given import OwnNetworks
from limbeck.experiment.networks import NetworkFactory
from limbeck.experiment.workspace import example_batch
from limbeck.models import NetworkSpec
from limbeck.models.outputs import install, installed
from limbeck.recipe.blocks import Recipe, TeacherBlock


class Prepared(AbstractContextManager["Prepared"]):
    """The networks of a run, each prepared once as the recipe says which of its outputs are the logits.

    On exit, the caller's own networks return their old outputs again.
    """

    def __init__(self, source: NetworkFactory | OwnNetworks, recipe: Recipe, data: Data) -> None:
        self._source, self._recipe, self._probe, self._classes = source, recipe, example_batch(data), len(data.classes)
        self._layers = _layers(recipe.method)
        self._handles: list[RemovableHandle] = []
        self._notes: dict[str, None] = {}

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the networks."""
        return (*self._source.notes, *self._notes)

    def student(self, seed: int, arm: str) -> tuple[nn.Module, NetworkSpec, dict[str, nn.Module]]:
        """The student of a seed and an arm, what builds it again, and the other networks by name."""
        network, spec, others = self._source.student(seed, arm)
        blocks = self._recipe.networks
        made = {
            name: self._prepare(name, other, blocks[name].output if name in blocks else None)
            for name, other in others.items()
        }
        return self._prepare("student", network, self._recipe.student.output), spec, made

    def teacher(self, block: TeacherBlock) -> tuple[nn.Module, NetworkSpec]:
        """A teacher that is to be trained, or a member of an ensemble, and what builds it again."""
        network, spec = self._source.teacher(block)
        return self._prepare("teacher", network, block.output), spec

    def restored(self, block: TeacherBlock) -> list[nn.Module]:
        """The trained teacher, or the members of an ensemble; none where it is to be trained."""
        return [self._prepare("teacher", network, block.output) for network in self._source.restored(block)]

    def _prepare(self, name: str, network: nn.Module, output: str | None) -> nn.Module:
        network, notes = unwrapped(name, network)
        if not installed(network):  # unless it, or the network that it is a copy of, was prepared before
            layer = self._layers.get(name, "")
            handles, found = install(name, network, self._probe, self._classes, output=output, layer=layer)
            self._handles += handles
            notes += found
        self._notes |= dict.fromkeys(notes)
        return network


def _layers(method: Mapping[str, Any]) -> dict[str, str]:
    """The layers that a method's options name instead of the networks' outputs."""
    named = {role: method.get(f"{role}_layer") for role in ("student", "teacher")}
    return {role: layer for role, layer in named.items() if isinstance(layer, str) and layer}
