"""Whether a change of a frozen network changes what it gives: tried on a few samples, not taken on trust."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from limbeck.core import Batch, LimbeckError, Tap
from limbeck.taps import dry_run

ROUNDING = 1e-9
"""The greatest difference of two tensors in 64 bits that is rounding, as a share of the greatest value."""

ALIKE = 1e-3
"""The same for a network and its copy where they run, as not every device sums in the same order at each run."""

Change = Callable[[], Callable[[], None]]
"""Makes a change of a network and gives what takes it back."""

Values = Mapping[Tap, Tensor]


class NotCopied(LimbeckError):
    """A network that cannot be copied."""


def copied(network: nn.Module, inputs: Tensor, taps: Iterable[Tap] = ()) -> nn.Module:
    """A copy on the same device, in eval mode, that gives what the network gives: on the samples, and on others.

    Eval mode is each module's flag, as in training: a network's own ``train`` or ``eval`` may leave some modules out.

    Args:
        network: left as it is.
        inputs: (N, ...) a few samples in 32 bits, on the network's device.
        taps: what is compared besides the output.

    Raises:
        NotCopied: the network refuses, as one with the old `weight_norm` does; or the copy fails or gives something
            else, as that of a network does whose hooks keep tensors in the network itself.
        LimbeckError: a tap does not exist or has no one value.
    """
    wanted = tuple(taps)
    try:
        made = copy.deepcopy(network)
    except Exception as error:  # the network may be the user's, and raise anything
        raise NotCopied(f"the network cannot be copied: {type(error).__name__}: {error}") from error
    for module in made.modules():
        module.training = False
    for samples in (inputs, _others(inputs)):
        expected = read(network, samples, wanted)
        try:
            found = read(made, samples, wanted)
        except Exception as error:  # as above
            raise NotCopied(f"a copy of the network does not run: {type(error).__name__}: {error}") from error
        if not agree(expected, found, ALIKE):
            raise NotCopied("a copy of the network gives something else than the network")
    return made


def in_64_bits(network: nn.Module) -> nn.Module:
    """A copy in float64 on the CPU: not every device has such numbers, and not every one has each layout of them."""
    return copy.deepcopy(network).cpu().double()


def read(network: nn.Module, inputs: Tensor, taps: Iterable[Tap]) -> Values:
    """The network's output and its tapped tensors, in eval mode, with the same random numbers at each call.

    Raises:
        LimbeckError: a tap does not exist or has no one value.
    """
    count = torch.arange(len(inputs))
    wanted = [Tap("network"), *(tap._replace(source="network") for tap in taps)]
    with same_numbers(inputs.device):
        return dry_run({"network": network}, wanted, Batch(inputs, count, count, 0))


@contextmanager
def same_numbers(device: torch.device) -> Iterator[None]:
    """The same random numbers in every such block, and the generators afterwards as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed those of all devices
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield


def agree(before: Values, after: Values, tolerance: float) -> bool:
    """Whether all tensors are `close`."""
    return all(close(before[tap], after[tap], tolerance) for tap in before)


def close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two tensors differ nowhere by more than a share of the greatest value; NaN differs from all."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    one, other = one.cpu().double(), other.cpu().double()
    return one.numel() == 0 or bool((one - other).abs().max() <= tolerance * one.abs().max())


def keep(changes: Mapping[str, Change], holds: Callable[[], bool]) -> tuple[str, ...]:
    """Make the changes after which ``holds``, and give their names.

    All are tried at once; where that fails, one after the other, and each that fails is taken back.
    """

    def good() -> bool:
        try:
            return holds()
        except Exception:  # the network may be the user's, and miss what a change took away
            return False

    undone = [change() for change in changes.values()]
    if good():
        return tuple(changes)
    for undo in reversed(undone):
        undo()
    kept = []
    for name, change in changes.items():
        undo = change()
        if good():
            kept.append(name)
        else:
            undo()
    return tuple(kept)


def _others(inputs: Tensor) -> Tensor:
    """Other samples of the same kind: in the opposite order or, where that is the same, each turned round too."""
    swapped = inputs.flip(0)
    return inputs.flip(tuple(range(inputs.dim()))) if torch.equal(swapped, inputs) else swapped
