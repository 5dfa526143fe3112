"""The layers of a network as a table: what can be tapped, and how large it is."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.taps import evaluation_mode


class Layer(NamedTuple):
    """One module of a network."""

    name: str  # as in named_modules()
    kind: str  # the class's name
    shape: tuple[int, ...] | None  # of its output for one sample; None where it is not one tensor, or did not run
    parameters: int  # its own and those of the modules inside it


def layers(network: nn.Module, shape: tuple[int, ...]) -> list[Layer]:
    """Every named module, with the shape of its output from one dry run on two samples of zeros.

    The network is as it was afterwards, its modes and hooks included. A module that runs several times has the shape
    of its last run.

    Args:
        network: anything that takes (N, *shape).
        shape: of one sample.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            shapes[name] = tuple(output.shape[1:])

    handles = [module.register_forward_hook(partial(keep, name)) for name, module in modules.items()]
    first = next(network.parameters(), torch.empty(0))
    try:
        with evaluation_mode([network]), torch.no_grad():
            network(torch.zeros(2, *shape, dtype=first.dtype, device=first.device))
    finally:
        for handle in handles:
            handle.remove()
    return [
        Layer(name, type(module).__name__, shapes.get(name), sum(p.numel() for p in module.parameters()))
        for name, module in modules.items()
    ]
