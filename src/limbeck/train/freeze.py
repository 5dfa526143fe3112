"""What learns in a stage, and what rests: in eval mode, without gradients, by the fastest way to its tensors."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError, Networks, Outputs, Reader, Stage, Tap
from limbeck.taps import check, layer_of, version
from limbeck.train.engine import Engine
from limbeck.train.readers import Resident


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
    """Raise LimbeckError where a network's weights were made under `torch.inference_mode`: they get no gradients."""
    if any(tensor.is_inference() for tensor in (*network.parameters(), *network.buffers())):
        raise LimbeckError(
            f"the {name}'s weights were made under torch.inference_mode, so they cannot learn: make it outside of "
            "that, or take copy.deepcopy of it, whose weights can"
        )


def frozen_parts(network: nn.Module) -> tuple[str, ...]:
    """The names of the parts all of whose parameters, one or more, have ``requires_grad`` False.

    Of a part and what it holds only the part is named; "" is the whole network.
    """
    found: list[str] = []
    for name, module in network.named_modules():
        held = any(name.startswith(f"{part}.") or not part for part in found)
        parameters = list(module.parameters())
        if parameters and not held and not any(parameter.requires_grad for parameter in parameters):
            found.append(name)
    return tuple(found)


def frozen_modules(stage: Stage, networks: Networks) -> list[nn.Module]:
    """The modules that do not learn.

    Those of whole networks, of the others the parts that are not named, and what is named where all of its parameters
    are frozen (`frozen_parts`). Modules without parameters, such as dropout, belong to the part that holds them.
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
    """Eval mode and no parameter gradients inside the block; afterwards the flags are what they were.

    Gives the modules.
    """
    modes = {module: module.training for module in modules}
    # those made under inference_mode get no gradient as it is, and refuse to be told that they need one
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
            with torch.inference_mode(parameter.is_inference()):  # where alone such a flag can be raised
                parameter.requires_grad_(needed)


def frozen_readers(
    stage: Stage, networks: Networks, few: Tensor, engine: Engine, store: Outputs | None
) -> tuple[Networks, dict[str, Reader]]:
    """The networks to run in a stage, lean copies in place of those that rest, and readers in place of a run.

    Args:
        stage: what is read.
        networks: by name.
        few: inputs to try the lean copies on.
        engine: precision, and whether to compile.
        store: the teacher's tensors; used where it has all that the stage reads.
    """
    reads = list(dict.fromkeys(tap for term in stage.terms.values() for tap in term.reads))
    learning = {name.partition(".")[0] for name in stage.learns}
    quick, readers = dict(networks), dict[str, Reader]()
    for name in [name for name in networks if name not in learning and any(tap.source == name for tap in reads)]:
        taps = [tap for tap in reads if tap.source == name]
        if store is not None and store.taps >= set(taps):
            readers[name] = _from(store if engine.device.type == "cpu" else Resident(store, engine.device))
            continue
        quick[name] = engine.lean(networks[name], few, taps)
        if engine.compile:
            readers[name] = engine.reader(quick[name], taps)
    return quick, readers


class Versions:
    """Which tensors networks have, and how often each was written to; what is written through ``.data`` is not seen.

    Attributes:
        numbers: equal while no parameter or buffer is replaced or written to, and for as long as this object lives;
            what was made under ``torch.inference_mode`` does not count what is written to it.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        both = (chain(network.parameters(), network.buffers()) for network in networks)
        self._held = list(chain.from_iterable(both))  # or a new tensor might get the number of one that is gone
        self.numbers = [(id(tensor), version(tensor)) for tensor in self._held]


def _from(store: Outputs) -> Reader:
    return lambda batch: store.read(batch.index, batch.view)
