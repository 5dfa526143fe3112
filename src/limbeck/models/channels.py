"""Which channels of a large network stand for which of a small one's.

All layers that read or write one set of channels (see `limbeck.models.graph`) agree on it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    """How a layer of the large network starts."""

    COPIED = auto()  # from its counterpart
    IDENTITY = auto()  # passes on what it gets
    ZERO = auto()  # ends the branch of an inserted residual block
    FREE = auto()  # lies inside such a branch: it may be anything


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer with weights of the large network: a linear layer, a convolution or BatchNorm."""

    name: str
    module: Any
    counterpart: Any  # the small network's layer of that name; None where there is none
    role: Role
    inside: Tensor  # (inputs,) int64: which input of the small network's layer each is; empty if zero or free
    outside: Tensor  # (outputs,) int64
    few: tuple[int, int]  # inputs and outputs of the small network's layer, or of an identity in its place


@dataclass(frozen=True, eq=False)
class _Found:
    node: fx.Node
    module: Any
    counterpart: Any
    role: Role

    @property
    def name(self) -> str:
        return str(self.node.target)

    @property
    def matters(self) -> bool:
        return self.role in (Role.COPIED, Role.IDENTITY)

    def sides(self) -> Iterator[tuple[fx.Node, int, int | None]]:
        """Of what enters it and of what it gives: the tensor, and its channels in the large and the small network."""
        few = (None, None) if self.counterpart is None else sizes(self.counterpart)
        yield from zip((entered(self.node), self.node), sizes(self.module), few, strict=True)


def matched(small: nn.Module, large: nn.Module, draw: Draw) -> list[Layer]:
    """Every layer with weights of the large network, in the order in which they run.

    Args:
        small: whose layers are matched by name.
        large: is only looked at.
        draw: of how many channels there are in the small and in the large network, which of the small network's each
            one is; every one at least once.

    Raises:
        LimbeckError: the large network's graph cannot be read; or a layer is missing, of another kind or narrower, or
            is inserted where it cannot pass on what it gets.
    """
    matching = _Matching(small, Graph(large))
    copies = matching.copies(draw)
    nothing = torch.empty(0, dtype=torch.int64)
    layers = []
    for found in matching.found:
        sides = [spread(copies[matching.graph.sets[node]], many) for node, many, _ in found.sides() if found.matters]
        inside, outside = sides or (nothing, nothing)
        few = (int(inside.max()) + 1, int(outside.max()) + 1) if sides else (0, 0)
        layers.append(Layer(found.name, found.module, found.counterpart, found.role, inside, outside, few))
    return layers


def spread(copies: Tensor, size: int) -> Tensor:
    """The copies of a set's channels to those of a layer that has several features for each, such as all its places."""
    each = size // len(copies)
    return (copies[:, None] * each + torch.arange(each)).flatten()


class _Matching:
    """The large network's layers and their counterparts."""

    def __init__(self, small: nn.Module, graph: Graph) -> None:
        self.graph = graph
        self._small = dict(small.named_modules())
        self._padded: dict[int, tuple[fx.Node, PaddedIdentity, PaddedIdentity]] = {}
        self.found: list[_Found] = []
        zero = set(self._ends())
        free = self._inside(zero)
        for node in graph.nodes:
            role = Role.ZERO if node in zero else Role.FREE if node in free else Role.IDENTITY
            self._add(node, role)
        self._check_complete()

    def copies(self, draw: Draw) -> dict[int, Tensor]:
        """For every set of channels, which of the small network's each one is."""
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
        """The last layer of the branch of every inserted residual block."""
        for node in self.graph.nodes:
            if not adds(node) or not self._inserted(node):
                continue
            ends = [self.graph.behind(other) for other in node.all_input_nodes]
            last = [end for end in ends if isinstance(self.graph.module(end), LAYERS) and self._inserted(end)]
            if len(last) != 1:
                raise LimbeckError(
                    f"the block {owner(node)} is not in the small network, and cannot be made to pass on what it gets: "
                    "for that it needs a shortcut without weights beside a branch that ends in a layer with weights"
                )
            yield last[0]

    def _inside(self, zero: set[fx.Node]) -> set[fx.Node]:
        """What is read in such a branch alone."""
        free: set[fx.Node] = set()
        for node in reversed(self.graph.nodes):
            if node.users and self._inserted(node) and all(user in free | zero for user in node.users):
                free.add(node)
        return free

    def _inserted(self, node: fx.Node) -> bool:
        """Whether the small network lacks the module, or the one that has the operation in its forward."""
        if node.op == "call_module":
            return str(node.target) not in self._small
        return node.op.startswith("call") and owner(node) not in self._small

    def _add(self, node: fx.Node, role: Role) -> None:
        module, name = self.graph.module(node), str(node.target)
        if isinstance(module, LAYERS):
            counterpart = self._counterpart(name, module)
            self.found.append(_Found(node, module, counterpart, role if counterpart is None else Role.COPIED))
        elif isinstance(module, PaddedIdentity):
            other = self._small.get(name)
            if not isinstance(other, PaddedIdentity) or not module.extra >= other.extra >= min(module.extra, 1):
                raise LimbeckError(f"{name} appends {module.extra} channels of zeros, and the small network has none")
            self._padded[self.graph.sets[node]] = node, module, other
        elif role == Role.IDENTITY and self._inserted(node) and not isinstance(module, (*TWICE_IS_ONCE, NoneType)):
            raise LimbeckError(
                f"{name} is not in the small network, and a {type(module).__name__} does not pass on what it gets, as "
                "a ReLU does after a ReLU"
            )

    def _counterpart(self, name: str, module: Any) -> Any:
        """The small network's layer of that name; None where there is none."""
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
                f"{name} has kernels of {tuple(module.weight.shape[2:])}, in the small network of "
                f"{tuple(other.weight.shape[2:])}"
            )
        if depthwise(other) != depthwise(module):
            raise LimbeckError(f"{name} has {module.groups} groups, in the small network {other.groups}")
        if other.bias is not None and module.bias is None:
            raise LimbeckError(f"{name} has no bias, but in the small network it has one")
        return other

    def _counts(self) -> tuple[dict[int, int], dict[int, int]]:
        """How many channels each set has in the small and in the large network."""
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
            if other is not None:  # a layer may have several features for each channel
                few_in.setdefault(number, other * many_in[number] // many)
        for found in self.found:
            if found.role == Role.IDENTITY:
                before, after = (self.graph.sets[node] for node, _, _ in found.sides())
                few_in.setdefault(before, many_in[before])  # only what enters the network has nothing before it
                if few_in.setdefault(after, few_in[before]) != few_in[before]:
                    raise LimbeckError(
                        f"{found.name} is not in the small network, and cannot pass on {few_in[before]} channels where "
                        f"{few_in[after]} are needed"
                    )
        edges = {self.graph.sets[node] for node in self.graph.edges}
        for number, many, other, name in slots:
            _check_count(name, (many, other), (many_in[number], few_in[number]), fixed=number in edges)
        return few_in, many_in

    def _check_complete(self) -> None:
        names = [found.name for found in self.found]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise LimbeckError(f"{twice[0]} runs more than once in one forward: its channels are not one set")
        used = [name for name, module in self._small.items() if list(module.parameters(recurse=False))]
        missing = [name for name in used if name not in names]
        if missing:
            raise LimbeckError(
                f"the large network has no layer {missing[0]}, but the small one has: both must be of one family, so "
                "that layers which correspond have one name"
            )


def _check_known(name: str, module: Any) -> None:
    if isinstance(module, nn.Conv2d) and module.groups > 1 and not depthwise(module):
        raise LimbeckError(f"{name} is a convolution of {module.groups} groups: allowed are 1, or one a channel")
    if isinstance(module, NORMS) and (module.weight is None or module.running_mean is None):
        raise LimbeckError(f"{name} is a {type(module).__name__} without weights or running statistics")


def _check_count(name: str, own: tuple[int, int | None], each: tuple[int, int], *, fixed: bool) -> None:
    """Raise LimbeckError unless a layer's sizes in both networks fit those of its set of channels."""
    many, few = each
    if fixed and many != few:
        raise LimbeckError(f"{name} is {many} wide, in the small network {few}: inputs and classes must be the same")
    if many < few:
        raise LimbeckError(f"{name} has {many} channels, fewer than the {few} of the small network")
    if own[0] % many or (own[1] is not None and own[0] * few != own[1] * many):
        raise LimbeckError(
            f"{name} is {own[0]} wide for {many} channels, in the small network {own[1]} for {few}: other places or "
            "pieces a channel"
        )
