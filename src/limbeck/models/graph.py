"""The graph of a network: which of its tensors share their channels."""

import operator
from typing import Any

import torch
from torch import fx, nn

from limbeck.connectors import Maxout
from limbeck.core import LimbeckError
from limbeck.models.cifar_resnet import PaddedIdentity
from limbeck.models.maxout import MaxNormConv2d
from limbeck.models.mlp import MaxNormLinear

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
LAYERS = (nn.Conv2d, nn.Linear, *NORMS)
IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)  # in eval mode
TWICE_IS_ONCE = (*IDLE, nn.ReLU, nn.Hardtanh, nn.Flatten, Maxout)
_BY_CHANNEL = (
    *TWICE_IS_ONCE,
    *(nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh, nn.Sigmoid),
    *(nn.Hardswish, nn.Hardsigmoid, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
)
_ADDS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_FUNCTIONS: tuple[Any, ...] = (
    *(torch.relu, nn.functional.relu, torch.flatten, nn.functional.dropout, "relu", "flatten", "contiguous"),
    *(nn.functional.max_pool2d, nn.functional.avg_pool2d, nn.functional.adaptive_avg_pool2d),
)


class Graph:
    """The operations of one forward in order, and the set of channels of each output.

    Two tensors share a set if they are added, or if one is computed from the other channel by channel.

    Args:
        network: the network to trace. It is not changed.

    Raises:
        LimbeckError: the network cannot be traced, or contains an unsupported operation.
    """

    def __init__(self, network: nn.Module) -> None:
        self._modules = dict(network.named_modules())
        self.sets: dict[fx.Node, int] = {}
        self.edges: set[fx.Node] = set()  # the inputs and outputs of the network
        try:
            self.nodes = list(_Tracer().trace(network).nodes)
        except Exception as error:  # the forward may raise anything when it is called with proxies
            raise LimbeckError(f"the large network cannot be traced by torch.fx: {error}") from error
        for node in self.nodes:
            self._sort(node)

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that the node calls, or None."""
        return self._modules[str(node.target)] if node.op == "call_module" else None

    def behind(self, node: fx.Node) -> fx.Node:
        """Return this node, or the closest node before it that is not an identity in eval mode."""
        while isinstance(self.module(node), IDLE):
            node = entered(node)
        return node

    def _sort(self, node: fx.Node) -> None:
        module, inputs = self.module(node), node.all_input_nodes
        mixes = isinstance(module, PaddedIdentity | nn.Conv2d | nn.Linear) and not depthwise(module)
        if node.op == "output":
            self.edges |= set(inputs)
        elif node.op == "placeholder" or mixes:
            self.sets[node] = len(self.sets)
            self.edges |= {node} if node.op == "placeholder" else set()
        elif adds(node):
            first = self.sets[inputs[0]]
            merged = {self.sets[other] for other in inputs}
            self.sets = {other: first if number in merged else number for other, number in self.sets.items()}
            self.sets[node] = first
        elif len(inputs) == 1 and (isinstance(module, (*LAYERS, *_BY_CHANNEL)) or _is_one_of(node, _FUNCTIONS)):
            self.sets[node] = self.sets[inputs[0]]
        else:
            what = f"{node.target}, a {type(module).__name__},"
            if module is None:
                what = f"{getattr(node.target, '__name__', node.target)} in {owner(node) or 'its forward'}"
            raise LimbeckError(f"net2net does not support {what} of the large network: its channels cannot be tracked")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = (PaddedIdentity, Maxout, MaxNormConv2d, MaxNormLinear)
        return isinstance(m, whole) or super().is_leaf_module(m, module_qualified_name)


def adds(node: fx.Node) -> bool:
    """Whether the node adds tensors."""
    return _is_one_of(node, _ADDS) and bool(node.all_input_nodes)


def entered(node: fx.Node) -> fx.Node:
    """Return the node that produces the first input of this one."""
    return node.all_input_nodes[0]


def owner(node: fx.Node) -> str:
    """Return the name of the module whose forward contains an operation; "" for the network itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def depthwise(module: nn.Module) -> bool:
    """Whether the module is a depthwise convolution."""
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def sizes(module: Any) -> tuple[int, int]:
    """Return the number of input and output channels (or features) of a layer."""
    if isinstance(module, NORMS):
        return module.num_features, module.num_features
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return module.in_channels, module.out_channels


def _is_one_of(node: fx.Node, known: tuple[Any, ...]) -> bool:
    """Whether the node calls one of these functions or methods. A module may have the name of a method."""
    return node.op in ("call_function", "call_method") and node.target in known
