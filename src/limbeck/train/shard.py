"""A frozen network that is divided among processes, so that each holds a part of every large weight.

Before a part of the network runs, `torch.distributed.fsdp.fully_shard` gathers its weights, and frees them afterwards.
All processes must therefore run the same parts of the network equally often, in the same order.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from limbeck.core import LimbeckError
from limbeck.taps import evaluation_mode

SHARE = 1 / 8
"""The largest share of a network's weights that is gathered at once, unless a single layer has more."""

Division = Mapping[nn.Module, frozenset[nn.Parameter]]
"""The parts of a network that are gathered one at a time, and the weights of each that are divided."""


def division(network: nn.Module, inputs: Tensor, whole: Collection[nn.Parameter] = ()) -> Division:
    """The parts into which a network can be divided.

    A part is a module that runs in a forward and has at most `SHARE` of the weights, or a single layer. Vectors such as
    biases, weights that two parts share, and those that belong to no part are not divided.

    Args:
        network: left as it is.
        inputs: (N, ...) a few samples on the network's device.
        whole: weights that are not divided.
    """
    ran = set[nn.Module]()
    with ExitStack() as hooks, evaluation_mode([network]), torch.no_grad():
        for module in network.modules():
            hooks.enter_context(module.register_forward_hook(lambda module, inputs, output: ran.add(module)))
        network(inputs)
    most = SHARE * sum(weight.numel() for weight in network.parameters())

    def parts(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            inner = list(parts(child))
            size = sum(weight.numel() for weight in child.parameters() if weight.dim() > 1)
            yield from [child] if size and child in ran and (size <= most or not inner) else inner

    uses = _uses(network)
    kept = {id(weight) for weight in whole}
    found = {
        part: frozenset(
            weight
            for weight, count in _uses(part).items()
            if weight.dim() > 1 and count == uses[weight] and id(weight) not in kept
        )
        for part in parts(network)
    }
    return {part: weights for part, weights in found.items() if weights}


def _uses(module: nn.Module) -> Counter[nn.Parameter]:
    """How many names each weight has."""
    return Counter(weight for _, weight in module.named_parameters(remove_duplicate=False))


def shard(network: nn.Module, inputs: Tensor, divided: Division, device: torch.device) -> None:
    """Move a frozen network to the device, and divide it in place among all processes.

    Args:
        network: on any device.
        inputs: (N, ...) a few samples, on which it is tried.
        divided: of `division`.
        device: of this process.

    Raises:
        LimbeckError: the network cannot be divided, as where it uses a layer's weight outside of the layer.
    """
    from torch.distributed.fsdp import fully_shard  # takes 0.7 s to import

    network.requires_grad_(False)
    whole = set(network.parameters()).difference(*divided.values())
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    try:
        for part in (*divided, network):
            fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
        network.to(device)
        with evaluation_mode([network]), torch.no_grad():
            network(inputs.to(device))
    except (ValueError, RuntimeError) as error:
        if not isinstance(error, (ValueError, NotImplementedError)) and "DTensor" not in str(error):
            raise  # such as a process that has ended, or too little memory
        raise LimbeckError(f"the network cannot be divided among processes: {error}") from error
