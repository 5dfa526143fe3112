"""List the layers of a network with their output shapes and parameter counts."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.taps import evaluation_mode


class Layer(NamedTuple):
    """One module of a network."""

    name: str  # as in named_modules()
    kind: str  # the name of its class
    shape: tuple[int, ...] | None  # its output for one sample; None if that is not one tensor or the module did not run
    parameters: int  # the number of its parameters, submodules included


def layers(network: nn.Module, shape: tuple[int, ...]) -> list[Layer]:
    """Return every named module with the shape of its output in one forward of two samples of zeros.

    The modes and hooks of the network are restored. A module that runs several times has the shape of its last run.
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
