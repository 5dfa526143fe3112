"""The lean form of a frozen network: the same tensors at every tap, for less work.

No step is taken on trust: it is kept only where a run on a few samples shows that the network's output and the tapped
tensors stay as they were. Call all of this outside a `Taps` block, because a copy of a network has its hooks too.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limbeck.core import Tap
from limbeck.taps import version
from limbeck.train.copies import (
    ROUNDING,
    Change,
    NotCopied,
    Values,
    agree,
    close,
    copied,
    freeze,
    in_64_bits,
    keep,
    read,
    same_numbers,
)

# Exact types: a subclass may do more, as timm's BatchNormAct2d applies an activation too.
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Lean:
    """A network's lean form."""

    network: nn.Module  # the copy, in eval mode and without parameter gradients; its modules have the same names
    folded: tuple[str, ...]  # the BatchNorm layers that are part of the layer before them now
    low: tuple[str, ...]  # the layers whose weights are in bfloat16
    reason: str = ""  # why `network` is the network itself and not a copy


def lean(
    network: nn.Module,
    inputs: Tensor,
    taps: Iterable[Tap],
    *,
    precision: Literal["32", "bf16"],
    channels_last: bool,
) -> Lean:
    """The form in which a frozen network is read for the least work.

    BatchNorm is folded, then weights are laid out as channels_last, then those that autocast would cast at each step
    are cast once. Every tapped tensor is that of the network in eval mode up to the precision's rounding. A network
    that cannot be copied is given back as it is.

    Args:
        network: left as it is; on any device.
        inputs: (N, ...) a few samples in 32 bits, on the network's device.
        taps: what will be read of it.
        precision: ``32``; or ``bf16`` for a lean network that will run under autocast to bfloat16, and only there.
        channels_last: lay the weights out for it, where `runs_channels_last` says that the network runs so.

    Raises:
        LimbeckError: a tap does not exist or has no one value.
    """
    wanted = tuple(taps)
    try:
        made, folded = fold(network, inputs, wanted)
    except NotCopied as error:
        return Lean(network, (), (), str(error))
    if channels_last:
        made.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    low = low_precision(made, inputs, wanted) if precision == "bf16" else ()
    return Lean(made, folded, low)


def fold(network: nn.Module, inputs: Tensor, taps: Iterable[Tap]) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy in which each BatchNorm that can be is folded into the layer before it, and the names of those.

    Folded is a BatchNorm with running statistics that is given the very tensor that one convolution or linear layer
    gives and nothing else uses, both run once in a forward, where in 64 bits the network's output and every tapped
    tensor stay as they were up to rounding. An `nn.Identity` takes its place. A layer with hooks or a parametrisation
    stays, and so does one whose output is tapped. Nothing is folded in a network that does not run in 64 bits on the
    CPU.

    Args:
        network: left as it is; on any device, where the copy is too.
        inputs: (N, ...) a few samples in 32 bits, on the network's device.
        taps: what will be read of it.

    Raises:
        NotCopied: the network cannot be copied, or the copy is not like it.
        LimbeckError: a tap does not exist or has no one value.
    """
    wanted = tuple(taps)
    made = freeze(copied(network, inputs, wanted))
    try:
        trial, samples = in_64_bits(made), inputs.cpu().double()
        before = read(trial, samples, wanted)
        found = _pairs(trial, samples)
    except Exception:  # the network may be the user's, and raise anything
        return made, ()
    raw = {(tap.layer, tap.side) for tap in wanted}
    pairs = {norm: layer for norm, layer in found.items() if not raw & {(norm, "input"), (layer, "output")}}
    changes = {norm: _folding(trial, layer, norm) for norm, layer in pairs.items()}
    folded = keep(changes, lambda: agree(before, read(trial, samples, wanted), ROUNDING))
    for norm in folded:
        layer: Any = made.get_submodule(pairs[norm])
        for name, value in trial.get_submodule(pairs[norm]).named_parameters(recurse=False):
            setattr(layer, name, nn.Parameter(value.to(layer.weight), requires_grad=False))
        made.set_submodule(norm, nn.Identity().eval())
    return made, folded


def low_precision(network: nn.Module, inputs: Tensor, taps: Iterable[Tap]) -> tuple[str, ...]:
    """Cast to bfloat16, in place, the weights that autocast would cast at each step, and give their layers' names.

    These are the weights and biases of convolutions and linear layers. All else (norms, embeddings) stays in 32 bits,
    and so does a layer with which the output and the tapped tensors under autocast would not stay bit-identical.

    Args:
        network: in eval mode and frozen, such as `fold` gives; from here on it runs under autocast to bfloat16 alone.
        inputs: (N, ...) a few samples in 32 bits, on the network's device.
        taps: what will be read of it.
    """
    wanted = tuple(taps)

    def run() -> Values:
        with torch.autocast(inputs.device.type, torch.bfloat16):
            return read(network, inputs, wanted)

    before = run()
    changes = {
        name: _casting(module)
        for name, module in network.named_modules()
        if type(module) in WEIGHTED and module.weight.dtype == torch.float32
    }
    return keep(changes, lambda: agree(before, run(), 0))


def runs_channels_last(network: nn.Module, inputs: Tensor, *, learns: bool = False) -> bool:
    """Whether a network of images gives the same in channels_last, so that it may run in it.

    It must run so as it is, and in 64 bits on the CPU its output must stay the same up to rounding. False for inputs
    that are not (N, C, H, W), for a network without `nn.Conv2d`, and where it cannot be told because the network
    cannot be copied, or does not run in 64 bits or on the CPU. The network and the global generators are left as they
    are.

    Args:
        network: on any device.
        inputs: (N, C, H, W) two or more samples in 32 bits, on the network's device.
        learns: the gradients of its parameters must be the same too, and a step in train mode must run.
    """
    if inputs.dim() != 4 or not any(isinstance(module, nn.Conv2d) for module in network.modules()):
        return False
    try:
        trial = copied(network, inputs)
        exact, samples = in_64_bits(trial), inputs.cpu().double()
        trial.to(memory_format=torch.channels_last)
        _outcome(trial, inputs.contiguous(memory_format=torch.channels_last), learns)
        if learns:
            trial.train()  # as training asks it, whose own `train` may keep some modules in eval mode
            _outcome(trial, inputs.contiguous(memory_format=torch.channels_last), learns)
        before = _outcome(exact, samples.contiguous(), learns)
        exact.to(memory_format=torch.channels_last)
        after = _outcome(exact, samples.contiguous(memory_format=torch.channels_last), learns)
    except Exception:  # the network may be the user's, and raise anything
        return False
    return all(close(one, other, ROUNDING) for one, other in zip(before, after, strict=True))


def _outcome(network: nn.Module, inputs: Tensor, learns: bool) -> list[Tensor]:
    """The output; where it learns, also the gradients of its parameters as one row."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad and learns]
    with same_numbers(inputs.device), torch.set_grad_enabled(bool(learning)):
        output: Tensor = network(inputs)
        if not learning:
            return [output]
        found = torch.autograd.grad(output.square().sum(), learning, allow_unused=True)
    return [output.detach(), torch.cat([gradient.flatten() for gradient in found if gradient is not None])]


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class is not typed
    """How many operations of a run take an object, by its id."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = Counter[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count.update({id(leaf) for leaf in tree_leaves((args, kwargs))})
        return func(*args, **(kwargs or {}))


def _pairs(network: nn.Module, inputs: Tensor) -> dict[str, str]:
    """The norms that are given just what a convolution or linear layer gave, with that layer's name; from one run.

    No other operation takes that tensor: with other samples than these few, that might show in what is read.
    """
    uses = _Uses()
    given: dict[str, list[tuple[Tensor, int]]] = {}
    entered: dict[str, list[tuple[Tensor, int]]] = {}

    def gives(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            given.setdefault(name, []).append((output, version(output)))
            uses.count[id(output)] = 0  # which is its own from here on: what had it before is gone

        return hook

    def enters(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: entered.setdefault(name, []).extend((tensor, version(tensor)) for tensor in args)

    handles = []
    for name, module in network.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:  # a hook may set the weights, as spectral_norm does
            continue
        if type(module) in WEIGHTED:
            handles.append(module.register_forward_hook(gives(name)))
        if type(module) in NORMS and module.running_var is not None:
            handles.append(module.register_forward_pre_hook(enters(name)))
    with same_numbers(inputs.device), torch.no_grad(), uses:
        network(inputs)
    for handle in handles:
        handle.remove()
    once = {name: runs[0] for name, runs in given.items() if len(runs) == 1}
    sources = {(id(tensor), version): name for name, (tensor, version) in once.items() if uses.count[id(tensor)] == 1}
    single = {name: (id(runs[0][0]), runs[0][1]) for name, runs in entered.items() if len(runs) == 1}
    return {name: sources[tensor] for name, tensor in single.items() if tensor in sources}


def _folding(network: nn.Module, name: str, norm: str) -> Change:
    def change() -> Callable[[], None]:
        layer: Any = network.get_submodule(name)
        after: Any = network.get_submodule(norm)
        weight, bias = layer.weight, layer.bias
        statistics = after.running_mean, after.running_var, after.eps, after.weight, after.bias
        layer.weight, layer.bias = fuse_conv_bn_weights(weight, bias, *statistics)  # a linear layer's fuse alike
        network.set_submodule(norm, nn.Identity())

        def undo() -> None:
            layer.weight, layer.bias = weight, bias
            network.set_submodule(norm, after)

        return undo

    return change


def _casting(layer: nn.Module) -> Change:
    def change() -> Callable[[], None]:
        wide = dict(layer.named_parameters(recurse=False))
        for name, value in wide.items():
            setattr(layer, name, nn.Parameter(value.bfloat16(), requires_grad=False))

        def undo() -> None:
            for name, value in wide.items():
                setattr(layer, name, value)

        return undo

    return change
