"""A larger network that starts as the function which a smaller, trained one is.

Net2Net: Chen, Goodfellow, Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer" (2016), arXiv:1511.05641.
Which layers share channels is read off the large network's graph (`limbeck.models.channels`), and that the two networks
agree is checked at the end.
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
    """Initialise a large network in place so that, in eval mode, it gives what the small one gives.

    Layers are matched by name. One with more channels is `widened`; tensors that are added share their copies. One that
    the small network lacks is inserted as an identity (`deepened`), with BatchNorm that undoes its own normalisation;
    of a residual block that it lacks, the last layer of the branch is zero and the others stay as they are.

    So can be made, within a family of the zoo: ``mlp``, the CIFAR ResNets and FSP's, the ResNets of basic blocks with
    four stages, ``vgg8`` to ``vgg13``, wide ResNets (from a factor of 1 only deeper: the first block would need a
    projection, which reads what is activated), and wider maxout networks of equal depth.

    In training mode the two agree but for dropout, and for inserted BatchNorm where a batch is unlike ``inputs``.

    Args:
        small: the trained network.
        large: freshly built, for as many classes.
        inputs: (N, ...), a batch of the training data, from which inserted BatchNorm takes its statistics, and on which
            the two networks are compared. Each network gets it where it is.
        noise: what is added at the end to the weights of all but the first copy of a channel is drawn from N(0, s^2)
            with s = noise * standard deviation of the layer's weights. Without any, copies get equal gradients and
            stay equal, unless dropout or an inserted block tells them apart.
        seed: of the choice of copies, and of the noise.

    Raises:
        LimbeckError: a layer has fewer channels than in the small network or is of another kind; a layer cannot be
            inserted; an operation is unknown; or the networks do not agree. Then the large network is as it was.
    """
    if not 0 <= noise < math.inf:
        raise LimbeckError(f"got noise {noise}, allowed are 0 and more")
    generator = torch.Generator().manual_seed(seed)
    with _restored_on_error(large), evaluation_mode((small, large)), torch.no_grad():
        layers = matched(small, large, lambda few, many: replicated(few, many, generator))
        for layer in layers:
            _initialise(layer)
        _measure(large, layers, inputs.to(_device(large)))
        wanted, given = (network(inputs.to(_device(network))).cpu() for network in (small, large))
        _check_same(wanted, given, [layer.name for layer in layers if layer.role == Role.IDENTITY])
        if noise:
            for layer in layers:
                _perturb(layer, noise, generator)


def replicated(small: int, large: int, generator: torch.Generator) -> Tensor:
    """Which of ``small`` channels each of ``large`` is: (large,) int64, the paper's g, from 0.

    The first ``small`` are themselves, the others are drawn uniformly.
    """
    drawn = torch.randint(small, (large - small,), generator=generator)
    return torch.cat((torch.arange(small), drawn))


def widened(weight: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """A layer's weights between channels that are copies: U[j, i] = W[outside(j), inside(i)] / copies of inside(i).

    Net2WiderNet of the paper, for both sides at once.

    Args:
        weight: W, (small outputs, small inputs, ...) of a linear layer or a convolution.
        inside: (inputs,) int64, which input of the small layer each one is.
        outside: (outputs,) int64, the same for outputs.
    """
    inside, outside = inside.to(weight.device), outside.to(weight.device)
    copies = torch.bincount(inside, minlength=weight.shape[1])[inside].to(weight.dtype)
    return weight[outside][:, inside] / copies.reshape(1, -1, *[1] * (weight.dim() - 2))


def deepened(count: int, kernel: Sequence[int] = (), *, pieces: int = 1) -> Tensor:
    """The weights of a layer that passes on what it gets, (count * pieces, count, *kernel).

    A convolution, of odd sizes, has ones in the centre of its kernels. Before a maxout, all pieces are equal.
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
    elif layer.role == Role.IDENTITY and not norm:  # a norm is set once it sees a batch
        module.weight.copy_(_identity(layer))
        _set_bias(module, None)
    elif layer.role == Role.COPIED:
        alone = norm or depthwise(module)
        weight = other.weight[layer.outside] if alone else widened(other.weight, layer.inside, layer.outside)
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
    """The weights of an inserted linear layer or convolution.

    Raises:
        LimbeckError: it can be no identity.
    """
    module = layer.module
    kernel = tuple(module.weight.shape[2:])
    if isinstance(module, nn.Conv2d):
        same = tuple(step * (size - 1) // 2 for step, size in zip(module.dilation, kernel, strict=True))
        if max(module.stride) > 1 or not all(size % 2 for size in kernel) or module.padding not in (same, "same"):
            raise LimbeckError(f"{layer.name} is not in the small network, and does not keep the size of its map")
    if depthwise(module):
        return deepened(1, kernel).expand_as(module.weight)
    few, given = layer.few
    if given % few:
        raise LimbeckError(f"{layer.name} is not in the small network, and makes {given} features of {few}")
    weight = widened(deepened(few, kernel, pieces=given // few), layer.inside, layer.outside)
    bound = module.max_norm if isinstance(module, MaxNormConv2d | MaxNormLinear) else math.inf
    if weight.flatten(1).norm(dim=1).max() > bound:
        raise LimbeckError(f"{layer.name} is not in the small network, and bounds the norms of its weights by {bound}")
    return weight


def _measure(large: nn.Module, layers: Sequence[Layer], inputs: Tensor) -> None:
    """Give inserted norms the statistics of what they see in training mode, which they then undo in both modes.

    Raises:
        LimbeckError: there is a norm to insert, and one sample to take its statistics from.
    """
    norms = [layer for layer in layers if isinstance(layer.module, NORMS)]
    inserted = [layer for layer in norms if layer.role != Role.COPIED]
    if inserted and len(inputs) < 2:
        raise LimbeckError(f"{inserted[0].name} is not in the small network: its statistics need 2 samples or more")

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
    """Training mode inside the block; afterwards the running statistics are as they were."""
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    norm.training = True
    try:
        yield
    finally:
        norm.training = False
        for name, buffer in norm.named_buffers():
            buffer.copy_(before[name])


def _perturb(layer: Layer, noise: float, generator: torch.Generator) -> None:
    """Add noise to what makes every channel that is a copy, but for the first of each."""
    if isinstance(layer.module, NORMS) or layer.role not in (Role.COPIED, Role.IDENTITY):
        return
    place = torch.arange(len(layer.outside))
    first = torch.full_like(place, len(place)).scatter_reduce_(0, layer.outside, place, "amin")
    copies = place[first[layer.outside] != place]
    weight = layer.module.weight
    drawn = torch.randn(len(copies), *weight.shape[1:], generator=generator).to(weight)
    weight[copies.to(weight.device)] += noise * weight.std(correction=0) * drawn


def _check_same(wanted: Tensor, given: Tensor, inserted: Sequence[str]) -> None:
    if wanted.shape != given.shape:
        raise LimbeckError(f"the large network gives {tuple(given.shape)}, the small one {tuple(wanted.shape)}")
    apart, scale = (wanted - given).abs().max().item(), wanted.abs().max().item()
    if not apart <= _TOLERANCE * scale:
        passing = f", perhaps because of what was inserted: {', '.join(inserted)}" if inserted else ""
        raise LimbeckError(
            f"the large network cannot be made to give what the small one gives: they are {apart:.2g} apart where the "
            f"largest output is {scale:.2g}{passing}"
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
