"""Where the computation of an exported file begins to differ from that of the student."""

from bisect import bisect_left
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from limbeck.exports.base import Exporter, Load
from limbeck.exports.deployed import Deployed
from limbeck.exports.graph import Graph
from limbeck.exports.parity import Limit, compare


class _UpTo(nn.Module):
    """The output of a layer of a `Deployed` network instead of that of the whole."""

    def __init__(self, module: nn.Module, layer: str) -> None:
        super().__init__()
        self.module, self._layer = module, f"network.{layer}"

    def forward(self, inputs: Tensor) -> Tensor:
        found: list[Tensor] = []
        with ExitStack() as hooks:
            handle = self.module.get_submodule(self._layer).register_forward_hook(
                lambda module, args, output: found.append(output)
            )
            hooks.callback(handle.remove)
            self.module(inputs)
        return found[0].float()


def first_differing(
    backend: Exporter, load: Load, graph: Graph, student: Deployed, samples: Tensor, limit: Limit
) -> str | None:
    """The first layer whose output in a file differs by more than the limit of numbers, by bisection.

    For each layer that is tried, the network up to it is exported and run. None if no layer differs, or the network up
    to a layer cannot be exported.

    Args:
        backend: writes a file.
        load: opens it.
        graph: what was exported.
        student: the module in 32 bits.
        samples: raw samples (N, ...).
        limit: of a file.
    """
    layers = _layers(student, samples[:1])

    def differs(layer: str) -> bool:
        with TemporaryDirectory() as folder:
            file = Path(folder) / f"layer{backend.suffix}"
            backend.export(replace(graph, module=_UpTo(graph.module, layer), outputs=("layer",)), file)
            found = compare(load(file), _UpTo(student, layer), samples, [1], task="regression", split="validation")
        return bool(found.problem(limit))

    try:
        place = bisect_left(layers, True, key=differs)
    except Exception:  # a backend may raise anything; the reason why the whole file is refused is known
        return None
    return layers[place] if place < len(layers) else None


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
