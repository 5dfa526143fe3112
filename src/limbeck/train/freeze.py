"""What learns in a stage, and what is frozen: in eval mode and without gradients."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

from limbeck.core import LimbeckError, Networks, Stage, Tap
from limbeck.taps import check, closed_kind, layer_of, version


def learners(stage: Stage, networks: Networks) -> list[nn.Module]:
    """The modules that a stage's ``learns`` names: networks, or parts of them.

    Raises:
        LimbeckError: there is no such network or layer, or its weights were made under ``torch.inference_mode``.
    """
    found = []
    for name in stage.learns:
        network, _, layer = name.partition(".")
        if network not in networks:
            raise LimbeckError(
                f"stage {stage.name!r}: there is no network {network!r} to learn; there are {', '.join(networks)}"
            )
        check(networks, Tap(network, layer))
        found.append(layer_of(networks[network], layer))
        check_learns(network, found[-1])
    return found


def check_learns(name: str, network: nn.Module) -> None:
    """Raise LimbeckError for a function, and for weights made under `torch.inference_mode`: they get no gradients."""
    kind = closed_kind(network)
    if kind and next(network.parameters(), None) is None:
        raise LimbeckError(f"the {name} is {kind}, which cannot learn: use a method that does not train the {name}")
    if any(tensor.is_inference() for tensor in (*network.parameters(), *network.buffers())):
        raise LimbeckError(
            f"the {name}'s weights were made under torch.inference_mode, so they cannot learn: make it outside of "
            "that, or take copy.deepcopy of it, whose weights can"
        )


def frozen_parts(network: nn.Module) -> tuple[str, ...]:
    """The names of the parts with one or more parameters, all of them with ``requires_grad`` False.

    Parts inside such a part are not named; "" is the whole network.
    """
    found: list[str] = []
    for name, module in network.named_modules():
        held = any(name.startswith(f"{part}.") or not part for part in found)
        parameters = list(module.parameters())
        if parameters and not held and not any(parameter.requires_grad for parameter in parameters):
            found.append(name)
    return tuple(found)


def frozen_modules(stage: Stage, networks: Networks) -> list[nn.Module]:
    """The modules that do not learn in a stage.

    These are all modules outside of what ``learns`` names, and inside it those whose parameters are all frozen
    (`frozen_parts`). Modules without parameters, such as dropout, belong to the part that holds them.
    """
    found = []
    for name, network in networks.items():
        named = [layer for layer in stage.learns if layer.partition(".")[0] == name]
        if name not in named:
            learning = {part for layer in named for part in network.get_submodule(layer.partition(".")[2]).modules()}
            found += [module for module in network.modules() if module not in learning]
        found += [module for part in frozen_parts(network) for module in network.get_submodule(part).modules()]
    return list(dict.fromkeys(found))


@contextmanager
def frozen(modules: Iterable[nn.Module]) -> Iterator[list[nn.Module]]:
    """Inside the block the modules are in eval mode and their parameters get no gradients; gives the modules.

    Afterwards the flags are what they were.
    """
    modes = {module: module.training for module in modules}
    # parameters made under inference_mode get no gradients anyway, and setting their flag to True raises
    parameters = {
        parameter: parameter.requires_grad
        for module in modes
        for parameter in module.parameters(False)
        if not parameter.is_inference()
    }
    for module in modes:
        module.training = False
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield list(modes)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, needed in parameters.items():
            with torch.inference_mode(parameter.is_inference()):  # which inference tensors need
                parameter.requires_grad_(needed)


class Versions:
    """Which tensors networks have, and how often each was written to.

    Writes through ``.data``, and to tensors made under ``torch.inference_mode``, are not counted.

    Attributes:
        numbers: stay equal while no parameter or buffer is replaced or written to, as long as this object lives.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        both = (chain(network.parameters(), network.buffers()) for network in networks)
        self._held = list(chain.from_iterable(both))  # or a new tensor might get the id of a deleted one
        self.numbers = [(id(tensor), version(tensor)) for tensor in self._held]
