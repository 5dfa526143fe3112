"""Initialise a large network so that it computes the same function as a small, trained network.

Net2Net: Chen, Goodfellow, Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer" (2016), arXiv:1511.05641.
The graph of the large network shows which layers share channels (`limbeck.models.channels`). At the end, the outputs
of the two networks are compared.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError
from limbeck.models.channels import Layer, Role, matched
from limbeck.models.graph import NORMS, depthwise
from limbeck.models.maxout import MaxNormConv2d
from limbeck.models.mlp import MaxNormLinear
from limbeck.taps import evaluation_mode

_TOLERANCE = 1e-4


def net2net(small: nn.Module, large: nn.Module, inputs: Tensor, *, noise: float = 0.0, seed: int = 0) -> None:
    """Initialise a large network in place so that, in eval mode, its outputs equal those of a small network.

    Layers are matched by name. A layer with more channels is `widened`; tensors that are added share their copies. A
    layer that the small network lacks becomes an identity (`deepened`); inserted BatchNorm undoes its normalisation. In
    an inserted residual block, the last layer of the branch is zero and the others keep their initial weights.

    Supported within a family of the zoo: ``mlp``, the CIFAR ResNets and those of FSP, the ResNets of basic blocks with
    four stages, ``vgg8`` to ``vgg13``, wide ResNets, and wider maxout networks of equal depth. Wide ResNets of factor 1
    can only be made deeper: a wider first block would need a projection, which reads the activated input.

    In training mode the outputs differ by dropout, and by inserted BatchNorm if a batch differs from ``inputs``.

    Args:
        small: the trained network.
        large: a freshly built network for the same number of classes.
        inputs: (N, ...), a batch of the training data. Inserted BatchNorm takes its statistics from it, and the two
            networks are compared on it. It is moved to the device of each network.
        noise: at the end, noise from N(0, s^2) with s = noise * standard deviation of the layer's weights is added to
            the weights of all copies of a channel except the first. Without noise, copies receive equal gradients and
            stay equal, unless dropout or an inserted block makes them differ.
        seed: seed of the choice of copies and of the noise.

    Raises:
        LimbeckError: a layer has fewer channels than in the small network or is of another kind; a layer cannot be
            inserted; an operation is not supported; or the outputs differ. The large network is then unchanged.
    """
    generator = torch.Generator().manual_seed(seed)
    with _restored_on_error(large), evaluation_mode((small, large)), torch.no_grad():
        layers = matched(small, large, lambda few, many: replicated(few, many, generator))
        for layer in layers:
            _initialise(layer)
        _measure(large, layers, inputs.to(_device(large)))
        expected, output = (network(inputs.to(_device(network))).cpu() for network in (small, large))
        _check_same(expected, output, [layer.name for layer in layers if layer.role == Role.IDENTITY])
        if noise:
            for layer in layers:
                _perturb(layer, noise, generator)


def replicated(small: int, large: int, generator: torch.Generator) -> Tensor:
    """Return the index of the small network's channel that each channel copies: (large,) int64, the paper's g from 0.

    The first ``small`` channels are the identity; the others are drawn uniformly.
    """
    drawn = torch.randint(small, (large - small,), generator=generator)
    return torch.cat((torch.arange(small), drawn))


def widened(weight: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """Return the weights of a widened layer: U[j, i] = W[outside(j), inside(i)] / number of copies of inside(i).

    This is Net2WiderNet of the paper, for the inputs and outputs at once.

    Args:
        weight: W, (small outputs, small inputs, ...) of a linear layer or a convolution.
        inside: (inputs,) int64, the input of the small layer that each input copies.
        outside: (outputs,) int64, the same for the outputs.
    """
    inside, outside = inside.to(weight.device), outside.to(weight.device)
    copies = torch.bincount(inside, minlength=weight.shape[1])[inside].to(weight.dtype)
    return weight[outside][:, inside] / copies.reshape(1, -1, *[1] * (weight.dim() - 2))


def deepened(count: int, kernel: Sequence[int] = (), *, pieces: int = 1) -> Tensor:
    """Return the weights of an identity layer, (count * pieces, count, *kernel).

    A convolution of odd kernel sizes has ones in the centre of its kernels. Before a maxout, all pieces are equal.
    """
    weight = torch.zeros(count * pieces, count, math.prod(kernel))
    weight[:, :, math.prod(kernel) // 2] = torch.eye(count).repeat_interleave(pieces, 0)
    return weight.reshape(count * pieces, count, *kernel)


def _initialise(layer: Layer) -> None:
    module, other = layer.module, layer.counterpart
    norm = isinstance(module, NORMS)
    if layer.role == Role.ZERO:
        nn.init.zeros_(module.weight)
        _set_bias(module, None)
    elif layer.role == Role.IDENTITY and not norm:  # `_measure` sets the norms
        module.weight.copy_(_identity(layer))
        _set_bias(module, None)
    elif layer.role == Role.COPIED:
        channelwise = norm or depthwise(module)
        weight = other.weight[layer.outside] if channelwise else widened(other.weight, layer.inside, layer.outside)
        module.weight.copy_(weight)
        _set_bias(module, None if other.bias is None else other.bias[layer.outside])
    if layer.role == Role.COPIED and norm:
        module.running_mean.copy_(other.running_mean[layer.outside])
        module.running_var.copy_(other.running_var[layer.outside])
        module.num_batches_tracked.copy_(other.num_batches_tracked)


def _set_bias(module: Any, value: Tensor | None) -> None:
    if module.bias is not None:
        module.bias.copy_(torch.zeros_like(module.bias) if value is None else value)


def _identity(layer: Layer) -> Tensor:
    """Return the weights of an inserted linear layer or convolution.

    Raises:
        LimbeckError: the layer cannot be an identity.
    """
    module = layer.module
    kernel = tuple(module.weight.shape[2:])
    if isinstance(module, nn.Conv2d):
        same = tuple(step * (size - 1) // 2 for step, size in zip(module.dilation, kernel, strict=True))
        if max(module.stride) > 1 or not all(size % 2 for size in kernel) or module.padding not in (same, "same"):
            raise LimbeckError(
                f"{layer.name} is not in the small network and cannot be an identity: it resizes the map"
            )
    if depthwise(module):
        return deepened(1, kernel).expand_as(module.weight)
    inputs, outputs = int(layer.inside.max()) + 1, int(layer.outside.max()) + 1  # of an identity in its place
    if outputs % inputs:
        raise LimbeckError(f"{layer.name} is not in the small network: no identity maps {inputs} features to {outputs}")
    weight = widened(deepened(inputs, kernel, pieces=outputs // inputs), layer.inside, layer.outside)
    bound = module.max_norm if isinstance(module, MaxNormConv2d | MaxNormLinear) else math.inf
    if weight.flatten(1).norm(dim=1).max() > bound:
        raise LimbeckError(f"{layer.name} is not in the small network: an identity needs a max_norm above {bound}")
    return weight


def _measure(large: nn.Module, layers: Sequence[Layer], inputs: Tensor) -> None:
    """Set the statistics of inserted norms from their inputs in training mode, and their weights to undo the norm.

    Raises:
        LimbeckError: there is an inserted norm, and the batch has less than 2 samples.
    """
    norms = [layer for layer in layers if isinstance(layer.module, NORMS)]
    inserted = [layer for layer in norms if layer.role != Role.COPIED]
    if inserted and len(inputs) < 2:
        raise LimbeckError(f"{inserted[0].name} is not in the small network: its statistics need at least 2 samples")

    def take(layer: Layer) -> Any:
        def hook(module: Any, entered: tuple[Tensor, ...]) -> None:
            variance, mean = torch.var_mean(entered[0], [0, *range(2, entered[0].dim())], correction=0)
            module.running_mean.copy_(mean)
            module.running_var.copy_(variance)
            if layer.role == Role.IDENTITY:
                module.weight.copy_((variance + module.eps).sqrt())
                module.bias.copy_(mean)

        return hook

    with ExitStack() as stack:
        for layer in inserted:
            stack.callback(layer.module.register_forward_pre_hook(take(layer)).remove)
        for layer in norms:
            if layer.role == Role.COPIED:
                stack.enter_context(_training(layer.module))
        if inserted:
            large(inputs)


@contextmanager
def _training(norm: Any) -> Iterator[None]:
    """Set training mode inside the block, and restore the running statistics afterwards."""
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    norm.training = True
    try:
        yield
    finally:
        norm.training = False
        for name, buffer in norm.named_buffers():
            buffer.copy_(before[name])


def _perturb(layer: Layer, noise: float, generator: torch.Generator) -> None:
    """Add noise to the weights of all copies of a channel except the first."""
    if isinstance(layer.module, NORMS) or not layer.matters:
        return
    place = torch.arange(len(layer.outside))
    first = torch.full_like(place, len(place)).scatter_reduce_(0, layer.outside, place, "amin")
    copies = place[first[layer.outside] != place]
    weight = layer.module.weight
    drawn = torch.randn(len(copies), *weight.shape[1:], generator=generator).to(weight)
    weight[copies.to(weight.device)] += noise * weight.std(correction=0) * drawn


def _check_same(expected: Tensor, output: Tensor, inserted: Sequence[str]) -> None:
    if expected.shape != output.shape:
        raise LimbeckError(f"the large network returns {tuple(output.shape)}, the small one {tuple(expected.shape)}")
    difference, scale = (expected - output).abs().max().item(), expected.abs().max().item()
    if not difference <= _TOLERANCE * scale:
        hint = f"; the inserted layers may be the cause: {', '.join(inserted)}" if inserted else ""
        raise LimbeckError(
            f"the large network cannot be initialised to equal the small one: the outputs differ by {difference:.2g}, "
            f"and the largest output is {scale:.2g}{hint}"
        )


@contextmanager
def _restored_on_error(network: nn.Module) -> Iterator[None]:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with ExitStack() as stack:
        stack.callback(network.load_state_dict, before)
        yield
        stack.pop_all()


def _device(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
