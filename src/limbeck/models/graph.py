"""A network's graph: which of its tensors have the same channels."""

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
    """The operations of one forward, in order, and the set of channels of what each one gives.

    Two tensors have one set where they are added, or where one is made from the other channel by channel.

    Args:
        network: is only looked at.

    Raises:
        LimbeckError: the network cannot be traced, or has an operation that is not known here.
    """

    def __init__(self, network: nn.Module) -> None:
        self._modules = dict(network.named_modules())
        self.sets: dict[fx.Node, int] = {}
        self.edges: set[fx.Node] = set()  # what enters the network and what leaves it
        try:
            self.nodes = list(_Tracer().trace(network).nodes)
        except Exception as error:  # whatever the network's own forward raises where it meets no tensor
            raise LimbeckError(f"the graph of the large network cannot be read: {error}") from error
        for node in self.nodes:
            self._sort(node)

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that the node runs; None where it runs none."""
        return self._modules[str(node.target)] if node.op == "call_module" else None

    def behind(self, node: fx.Node) -> fx.Node:
        """The first node up from this one that does something in eval mode."""
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
            kept = self.sets[inputs[0]]
            merged = {self.sets[other] for other in inputs}
            self.sets = {other: kept if number in merged else number for other, number in self.sets.items()}
            self.sets[node] = kept
        elif len(inputs) == 1 and (isinstance(module, (*LAYERS, *_BY_CHANNEL)) or _is_one_of(node, _FUNCTIONS)):
            self.sets[node] = self.sets[inputs[0]]
        else:
            what = f"{node.target}, a {type(module).__name__},"
            if module is None:
                what = f"{getattr(node.target, '__name__', node.target)} in {owner(node) or 'its forward'}"
            raise LimbeckError(f"what becomes of the channels of the large network at {what} is not known here")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = (PaddedIdentity, Maxout, MaxNormConv2d, MaxNormLinear)
        return isinstance(m, whole) or super().is_leaf_module(m, module_qualified_name)


def adds(node: fx.Node) -> bool:
    """Whether the node adds tensors."""
    return _is_one_of(node, _ADDS) and bool(node.all_input_nodes)


def entered(node: fx.Node) -> fx.Node:
    """The node whose tensor enters this one."""
    return node.all_input_nodes[0]


def owner(node: fx.Node) -> str:
    """The name of the module in whose forward an operation is; "" for the network itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def depthwise(module: nn.Module) -> bool:
    """Whether it is a convolution of each channel alone."""
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def sizes(module: Any) -> tuple[int, int]:
    """The channels or features that enter a layer and those that it gives."""
    if isinstance(module, NORMS):
        return module.num_features, module.num_features
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return module.in_channels, module.out_channels


def _is_one_of(node: fx.Node, known: tuple[Any, ...]) -> bool:
    """Whether the node is one of those functions or methods; a module may have a method's name."""
    return node.op in ("call_function", "call_method") and node.target in known
