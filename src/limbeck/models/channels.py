"""Match the channels of a large network with those of a small network.

All layers that read or write the same set of channels (see `limbeck.models.graph`) use the same matching.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from types import NoneType
from typing import Any

import torch
from torch import Tensor, fx, nn

from limbeck.core import LimbeckError
from limbeck.models.cifar_resnet import PaddedIdentity
from limbeck.models.graph import LAYERS, NORMS, TWICE_IS_ONCE, Graph, adds, depthwise, entered, owner, sizes

Draw = Callable[[int, int], Tensor]


class Role(Enum):
    """How a layer of the large network is initialised."""

    COPIED = auto()  # with the weights of its counterpart
    IDENTITY = auto()  # as an identity map
    ZERO = auto()  # with zeros: it ends the branch of an inserted residual block
    FREE = auto()  # arbitrarily: it lies inside such a branch


@dataclass(eq=False)
class Layer:
    """A layer of the large network that has weights: a linear layer, a convolution or BatchNorm.

    ``inside`` (inputs,) int64 is the input of the small network's layer that each input copies, or that of an identity
    in its place; ``outside`` (outputs,) is the same for the outputs. They are missing in a zero or free layer.
    """

    node: fx.Node
    module: Any
    counterpart: Any  # the layer of the small network with this name, or None
    role: Role
    inside: Tensor = field(init=False)
    outside: Tensor = field(init=False)

    @property
    def name(self) -> str:
        """Its name in both networks."""
        return str(self.node.target)

    @property
    def matters(self) -> bool:
        """Whether its outputs do."""
        return self.role in (Role.COPIED, Role.IDENTITY)

    def sides(self) -> Iterator[tuple[fx.Node, int, int | None]]:
        """Yield its input and output: the node, and the number of channels in the large and in the small network."""
        few = (None, None) if self.counterpart is None else sizes(self.counterpart)
        yield from zip((entered(self.node), self.node), sizes(self.module), few, strict=True)


def matched(small: nn.Module, large: nn.Module, draw: Draw) -> list[Layer]:
    """Return every layer of the large network that has weights, in execution order. Layers are matched by name.

    ``draw`` maps the channel counts of the small and the large network to an int64 tensor: the index of the small
    network's channel that each channel copies. Every index occurs at least once.

    Raises:
        LimbeckError: the graph of the large network cannot be traced; or a layer is missing, of another kind or
            narrower, or is inserted where it cannot be an identity.
    """
    matching = _Matching(small, Graph(large))
    copies = matching.copies(draw)
    for layer in matching.found:
        if layer.matters:
            sides = layer.sides()
            layer.inside, layer.outside = (spread(copies[matching.graph.sets[node]], many) for node, many, _ in sides)
    return matching.found


def spread(copies: Tensor, size: int) -> Tensor:
    """Expand the copies of a set's channels for a layer with several features per channel, such as all positions."""
    each = size // len(copies)
    return (copies[:, None] * each + torch.arange(each)).flatten()


class _Matching:
    """The layers of the large network and their counterparts."""

    def __init__(self, small: nn.Module, graph: Graph) -> None:
        self.graph = graph
        self._small = dict(small.named_modules())
        self._padded: dict[int, tuple[fx.Node, PaddedIdentity, PaddedIdentity]] = {}
        self.found: list[Layer] = []
        zero = set(self._ends())
        free = self._inside(zero)
        for node in graph.nodes:
            role = Role.ZERO if node in zero else Role.FREE if node in free else Role.IDENTITY
            self._add(node, role)
        self._check_complete()

    def copies(self, draw: Draw) -> dict[int, Tensor]:
        """Return, for every set of channels, the index of the small network's channel that each channel copies."""
        few, many = self._counts()
        edges = {self.graph.sets[node] for node in self.graph.edges}
        made: dict[int, Tensor] = {}

        def make(number: int) -> Tensor:
            if number in made:
                return made[number]
            if number in edges:
                copies = torch.arange(many[number])
            elif number in self._padded:
                node, module, other = self._padded[number]
                extra = draw(other.extra, module.extra) if module.extra else torch.arange(0)
                copies = torch.cat((make(self.graph.sets[entered(node)]), few[number] - other.extra + extra))
            else:
                copies = draw(few[number], many[number])
            return made.setdefault(number, copies)

        return {number: make(number) for number in dict.fromkeys(self.graph.sets.values()) if number in few}

    def _ends(self) -> Iterator[fx.Node]:
        """Yield the last layer of the branch of every inserted residual block."""
        for node in self.graph.nodes:
            if not adds(node) or not self._inserted(node):
                continue
            ends = [self.graph.behind(other) for other in node.all_input_nodes]
            last = [end for end in ends if isinstance(self.graph.module(end), LAYERS) and self._inserted(end)]
            if len(last) != 1:
                raise LimbeckError(
                    f"the block {owner(node)} is not in the small network and cannot be initialised as an identity: "
                    "it needs a shortcut without weights and a branch that ends in a layer with weights"
                )
            yield last[0]

    def _inside(self, zero: set[fx.Node]) -> set[fx.Node]:
        """Return the nodes whose outputs only such a branch uses."""
        free: set[fx.Node] = set()
        for node in reversed(self.graph.nodes):
            if node.users and self._inserted(node) and all(user in free | zero for user in node.users):
                free.add(node)
        return free

    def _inserted(self, node: fx.Node) -> bool:
        """Whether the small network lacks the module, or the module whose forward contains the operation."""
        if node.op == "call_module":
            return str(node.target) not in self._small
        return node.op.startswith("call") and owner(node) not in self._small

    def _add(self, node: fx.Node, role: Role) -> None:
        module, name = self.graph.module(node), str(node.target)
        if isinstance(module, LAYERS):
            counterpart = self._counterpart(name, module)
            self.found.append(Layer(node, module, counterpart, role if counterpart is None else Role.COPIED))
        elif isinstance(module, PaddedIdentity):
            other = self._small.get(name)
            if not isinstance(other, PaddedIdentity) or not module.extra >= other.extra >= min(module.extra, 1):
                raise LimbeckError(f"{name} appends {module.extra} channels of zeros, the small network appends none")
            self._padded[self.graph.sets[node]] = node, module, other
        elif role == Role.IDENTITY and self._inserted(node) and not isinstance(module, (*TWICE_IS_ONCE, NoneType)):
            raise LimbeckError(
                f"{name} is not in the small network, and a {type(module).__name__} changes its input: allowed are "
                "layers that leave it unchanged, such as a second ReLU"
            )

    def _counterpart(self, name: str, module: Any) -> Any:
        """Return the layer of the small network with this name, or None."""
        _check_known(name, module)
        other: Any = self._small.get(name)
        if other is None or not list(other.parameters()):
            return None
        kind = next(kind for kind in LAYERS if isinstance(module, kind))
        if not isinstance(other, kind):
            raise LimbeckError(f"{name} is a {type(other).__name__} in the small network, not a {kind.__name__}")
        _check_known(name, other)
        if other.weight.shape[2:] != module.weight.shape[2:]:
            raise LimbeckError(
                f"{name} has kernels of size {tuple(module.weight.shape[2:])}, in the small network "
                f"{tuple(other.weight.shape[2:])}: they must be equal"
            )
        if depthwise(other) != depthwise(module):
            raise LimbeckError(f"{name} has {module.groups} groups, in the small network {other.groups}")
        if other.bias is not None and module.bias is None:
            raise LimbeckError(f"{name} has no bias in the large network, but has one in the small network")
        return other

    def _counts(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return the number of channels of each set in the small and in the large network."""
        slots = [
            (self.graph.sets[node], many, other, found.name)
            for found in self.found
            if found.matters
            for node, many, other in found.sides()
        ]
        many_in: dict[int, int] = {}
        few_in: dict[int, int] = {}
        for number, many, _, _ in slots:
            many_in[number] = min(many, many_in.get(number, many))
        for number, many, other, _ in slots:
            if other is not None:  # a layer may have several features per channel
                few_in.setdefault(number, other * many_in[number] // many)
        for found in self.found:
            if found.role == Role.IDENTITY:
                before, after = (self.graph.sets[node] for node, _, _ in found.sides())
                few_in.setdefault(before, many_in[before])  # nothing precedes the input of the network
                if few_in.setdefault(after, few_in[before]) != few_in[before]:
                    raise LimbeckError(
                        f"{found.name} is not in the small network and cannot be an identity: it has {few_in[before]} "
                        f"input channels, but {few_in[after]} output channels are needed"
                    )
        edges = {self.graph.sets[node] for node in self.graph.edges}
        for number, many, other, name in slots:
            _check_count(name, (many, other), (many_in[number], few_in[number]), fixed=number in edges)
        return few_in, many_in

    def _check_complete(self) -> None:
        names = [found.name for found in self.found]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise LimbeckError(f"{twice[0]} runs more than once in one forward: each layer must run once")
        used = [name for name, module in self._small.items() if list(module.parameters(recurse=False))]
        missing = [name for name in used if name not in names]
        if missing:
            raise LimbeckError(
                f"the large network has no layer {missing[0]}, but the small one has: both must be of one family, in "
                "which corresponding layers have the same name"
            )


def _check_known(name: str, module: Any) -> None:
    if isinstance(module, nn.Conv2d) and module.groups > 1 and not depthwise(module):
        raise LimbeckError(f"{name} is a convolution with {module.groups} groups: allowed are 1, or one per channel")
    if isinstance(module, NORMS) and (module.weight is None or module.running_mean is None):
        raise LimbeckError(f"{name} is a {type(module).__name__} without weights or running statistics: it needs both")


def _check_count(name: str, own: tuple[int, int | None], each: tuple[int, int], *, fixed: bool) -> None:
    """Raise LimbeckError unless the sizes of a layer in both networks match its set of channels."""
    many, few = each
    if fixed and many != few:
        raise LimbeckError(f"{name} is {many} wide, in the small network {few}: inputs and classes must be the same")
    if many < few:
        raise LimbeckError(f"{name} has {many} channels, fewer than the {few} of the small network")
    if own[0] % many or (own[1] is not None and own[0] * few != own[1] * many):
        raise LimbeckError(
            f"{name} is {own[0]} wide for {many} channels, in the small network {own[1]} for {few}: the number of "
            "positions or pieces per channel must be the same"
        )
