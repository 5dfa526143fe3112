"""Prune the networks of a recipe that have ``init: pruned``, after their teacher is trained."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from limbeck.cache.fingerprint import weights_digest
from limbeck.core import LimbeckError, NoClassifier
from limbeck.data import Data
from limbeck.evaluate import macs, parameters
from limbeck.experiment.networks import fresh
from limbeck.experiment.workspace import example_batch
from limbeck.models.inputs import AS_THE_DATA, bridge_of
from limbeck.models.narrowing import narrow
from limbeck.models.pruning import pruned
from limbeck.outline import outline
from limbeck.recipe.blocks import Recipe, StudentBlock
from limbeck.taps import evaluation_mode
from limbeck.train.copies import deep_copy


class Pruning:
    """The pruned networks of a recipe. The result for the last weights is kept, because several arms start from it."""

    def __init__(self, recipe: Recipe, data: Data) -> None:
        blocks = {"student": recipe.student, **recipe.networks}
        self._blocks = {name: block for name, block in blocks.items() if block.init == "pruned"}
        self._data = data
        self._known: dict[str, tuple[str, Mapping[str, Tensor]]] = {}  # by network: a digest and the pruned state dict

    def prune(self, networks: Mapping[str, nn.Module]) -> None:
        """Prune networks in place; ``networks`` also has the teacher if they are pruned from it.

        Raises:
            LimbeckError: a network cannot be pruned to its share.
        """
        for name, block in self._blocks.items():
            try:
                self._prune(name, block, networks)
            except LimbeckError as error:
                raise LimbeckError(f"init: pruned cannot prune the {name}: {error}") from error

    def _prune(self, name: str, block: StudentBlock, networks: Mapping[str, nn.Module]) -> None:
        network = networks[name]
        whole = deep_copy(network, {name: network})
        if block.of == "teacher":
            _take(whole, networks["teacher"].state_dict())
        digest = weights_digest(whole)
        if self._known.get(name, ("",))[0] != digest:
            self._known[name] = digest, self._pruned(name, block, whole)
        state = self._known[name][1]
        if block.from_scratch:
            bridge = bridge_of(network)
            state = _scaled(fresh(block.model, self._data, bridge.expected if bridge else AS_THE_DATA)[0], state)
        _take(network, state)

    def _pruned(self, name: str, block: StudentBlock, whole: nn.Module) -> Mapping[str, Tensor]:
        """The state dict of the pruned network, from which `narrow` makes the same network to the bit."""
        batch = example_batch(self._data)
        try:
            classifier = outline(name, whole, batch).classifier
        except NoClassifier as error:
            raise LimbeckError("its outputs are not those of a linear layer") from error
        cost = parameters if block.macs is None else self._macs
        made = pruned(whole, batch.inputs, classifier, cost, block.share)
        again = deep_copy(whole, {name: whole})
        _take(again, made.state_dict())
        with evaluation_mode((made, again)), torch.no_grad():
            try:
                same = torch.equal(made(batch.inputs), again(batch.inputs))
            except Exception as error:  # a layer may keep numbers of channels that limbeck does not know
                raise LimbeckError(f"it has layers that cannot be narrowed: {error}") from error
        if not same:
            raise LimbeckError("its weights file would give another network, because it has layers of other kinds")
        return made.state_dict()

    def _macs(self, network: nn.Module) -> int:
        counted = macs(network, self._data.shape)
        if not counted:
            raise LimbeckError("its multiply-accumulates cannot be counted: write parameters: instead of macs:")
        return counted


def _take(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network the shapes and the values of a state dict."""
    narrow(network, state)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise LimbeckError("the trained network has other layers than its model") from error


def _scaled(random: nn.Module, pruned: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The initial weights of a network cut to the shapes of a pruned one, with the variance of outputs kept."""
    layers = [
        module for module in random.modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ]
    before = [layer.weight[0].numel() for layer in layers]
    narrow(random, pruned)
    with torch.no_grad():
        for layer, count in zip(layers, before, strict=True):
            layer.weight *= math.sqrt(count / layer.weight[0].numel())
    return random.state_dict()
