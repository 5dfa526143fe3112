"""Fuses a frozen network: BatchNorm folded into the layer before it, weights cast once instead of at every step.

Each change is made as a whole and checked by running the network: where the output or a tapped tensor differs, the
change is not made. Call these functions outside a `Taps` block, because a copy of a network has its hooks too.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from limbeck.core import Tap
from limbeck.taps import version
from limbeck.train.copies import ROUNDING, NotCopied, copied, in_64_bits, numeric_check, read

# Exact types: a subclass may do more, as timm's BatchNormAct2d applies an activation too.
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fuse(
    network: nn.Module,
    inputs: Tensor,
    taps: Iterable[Tap],
    *,
    precision: Literal["32", "bf16"],
    channels_last: bool,
) -> tuple[nn.Module, str]:
    """A copy of a frozen network that gives the same tensors for less work, and what could not be done.

    BatchNorm is folded, the weights are laid out as channels_last, and those that autocast would cast at each step are
    cast once. Every tapped tensor is that of the network in eval mode up to the precision's rounding.

    Args:
        network: left as it is; on any device.
        inputs: (N, ...) a few samples in 32 bits, on the network's device.
        taps: what will be read of it.
        precision: ``32``; or ``bf16`` for a network that will run under autocast to bfloat16, and only there.
        channels_last: lay the weights out for it, where `runs_channels_last` says that the network runs so.

    Returns:
        The copy, in eval mode and without parameter gradients, its modules under the same names; the network itself
        where it cannot be copied. And why it is not fused in full; "" where it is.

    Raises:
        LimbeckError: a tap does not exist or has no one value.
    """
    taps = tuple(taps)
    try:
        made, reason = fold(network, inputs, taps)
    except NotCopied as error:
        return network, str(error)
    if channels_last:
        made.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    if precision == "bf16":
        reason = "; ".join(filter(None, (reason, cast(made, inputs, taps))))
    return made, reason


def fold(network: nn.Module, inputs: Tensor, taps: Iterable[Tap]) -> tuple[nn.Module, str]:
    """A copy in which each BatchNorm that can be is folded into the layer before it, and why none is; "" otherwise.

    A BatchNorm with running statistics is folded where its input is the very tensor that a convolution or linear layer
    gives, both run once in a forward, neither has hooks, and that tensor is not tapped. An `nn.Identity` takes its
    place. The output and the tapped tensors are compared with the network's in 64 bits on the CPU; where they differ by
    more than rounding, nothing is folded. A use of the tensor between the layers that changes nothing on the compared
    samples is not found.

    Args:
        network: left as it is; on any device, where the copy is too.
        inputs: (N, ...) a few samples in 32 bits, on the network's device.
        taps: what will be read of it.

    Raises:
        NotCopied: the network cannot be copied, or the copy gives something else.
        LimbeckError: a tap does not exist or has no one value.
    """
    taps = tuple(taps)
    made = copied(network, inputs, taps)
    for parameter in made.parameters():  # one by one, which TorchScript needs
        parameter.requires_grad_(False)
    if not any(type(module) in NORMS for module in made.modules()):
        return made, ""
    try:
        exact, samples = in_64_bits(made), inputs.cpu().double()
        same = numeric_check(exact, samples, taps, ROUNDING)
        pairs = _pairs(exact, samples, taps)
    except Exception as error:  # the network may be the user's, and raise anything
        return made, f"BatchNorm cannot be folded, because the network does not run in 64 bits: {error}"
    for norm, layer in pairs.items():
        _fold(exact, layer, norm)
    if pairs and not same(exact):
        return made, "BatchNorm cannot be folded, because the network would give other tensors"
    for norm, layer in pairs.items():
        weighted: Any = made.get_submodule(layer)
        for name, value in exact.get_submodule(layer).named_parameters(recurse=False):
            setattr(weighted, name, nn.Parameter(value.to(weighted.weight), requires_grad=False))
        made.set_submodule(norm, nn.Identity().eval())
    return made, ""


def cast(network: nn.Module, inputs: Tensor, taps: Iterable[Tap]) -> str:
    """Cast to bfloat16, in place, the weights that autocast would cast at each step, and give why not; "" where done.

    These are the weights and biases of convolutions and linear layers; all else (norms, embeddings) stays in 32 bits.
    Where the output or a tapped tensor under autocast would not stay bit-identical, all weights stay in 32 bits.

    Args:
        network: in eval mode and frozen, such as `fold` gives; from here on it runs under autocast to bfloat16 alone.
        inputs: (N, ...) a few samples in 32 bits, on the network's device.
        taps: what will be read of it.
    """
    layers = [module for module in network.modules() if type(module) in WEIGHTED]
    wide = [
        (layer, name, value)
        for layer in layers
        for name, value in layer.named_parameters(recurse=False)
        if value.dtype == torch.float32
    ]
    with torch.autocast(inputs.device.type, torch.bfloat16):
        same = numeric_check(network, inputs, tuple(taps), 0.0)
        for layer, name, value in wide:
            setattr(layer, name, nn.Parameter(value.bfloat16(), requires_grad=False))
        if same(network):
            return ""
    for layer, name, value in wide:
        setattr(layer, name, value)
    return "weights cannot be cast to bfloat16 once, because the network would give other tensors"


def _pairs(network: nn.Module, inputs: Tensor, taps: tuple[Tap, ...]) -> dict[str, str]:
    """The norms that are given the very tensor that a convolution or linear layer gave, and that layer's name.

    From one run. Both run once in it, neither has hooks, and the tensor between them is not tapped.
    """
    given = defaultdict[str, list[tuple[Tensor, int]]](list)
    entered = defaultdict[str, list[tuple[Tensor, int]]](list)
    names = {module: name for name, module in network.named_modules()}

    def gives(module: nn.Module, args: Any, output: Tensor) -> None:
        given[names[module]].append((output, version(output)))

    def enters(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        entered[names[module]].extend((tensor, version(tensor)) for tensor in args)

    handles = []
    for module in names:
        if module._forward_hooks or module._forward_pre_hooks:  # a hook may set the weights, as spectral_norm does
            continue
        if type(module) in WEIGHTED:
            handles.append(module.register_forward_hook(gives))
        if type(module) in NORMS and module.running_var is not None:
            handles.append(module.register_forward_pre_hook(enters))
    tapped = read(network, inputs, taps)
    for handle in handles:
        handle.remove()
    once = {name: runs[0] for name, runs in given.items() if len(runs) == 1}
    between = {id(tensor) for tensor in tapped.values()}
    sources = {(id(tensor), count): name for name, (tensor, count) in once.items() if id(tensor) not in between}
    single = {name: (id(runs[0][0]), runs[0][1]) for name, runs in entered.items() if len(runs) == 1}
    return {norm: sources[tensor] for norm, tensor in single.items() if tensor in sources}


def _fold(network: nn.Module, name: str, norm: str) -> None:
    """Fold a norm into the layer of that name, in place."""
    layer: Any = network.get_submodule(name)
    after: Any = network.get_submodule(norm)
    statistics = after.running_mean, after.running_var, after.eps, after.weight, after.bias
    layer.weight, layer.bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics)  # linear layers too
    network.set_submodule(norm, nn.Identity())
