"""The outline of any network: where its classifier, its feature and its maps are.

It is found by one dry run; no layer names are guessed. A block is a module inside an ``nn.Sequential`` or
``nn.ModuleList`` that has at least two layers with weights. A section is a sequence of blocks whose maps have the same
size; the layers before the first block are the stem. In a network without blocks (VGG) there is one section for each
map size that has a convolution, and its activations take the role of the blocks.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.connectors import Maxout
from limbeck.core import Batch, LimbeckError, NoClassifier, Outline, Section, Tap
from limbeck.taps import closed_kind, evaluation_mode, layer_of, out_of_place, scripted, version

_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.Tanh, nn.Sigmoid, Maxout),
)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_WEIGHTED = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True, eq=False)
class _Event:
    """One call of one module in the dry run."""

    name: str
    module: nn.Module
    entered: Tensor | None
    given: Tensor
    run: int  # which of the module's calls, from 0
    version: int  # version counter of the output, which an in-place operation increases
    runs_again: bool = False

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of its map; empty if the output is not a map with more than one position."""
        shape = self.given.shape
        return tuple(shape[2:]) if len(shape) == 4 and shape[2] * shape[3] > 1 else ()

    def tap(self, network: str, side: str = "output") -> Tap:
        return Tap(network, self.name, side, self.run if self.runs_again else None)


def outline(name: str, network: nn.Module, batch: Batch) -> Outline:
    """The outline of the network called ``name``.

    Raises:
        NoClassifier: the logits are not the output of a linear layer.
        LimbeckError: only the output of the network can be read.
    """
    kind = closed_kind(network)
    if kind:
        raise LimbeckError(
            f"the method reads layers of the {name}, which is {kind}, so only its output can be read: use the original "
            "module, or a method that reads only outputs, such as kd"
        )
    events, logits = _watched(network, batch)
    linear = [event for event in events if isinstance(event.module, nn.Linear) and event.given.shape == logits.shape]
    classifier = next((event for event in reversed(linear) if torch.equal(event.given, logits)), None)
    if classifier is None or classifier.entered is None:
        raise NoClassifier(
            f"the {name} has no linear layer whose output is its logits (an ensemble, or a head of another kind): "
            "name the layers to read"
        )
    # an output that is overwritten later cannot be read
    before = [event for event in events[: events.index(classifier)] if version(event.given) == event.version]
    blocks = [event for event in before if _is_block(event, network)]
    sizes = _section_sizes(before, blocks)
    pooled = _pooled(before, classifier.entered) if sizes else None
    finals = [_final(before, blocks, size) for size in sizes[:-1]]
    finals += [pooled or _final(before, blocks, size) for size in sizes[-1:]]
    sections = tuple(_section(name, before, blocks, size, final) for size, final in zip(sizes, finals, strict=True))
    return Outline(
        classifier=classifier.name,
        feature=classifier.tap(name, "input"),
        sections=sections,
        stem=_stem(name, before, blocks, sizes[0]) if sizes else None,
        pools=pooled is not None,
        nonnegative=bool((classifier.entered >= 0).all()),
        hidden=() if sizes else _hidden(name, before, blocks),
    )


def _watched(network: nn.Module, batch: Batch) -> tuple[list[_Event], Tensor]:
    """Every call of every module in the order in which they end, and the output of the network."""
    events: list[_Event] = []
    runs: dict[str, int] = {}

    def keep(layer: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            entered = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            runs[layer] = runs.get(layer, -1) + 1
            events.append(_Event(layer, module, entered, output, runs[layer], version(output)))

    layers = [(layer, module) for layer, module in network.named_modules() if layer and not scripted(module)]
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    with ExitStack() as hooks, evaluation_mode([network]), out_of_place([network]), torch.no_grad():
        for layer, module in layers:
            hooks.enter_context(module.register_forward_hook(partial(keep, layer)))
        logits: Tensor = network(batch.inputs.to(device))
    return [replace(event, runs_again=runs[event.name] > 0) for event in events], logits


def _is_block(event: _Event, network: nn.Module) -> bool:
    parent = layer_of(network, event.name.rpartition(".")[0])
    if not isinstance(parent, nn.Sequential | nn.ModuleList) or isinstance(event.module, nn.Sequential):
        return False
    return sum(isinstance(module, _WEIGHTED) for module in event.module.modules()) > 1


def _section_sizes(events: Sequence[_Event], blocks: Sequence[_Event]) -> list[tuple[int, ...]]:
    """The sizes of the sections' maps, in order."""
    convolutions = [event for event in events if isinstance(event.module, nn.Conv2d) and event.size]
    if len(convolutions) < 2:  # a vision transformer has one, which cuts its patches
        return []
    shaping = [event for event in blocks if event.size] or convolutions
    return list(dict.fromkeys(event.size for event in shaping))


def _pooled(events: Sequence[_Event], feature: Tensor) -> _Event | None:
    """The last map, if its mean over the positions is the feature."""
    event = next(event for event in reversed(events) if event.size)
    if feature.dim() != 2 or event.given.shape[1] != feature.shape[1]:
        return None
    return event if torch.allclose(event.given.mean(dim=(2, 3)), feature, rtol=1e-3, atol=1e-5) else None


def _own(events: Sequence[_Event], blocks: Sequence[_Event], size: tuple[int, ...]) -> Sequence[_Event]:
    """The blocks with maps of a size, or without blocks the activations, or without activations all layers."""
    inside = [event for event in events if event.size == size]
    return [event for event in blocks if event.size == size] or _activations(inside) or inside


def _final(events: Sequence[_Event], blocks: Sequence[_Event], size: tuple[int, ...]) -> _Event:
    """The output of the last block of a size, as the output of the outermost module that returns it."""
    own = _own(events, blocks, size)
    return [event for event in events if event.size == size and event.given is own[-1].given][-1]


def _section(
    name: str, events: Sequence[_Event], blocks: Sequence[_Event], size: tuple[int, ...], final: _Event
) -> Section:
    first = _own(events, blocks, size)[0]
    pre_activation, norm = _before_activation(name, events, final)
    activation = next((event.name for event in _activations(events) if event.given is final.given), "")
    return Section(first.tap(name), final.tap(name), pre_activation, activation, norm)


def _stem(name: str, events: Sequence[_Event], blocks: Sequence[_Event], size: tuple[int, ...]) -> Tap:
    first = _own(events, blocks, size)[0]
    return first.tap(name, "input" if first in blocks else "output")


def _activations(events: Sequence[_Event]) -> list[_Event]:
    return [event for event in events if isinstance(event.module, _ACTIVATIONS)]


def _before_activation(name: str, events: Sequence[_Event], final: _Event) -> tuple[Tap, str]:
    """The map before its activation, and the last BatchNorm up to there."""
    for event in events:
        follows = event.entered is final.given and isinstance(event.module, _NORMS)
        if follows:  # a block starts with a BatchNorm, as in a wide ResNet: the map is not activated yet
            return event.tap(name), event.name
    activation = next((event for event in reversed(_activations(events)) if event.given is final.given), None)
    place = events.index(activation if activation is not None else final)
    norms = [event for event in events[: place + 1] if isinstance(event.module, _NORMS)]
    if activation is None:
        return final.tap(name), norms[-1].name if norms else ""
    parent = activation.name.rpartition(".")[0]
    around = [event for event in events if event.name == parent and isinstance(event.module, _NORMS)]
    beside = [event for event in norms if event.name.rpartition(".")[0] == parent]  # not the shortcut's
    norm = next((found[-1].name for found in (around, beside, norms) if found), "")
    return activation.tap(name, "input"), norm


def _hidden(name: str, events: Sequence[_Event], blocks: Sequence[_Event]) -> tuple[Tap, ...]:
    tokens = [event for event in blocks if event.given.dim() == 3]
    vectors = [event for event in _activations(events) if event.given.dim() == 2]
    return tuple(dict.fromkeys(event.tap(name) for event in tokens or vectors))
