"""Which networks run in channels_last, and the layout of what learns."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck.train.copies import ROUNDING, close, copied, in_64_bits, same_numbers


def runs_channels_last(network: nn.Module, inputs: Tensor, *, learns: bool = False) -> bool:
    """Whether a network of images gives the same in channels_last, so that it may run in it.

    It must run so as it is, and in 64 bits on the CPU its output must stay the same up to rounding. False for inputs
    that are not (N, C, H, W), for a network without `nn.Conv2d`, and for one that cannot be checked because it cannot
    be copied, or does not run in 64 bits on the CPU. The network and the global generators are left as they are.

    Args:
        network: on any device.
        inputs: (N, C, H, W) two or more samples in 32 bits, on the network's device.
        learns: the gradients of its parameters must be the same too, and a step in train mode must run.
    """
    if inputs.dim() != 4 or not any(isinstance(module, nn.Conv2d) for module in network.modules()):
        return False
    laid = inputs.contiguous(memory_format=torch.channels_last)
    try:
        made = copied(network, inputs)
        exact, samples = in_64_bits(made), inputs.cpu().double()
        made.to(memory_format=torch.channels_last)
        _outcome(made, laid, learns)
        if learns:
            made.train()  # its own method, as training calls it, which may keep some modules in eval mode
            _outcome(made, laid, learns)
        before = _outcome(exact, samples.contiguous(), learns)
        exact.to(memory_format=torch.channels_last)
        after = _outcome(exact, samples.contiguous(memory_format=torch.channels_last), learns)
    except Exception:  # the network may be the user's, and raise anything
        return False
    return all(close(one, other, ROUNDING) for one, other in zip(before, after, strict=True))


@contextmanager
def channels_last(networks: Iterable[nn.Module], inputs: Tensor) -> Iterator[None]:
    """Inside the block, the weights of networks that learn are in channels_last where the networks run in it.

    Args:
        networks: those that learn; one that is in channels_last already stays so after the block.
        inputs: (N, ...) two or more samples in 32 bits, on the networks' device.
    """
    others = [network for network in networks if not _is_channels_last(network)]
    moved = [network for network in others if runs_channels_last(network, inputs, learns=True)]
    for network in moved:
        network.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for network in moved:
            network.to(memory_format=torch.contiguous_format)


def match_parameters(optimizer: Optimizer) -> None:
    """Give a restored optimizer's tensors the memory format of their parameters.

    Fused steps on a CPU go through memory in order: where the momentum has another format than its weight, as after a
    checkpoint of another machine, they would pair the wrong numbers without an error.
    """
    for parameter, held in optimizer.state.items():
        for name, value in held.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                held[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _is_channels_last(network: nn.Module) -> bool:
    weights = [weight for weight in network.parameters() if weight.dim() == 4 and not weight.is_contiguous()]
    return any(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def _outcome(network: nn.Module, inputs: Tensor, learns: bool) -> list[Tensor]:
    """The output; where it learns, also the gradients of its parameters as one row."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad and learns]
    with same_numbers(inputs.device), torch.set_grad_enabled(bool(learning)):
        output: Tensor = network(inputs)
        if not learning:
            return [output]
        found = torch.autograd.grad(output.square().sum(), learning, allow_unused=True)
    return [output.detach(), torch.cat([gradient.flatten() for gradient in found if gradient is not None])]
