"""Where the computation of an exported file begins to differ from that of the student."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from limbeck.exports.base import Exporter
from limbeck.exports.graph import Deployed, Graph
from limbeck.exports.parity import Limit, compare


class _UpTo(nn.Module):
    """The output of a layer instead of that of the network."""

    def __init__(self, module: Deployed, layer: str) -> None:
        super().__init__()
        self.module, self._layer = module, layer

    def forward(self, inputs: Tensor) -> Tensor:
        found: list[Tensor] = []
        with ExitStack() as hooks:
            handle = self.module.network.get_submodule(self._layer).register_forward_hook(
                lambda module, args, output: found.append(output)
            )
            hooks.callback(handle.remove)
            self.module(inputs)
        return found[0].float()


def first_differing(backend: Exporter, graph: Graph, reference: Deployed, samples: Tensor, limit: Limit) -> str | None:
    """The first layer whose output in a file differs by more than the limit, by bisection; None if it is not found.

    For each layer that is tried, the network up to it is exported and run.
    """
    layers = _layers(reference, samples[:1])
    low, high = 0, len(layers)  # the layers before `low` are equal
    while low < high:
        middle = (low + high) // 2
        if _differs(backend, graph, reference, layers[middle], samples, limit):
            high = middle
        else:
            low = middle + 1
    return layers[low] if low < len(layers) else None


def _differs(backend: Exporter, graph: Graph, reference: Deployed, layer: str, samples: Tensor, limit: Limit) -> bool:
    module = graph.module
    assert backend.load is not None
    assert isinstance(module, Deployed)
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"layer{backend.suffix}"
        backend.export(replace(graph, module=_UpTo(module, layer), outputs=("layer",)), file)
        found = compare(
            backend.load(file), _UpTo(reference, layer), samples, [1], task="regression", split="validation"
        )
    return bool(found.problem(limit))


def _layers(module: Deployed, sample: Tensor) -> list[str]:
    """The layers without parts that return one tensor, in the order in which they end; each once."""
    found: dict[str, None] = {}

    def noted(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda layer, args, output: found.setdefault(name) if isinstance(output, Tensor) else None

    with ExitStack() as hooks, torch.no_grad():
        for name, layer in module.network.named_modules():
            if name and not any(layer.children()):
                hooks.callback(layer.register_forward_hook(noted(name)).remove)
        module(sample)
    return list(found)
