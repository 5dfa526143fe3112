"""What a network costs: parameters, multiply-accumulates, bytes, milliseconds."""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from limbeck.core import LimbeckError
from limbeck.taps import evaluation_mode

LEAST_ROUNDS = 10


@dataclass(frozen=True)
class Latency:
    """The wall time of one forward of one sample, over ``runs`` forwards."""

    median_ms: float
    p95_ms: float  # 95th percentile, interpolated linearly
    runs: int


def parameters(network: nn.Module) -> int:
    """How many parameters the network has, frozen ones too; one that is shared counts once."""
    return sum(parameter.numel() for parameter in network.parameters())


def macs(network: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-accumulates of one forward of one sample, in eval mode: matrix products, convolutions and attention.

    Element-wise work (activations, normalisation, pooling, biases) is not counted, nor are recurrent layers, whose
    fused kernels the counter cannot see into. The network leaves as it came.

    Args:
        network: any network of one input.
        shape: one sample's shape, without N.
    """
    counter = FlopCounterMode(display=False)
    with evaluation_mode([network]), torch.no_grad(), _attention_in_parts(), counter:
        network(_sample(network, shape))
    return int(counter.get_total_flops()) // 2


def file_bytes(network: nn.Module) -> int:
    """The size of the file `limbeck.models.save_network` writes of the network, without its metadata.

    It holds what ``state_dict`` names; a tensor with two names (tied weights) is in the file under both.
    """
    # safetensors takes neither shared nor strided storage
    state = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in network.state_dict().items()}
    return len(safetensors.torch.save(state))


def latency(
    networks: Mapping[str, nn.Module],
    shape: Sequence[int],
    *,
    runs: int = 100,
    warmup: int = 10,
    seconds: float = 5.0,
) -> dict[str, Latency]:
    """The time of one forward of one sample, in eval mode without gradients, of several networks side by side.

    The networks take turns, so that a slow phase of the machine hits all alike. Each forward is timed on its own, on
    a GPU until the device has finished. The networks leave as they came.

    Args:
        networks: by name, each on its own device.
        shape: one sample's shape, without N.
        runs: rounds, each one forward a network.
        warmup: rounds before that are not timed.
        seconds: of all rounds together; when they are over, the rounds stop early, but not before the tenth. The
            warm-up gets a fifth of them, and at least one round unless ``warmup`` is 0.

    Raises:
        LimbeckError: ``runs`` is less than 1.
    """
    if runs < 1:
        raise LimbeckError(f"runs is {runs}: allowed are 1 and more")
    samples = {name: _sample(network, shape) for name, network in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in networks}
    start = time.perf_counter()
    with evaluation_mode(networks.values()), torch.no_grad():
        for _ in _rounds(warmup, least=1, end=start + seconds / 5):
            for name, network in networks.items():
                _milliseconds(network, samples[name])
        for _ in _rounds(runs, least=LEAST_ROUNDS, end=start + seconds):
            for name, network in networks.items():
                times[name].append(_milliseconds(network, samples[name]))
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Latency:
    p95 = torch.tensor(values, dtype=torch.float64).quantile(0.95).item()
    return Latency(statistics.median(values), p95, len(values))


def _rounds(most: int, *, least: int, end: float) -> Iterator[int]:
    for number in range(most):
        if number >= least and time.perf_counter() >= end:
            return
        yield number


def _milliseconds(network: nn.Module, sample: Tensor) -> float:
    _wait(sample.device)
    start = time.perf_counter_ns()
    network(sample)
    _wait(sample.device)
    return (time.perf_counter_ns() - start) / 1e6


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _sample(network: nn.Module, shape: Sequence[int]) -> Tensor:
    """Noise (1, *shape) in the network's type and on its device; the global generators are left alone."""
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    like = next((parameter for parameter in network.parameters() if parameter.is_floating_point()), noise)
    return noise.to(device=like.device, dtype=like.dtype)


@contextmanager
def _attention_in_parts() -> Iterator[None]:
    # nn.MultiheadAttention's fused kernel for eval mode is not in the counter's table: it would count as 0.
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
