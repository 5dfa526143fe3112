"""Teachers of which only the output can be read: functions, TorchScript, and modules of torch.export."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from limbeck.taps import OutputOnly, scripted

Function = Callable[[Tensor], Any]
"""From inputs (N, ...) to logits (N, classes), a tensor or a NumPy array, or a structure that contains them."""


class FunctionNetwork(OutputOnly):
    """A function as a frozen network without parameters. It is called without gradients, with whole batches.

    Its outputs get the dtype and the device of the inputs.

    Args:
        function: the function. Copies of the network call the same function.
        kind: the name of the network in errors.
        identity: identifies the function in run folders and stores; the default is its name.
    """

    def __init__(self, function: Function, *, kind: str = "a function", identity: str = "") -> None:
        super().__init__()
        self.kind = kind
        self.identity = identity or getattr(function, "__qualname__", type(function).__qualname__)
        self._call: Function = lambda inputs: function(inputs)  # copy.deepcopy does not copy what a closure holds

    def forward(self, inputs: Tensor) -> Any:
        """(N, ...) to what the function returns."""
        with torch.no_grad():
            output = self._call(inputs)
        return tree_map(
            lambda leaf: torch.as_tensor(leaf).to(inputs) if isinstance(leaf, Tensor | np.ndarray) else leaf, output
        )


class GraphNetwork(OutputOnly):
    """A module that runs a graph instead of its layers. A module around it supports hooks, which TorchScript does not.

    Args:
        network: a module of `torch.jit` or `torch.export`.
        kind: the name of the network in errors.
    """

    def __init__(self, network: nn.Module, kind: str) -> None:
        super().__init__()
        self.network, self.kind = network, kind

    def forward(self, inputs: Tensor) -> Any:
        """(N, ...) to what the module returns."""
        return self.network(inputs)


def as_network(teacher: nn.Module | Function, *, identity: str = "") -> nn.Module:
    """Return a teacher as a module that supports hooks. Most modules are returned unchanged.

    Args:
        teacher: a module or a function.
        identity: see `FunctionNetwork`.
    """
    if not isinstance(teacher, nn.Module):
        return FunctionNetwork(teacher, identity=identity)
    if scripted(teacher):
        return GraphNetwork(teacher, "TorchScript")
    if isinstance(teacher, GraphModule) and not _calls_layers(teacher):
        return GraphNetwork(teacher, "a module of torch.export")
    return teacher


def calls_function(network: nn.Module) -> bool:
    """Whether a network, or a member of an ensemble, is a `FunctionNetwork`."""
    return any(isinstance(module, FunctionNetwork) for module in network.modules())


def _calls_layers(graph: GraphModule) -> bool:
    """Whether a graph calls modules with parameters, as those of torch.fx do and those of torch.export do not."""
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    return any(True for name in called for _ in graph.get_submodule(name).parameters())
