"""Fuses a frozen network: BatchNorm folded into the layer before it, weights cast once instead of at every step.

Each change is made as a whole and checked by running the network. If the output or a tapped tensor differs, the change
is not made. Call these functions outside a `Taps` block, because a copy of a network has its hooks too.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from limbeck.core import Batch, Tap
from limbeck.taps import Taps
from limbeck.train.copies import ROUNDING, NotCopied, copied, in_64_bits, numeric_check, same_numbers

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
    """A copy of a frozen network that gives the same tensors for less work, and why a change was not made.

    BatchNorm is folded (see `fold`), the weights are laid out as channels_last, and the weights that autocast would
    cast at each step are cast once. Every tapped tensor is that of the network in eval mode up to the precision's
    rounding.

    Args:
        network: left as it is; on any device.
        inputs: (N, ...) a few samples in 32 bits, on the network's device.
        taps: what will be read of it.
        precision: ``32``; or ``bf16`` for a network that will run under autocast to bfloat16, and only there.
        channels_last: lay the weights out for it, where `runs_channels_last` says that the network runs so.

    Returns:
        The copy, in eval mode and without parameter gradients, its modules under the same names; the network itself
        if it cannot be copied. And a reason: how many BatchNorm layers could not be folded because the network could
        not be copied or the check failed, and whether the weights could not be cast; "" if neither happened. A
        BatchNorm that does not meet the conditions of `fold` is not counted.

    Raises:
        LimbeckError: a tap does not exist or has no one value.
    """
    taps = tuple(taps)
    try:
        made, reason = fold(network, inputs, taps)
    except NotCopied as error:
        return network, _not_folded(_norms(network), str(error))
    if channels_last:
        made.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    if precision == "bf16":
        reason = "; ".join(filter(None, (reason, cast(made, inputs, taps))))
    return made, reason


@torch.inference_mode(mode=False)  # autograd does not record under it, whatever is around the call
def fold(network: nn.Module, inputs: Tensor, taps: Iterable[Tap]) -> tuple[nn.Module, str]:
    """A copy in which BatchNorm is folded into the layer before it, and why the check failed; "" if it did not.

    A BatchNorm with running statistics is folded if its input is the output of a convolution or linear layer that
    nothing else uses, both run once in a forward, neither has hooks, and the tensor between them is not tapped. An
    `nn.Identity` takes its place. The autograd graph of the output and the tapped tensors shows what uses a tensor, so
    a branch that is inactive on the samples counts too. A layer that the network runs under ``no_grad`` is not folded.

    The check compares the output and the tapped tensors with the network's, in 64 bits on the CPU, while the tensors
    between the folded layers are scaled by great factors. A use without a gradient, such as ``x.detach()`` or
    ``x > 50``, then changes the output. If a tensor differs by more than rounding, or the network does not run in 64
    bits, nothing is folded.

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
    if _norms(made) == 0:
        return made, ""
    try:
        exact, samples = in_64_bits(made), inputs.cpu().double()
        same = numeric_check(exact, samples, taps, ROUNDING)
        pairs = _pairs(exact, samples, taps)
    except Exception as error:  # the network may be the user's, and raise anything
        return made, _not_folded(_norms(made), f"the network does not run in 64 bits: {error}")
    for norm, layer in pairs.items():
        _fold(exact, layer, norm)
    if pairs and not same(exact):
        return made, _not_folded(len(pairs), "the folded network would give other tensors")
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
    """The norms that can be folded, and the name of the layer before each; see `fold`.

    Hooks record the autograd nodes of the layers and norms in one run of the network. The graph of the output and of
    the tapped tensors shows which nodes use the output of a layer. The weights of the layers then require gradients.

    Args:
        network: a copy in eval mode, on the CPU.
        inputs: (N, ...) a few samples of the network's type.
        taps: what will be read of it.
    """
    nodes = defaultdict[str, list[Node | None]](list)

    def record(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        nodes[name].append(output.grad_fn)

    # a hook may set the weights, as spectral_norm does
    free = {name: one for name, one in network.named_modules() if not (one._forward_hooks or one._forward_pre_hooks)}
    layers = {name: module for name, module in free.items() if type(module) in WEIGHTED}
    norms = {name: module for name, module in free.items() if type(module) in NORMS and module.running_var is not None}
    handles = [module.register_forward_hook(partial(record, name)) for name, module in (layers | norms).items()]
    for layer in layers.values():
        layer.get_parameter("weight").requires_grad_()
    wanted = [Tap("network"), *(tap._replace(source="network") for tap in taps)]
    tapped = Taps({"network": network}, wanted, learns=["network"], to_the_end=True)
    count = torch.arange(len(inputs))
    with same_numbers(inputs.device), torch.enable_grad(), tapped:
        users = _users(tapped.read(Batch(inputs.clone(), count, count, 0)).values())
    for handle in handles:
        handle.remove()
    single = {name: found[0] for name, found in nodes.items() if len(found) == 1}
    after = {node: name for name, node in single.items() if name in norms and node is not None}
    only = {name: users[node][0] for name, node in single.items() if node is not None and len(users[node]) == 1}
    return {after[user]: name for name, user in only.items() if name in layers and user in after}


def _users(tensors: Iterable[Tensor]) -> Mapping[Node, Sequence[Node | None]]:
    """The nodes that use each node in the graph of the tensors, with repetitions; None stands for the tensors."""
    users = defaultdict[Node, list[Node | None]](list)
    ahead: list[tuple[Node | None, Node | None]] = [(None, tensor.grad_fn) for tensor in tensors]
    while ahead:
        user, node = ahead.pop()
        if node is None:
            continue
        if node not in users:
            ahead += [(node, following) for following, _ in node.next_functions]
        users[node].append(user)
    return users


def _fold(network: nn.Module, name: str, norm: str) -> None:
    """Fold a norm into the layer of that name, in place, and scale the tensor between them by `_factors`."""
    layer: Any = network.get_submodule(name)
    after: Any = network.get_submodule(norm)
    statistics = after.running_mean, after.running_var, after.eps, after.weight, after.bias
    layer.weight, layer.bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics)  # linear layers too
    network.set_submodule(norm, nn.Identity())
    layer.register_forward_hook(lambda module, args, output: output * _factors(output))
    network.get_submodule(norm).register_forward_hook(lambda module, args, output: output / _factors(output))


def _factors(like: Tensor) -> Tensor:
    """Alternately 2**30 and -2**30, in the tensor's shape: powers of two, which division undoes exactly."""
    return (torch.arange(like.numel()).reshape(like.shape) % 2 * 2 - 1) * 2.0**30


def _norms(network: nn.Module) -> int:
    return sum(type(module) in NORMS for module in network.modules())


def _not_folded(count: int, why: str) -> str:
    return f"{count} BatchNorm layer{'s' * (count != 1)} could not be folded: {why}" if count else why
