"""Copies of networks, and the numeric check: whether two networks give the same tensors on a few samples."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from limbeck.core import Batch, LimbeckError, Tap
from limbeck.taps import dry_run, evaluation_mode, scripted

ROUNDING = 1e-9
"""The greatest difference of two tensors in 64 bits that is rounding, as a share of the greatest value."""

ALIKE = 1e-3
"""The same for a network and its copy in 32 bits, because not every device sums in the same order at each run."""

Values = Mapping[Tap, Tensor]

Thing = TypeVar("Thing")


class NotCopied(LimbeckError):
    """A network that cannot be copied."""


def copied(network: nn.Module, inputs: Tensor, taps: Iterable[Tap] = ()) -> nn.Module:
    """A copy on the same device, in eval mode, that gives what the network gives on a few samples and on others.

    Every module's flag is set, as in training, because a network's own ``train`` or ``eval`` may leave modules out.

    Args:
        network: left as it is.
        inputs: (N, ...) a few samples in 32 bits, on the network's device.
        taps: what is compared besides the output.

    Raises:
        NotCopied: see `copy_of`.
        LimbeckError: a tap does not exist or has no one value.
    """
    made = copy_of(network, inputs, taps=taps)
    for module in made.modules():
        module.training = False
    return made


def copy_of(
    network: nn.Module, inputs: Tensor, *, taps: Iterable[Tap] = (), name: str = "network", otherwise: str = ""
) -> nn.Module:
    """A copy of the network, in the same mode and on the same device, that gives what the network gives in eval mode.

    Its output is a tensor or, where no taps are compared, tensors in a tuple, a mapping or a dataclass. Computed
    tensors that the network keeps (the weight of a pruned or weight-normalised layer, a feature of an earlier forward)
    are copied without what they were computed from.

    Args:
        network: left as it is.
        inputs: (N, ...) a few samples in 32 bits.
        taps: what is compared besides the output.
        name: what errors call the network.
        otherwise: what errors say can be done instead.

    Raises:
        NotCopied: the network cannot be copied; the copy does not run, shares parameters with the network, or gives
            something else, as where the network's hooks keep tensors in the network itself.
        LimbeckError: the network does not run; a tap does not exist or has no one value.
    """
    wanted = tuple(taps)
    values = partial(read, taps=wanted) if wanted else _given
    made = deep_copy(network, {name: network}, otherwise=otherwise)
    own = list(network.parameters())
    if {id(parameter) for parameter in own} & {id(parameter) for parameter in list(made.parameters())}:
        raise NotCopied(f"a copy of the {name} shares parameters with it{otherwise}")
    device = next((parameter.device for parameter in network.parameters()), inputs.device)
    for samples in (inputs.to(device), _others(inputs.to(device))):
        try:
            expected = values(network, samples)
        except LimbeckError:
            raise
        except Exception as error:  # the network may be the user's, and raise anything
            shape, why = tuple(inputs.shape[1:]), f"{type(error).__name__}: {error}"
            raise LimbeckError(f"the {name} does not run on samples of shape {shape}: {why}") from error
        try:
            found = values(made, samples)
        except Exception as error:  # as above
            raise NotCopied(f"a copy of the {name} does not run: {type(error).__name__}: {error}{otherwise}") from error
        if expected.keys() != found.keys() or not agree(expected, found, ALIKE):
            raise NotCopied(f"a copy of the {name} gives something else than the {name}{otherwise}")
    return made


def deep_copy(thing: Thing, networks: Mapping[str, nn.Module], *, otherwise: str = "") -> Thing:
    """`copy.deepcopy` of networks and what holds them; computed tensors are copied as plain numbers.

    Args:
        thing: what to copy.
        networks: those in it, by the names that errors call them.
        otherwise: what errors say can be done instead.

    Raises:
        NotCopied: a part of it cannot be copied; the message names the network and the attribute.
    """
    computed = _computed(networks)
    memo: dict[int, Any] = dict(computed)
    try:
        made = copy.deepcopy(thing, memo)
        for module in (module for network in networks.values() for module in network.modules()):
            if scripted(module) and id(module) in memo:  # its copied parameters have a history
                for own, other in zip(module.parameters(), memo[id(module)].parameters(), strict=True):
                    other.detach_().requires_grad_(own.requires_grad)
        return made
    except Exception as error:  # the network may be the user's, and raise anything
        why = _refusing(networks, computed) or f"the {' or '.join(networks)} cannot be copied"
        raise NotCopied(f"{why}: {type(error).__name__}: {error}{otherwise}") from error


def _computed(networks: Mapping[str, nn.Module]) -> dict[int, Tensor]:
    """Copies of the tensors that deepcopy refuses, by id: those with a history that modules keep."""
    kept = [leaf for network in networks.values() for module in network.modules() for leaf in tree_leaves(vars(module))]
    kept += [
        leaf for one in kept if not isinstance(one, nn.Module) for leaf in tree_leaves(getattr(one, "__dict__", ()))
    ]
    return {id(one): one.detach().clone() for one in kept if isinstance(one, Tensor) and not one.is_leaf}


def _refusing(networks: Mapping[str, nn.Module], computed: Mapping[int, Tensor]) -> str:
    """Which attribute of which network cannot be copied; "" where it is no single one."""
    for name, network in networks.items():
        for layer, module in network.named_modules():
            for attribute, value in vars(module).items():
                try:
                    if attribute != "_modules":
                        copy.deepcopy(value, dict(computed))
                except Exception:  # the caller says what it raises
                    place = f"{layer}.{attribute}" if layer else attribute
                    return f"the {name} cannot be copied, because its {place} is a {type(value).__name__}"
    return ""


def in_64_bits(network: nn.Module) -> nn.Module:
    """A copy in float64 on the CPU: not every device has such numbers, or each memory format of them."""
    return deep_copy(network, {"network": network}).cpu().double()


def read(network: nn.Module, inputs: Tensor, taps: Iterable[Tap]) -> Values:
    """The network's output and its tapped tensors, in eval mode, with the same random numbers in each call.

    Raises:
        LimbeckError: a tap does not exist or has no one value.
    """
    count = torch.arange(len(inputs))
    wanted = [Tap("network"), *(tap._replace(source="network") for tap in taps)]
    with same_numbers(inputs.device):
        return dry_run({"network": network}, wanted, Batch(inputs, count, count, 0))


def _given(network: nn.Module, inputs: Tensor) -> Values:
    """All tensors of the network's output, by their places, as `read` runs it."""
    with same_numbers(inputs.device), torch.no_grad(), evaluation_mode([network]):
        leaves = tree_leaves(network(inputs))
    inside = [
        leaf for one in leaves if not isinstance(one, Tensor) for leaf in tree_leaves(getattr(one, "__dict__", ()))
    ]
    tensors = [one for one in (*leaves, *inside) if isinstance(one, Tensor)]
    return {Tap("output", str(place)): one for place, one in enumerate(tensors)}


@contextmanager
def same_numbers(device: torch.device) -> Iterator[None]:
    """Inside the block random numbers start from the same seed; afterwards the generators are as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed those of all devices
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield


def numeric_check(
    network: nn.Module, inputs: Tensor, taps: Iterable[Tap], tolerance: float
) -> Callable[[nn.Module], bool]:
    """A function that says whether a network gives the tensors that this one gives now, in eval mode.

    Compared are the output and the tapped tensors, see `close`, on the samples and on others of the same kind. A
    network that does not run does not give them.

    Args:
        network: run here, on both.
        inputs: (N, ...) a few samples, on the network's device.
        taps: what is compared besides the output.
        tolerance: as in `close`.

    Raises:
        LimbeckError: a tap does not exist or has no one value.
    """
    taps = tuple(taps)
    expected = [(samples, read(network, samples, taps)) for samples in (inputs, _others(inputs))]

    def same(other: nn.Module) -> bool:
        try:
            return all(agree(values, read(other, samples, taps), tolerance) for samples, values in expected)
        except Exception:  # the network may be the user's, and miss what a change took away
            return False

    return same


def agree(before: Values, after: Values, tolerance: float) -> bool:
    """Whether all tensors are `close`."""
    return all(close(before[tap], after[tap], tolerance) for tap in before)


def close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two tensors differ nowhere by more than a share of the greatest value; NaN differs from everything."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    one, other = one.cpu().double(), other.cpu().double()
    return one.numel() == 0 or bool((one - other).abs().max() <= tolerance * one.abs().max())


def _others(inputs: Tensor) -> Tensor:
    """Other samples of the same kind: in reversed order or, where that is the same, flipped in all dimensions."""
    swapped = inputs.flip(0)
    return inputs.flip(tuple(range(inputs.dim()))) if torch.equal(swapped, inputs) else swapped
