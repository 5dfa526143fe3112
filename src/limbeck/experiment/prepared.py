"""A run's networks, without torch.compile's wrapper, and with the logits as their only output."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from limbeck.core import LimbeckError
from limbeck.data import Data
from limbeck.experiment.checks import unwrapped
from limbeck.experiment.given import OwnNetworks
from limbeck.experiment.networks import NetworkFactory, expected_input
from limbeck.experiment.pruning import Pruning
from limbeck.experiment.workspace import example_batch
from limbeck.models import NetworkSpec
from limbeck.models.class_order import order_of, select_classes
from limbeck.models.inputs import Bridge, bridge_of
from limbeck.models.outputs import install, installed
from limbeck.recipe.blocks import MemberBlock, Recipe, StudentBlock, TeacherBlock


class Prepared(AbstractContextManager["Prepared"]):
    """The networks of a run, each prepared once as the recipe says which of its outputs are the logits.

    On exit, the caller's own networks return their old outputs again.
    """

    def __init__(self, source: NetworkFactory | OwnNetworks, recipe: Recipe, data: Data) -> None:
        self._source, self._recipe, self._data, self._probe = source, recipe, data, example_batch(data)
        self._layers = _layers(recipe.method)
        self._pruning = Pruning(recipe, data)
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
        made = {name: self._prepare(name, other, blocks.get(name)) for name, other in others.items()}
        return self._prepare("student", network, self._recipe.student), spec, made

    def teacher(self, block: TeacherBlock) -> tuple[nn.Module, NetworkSpec]:
        """A teacher that is to be trained, or a member of an ensemble, and what builds it again."""
        network, spec = self._source.teacher(block)
        return self._prepare("teacher", network, block), spec

    def prune(self, networks: Mapping[str, nn.Module]) -> None:
        """Prune in place those of the networks whose blocks say so; the teacher is among the networks."""
        self._pruning.prune(networks)

    def restored(self, block: TeacherBlock) -> list[nn.Module]:
        """The trained teacher, or the members of an ensemble; none where it is to be trained."""
        found = []
        for number, (trained, labels, one) in enumerate(self._source.restored(block)):
            name = f"teacher's member {number}" if block.listed else "teacher"
            network = self._prepare(name, trained, one, len(labels))
            if labels != self._data.outputs:
                if any(block.of for block in (self._recipe.student, *self._recipe.networks.values())):
                    raise LimbeckError("of: teacher needs a teacher with the classes of the data in the same order")
                order = order_of(name, labels, self._data.outputs)
                select_classes(name, network, order, self._probe)
                which = "in another order" if len(order) == len(labels) else f"and {len(labels) - len(order)} others"
                self._notes[f"the {name} has the classes of the data {which}: its outputs are selected by name"] = None
            found.append(network)
        return found

    def _prepare(
        self, name: str, network: nn.Module, block: MemberBlock | StudentBlock | None, classes: int | None = None
    ) -> nn.Module:
        network, notes = unwrapped(name, network)
        bridge = bridge_of(network)
        if bridge is None and block is not None:  # a network of the caller's
            made = Bridge(expected_input(block), self._data.shape, self._data.mean, self._data.std)
            if made.changes:
                self._handles.append(made.install(network))
                bridge = made
        if bridge is not None:
            notes.append(f"the {name} reads every view converted to {bridge}")
        if not installed(network):  # unless it, or the network that it is a copy of, was prepared before
            handles, found = install(
                name,
                network,
                self._probe,
                classes or len(self._data.outputs),
                output=block.output if block else None,
                layer=self._layers.get(name, ""),
                task=self._data.task,
            )
            self._handles += handles
            notes += found
        self._notes |= dict.fromkeys(notes)
        return network


def _layers(method: Mapping[str, Any]) -> dict[str, str]:
    """The layers that a method's options name instead of the networks' outputs."""
    named = {role: method.get(f"{role}_layer") for role in ("student", "teacher")}
    return {role: layer for role, layer in named.items() if isinstance(layer, str) and layer}
