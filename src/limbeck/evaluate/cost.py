"""What a network costs: parameters, multiply-accumulates, bytes, milliseconds."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from limbeck.core import LimbeckError
from limbeck.evaluate import machine
from limbeck.evaluate.machine import Reading, outside_cores
from limbeck.taps import evaluation_mode

LEAST_ROUNDS = 10

QUIET = 0.2
"""Cores that others may take while a latency is measured; beyond that it is measured again, and then marked."""

ATTEMPTS = 3
"""How often a latency is measured at most, to find the machine quiet."""

WATCHED = 0.1
"""Seconds for which the load is watched at least: a system counts it in steps of 0.01."""


@dataclass(frozen=True)
class Latency:
    """The wall time of one forward of one sample, over ``runs`` forwards."""

    median_ms: float
    p95_ms: float  # 95th percentile, interpolated linearly
    runs: int
    others_cores: float | None = None  # that other processes took meanwhile; None where the system does not say

    @property
    def disturbed(self) -> bool:
        """Whether others took so much that the times say little."""
        return self.others_cores is not None and self.others_cores > QUIET


def parameters(network: nn.Module) -> int:
    """How many parameters the network has, frozen ones too; one that is shared counts once."""
    return sum(parameter.numel() for parameter in network.parameters())


def macs(network: nn.Module, shape: Sequence[int]) -> int | None:
    """Multiply-accumulates of one forward of one sample, in eval mode: matrix products, convolutions and attention.

    Element-wise work (activations, normalisation, pooling, biases) is not counted, nor are recurrent layers, whose
    fused kernels the counter cannot see into. A network that cannot take one sample is given two, and the count is
    halved; one that fails there too has None. The network leaves as it came.

    Args:
        network: any network of one input.
        shape: one sample's shape, without N.
    """
    for samples in (1, 2):
        counter = FlopCounterMode(display=False)
        with evaluation_mode([network]), torch.no_grad(), _attention_in_parts(), counter:
            ran = _runs(network, _sample(network, shape, samples))
        if ran:
            return int(counter.get_total_flops()) // (2 * samples)
    return None


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
    attempts: int = ATTEMPTS,
    read: Callable[[], Reading] = machine.read,
) -> dict[str, Latency | None]:
    """The time of one forward of one sample, in eval mode without gradients, of several networks side by side.

    The networks take turns, so that a slow phase of the machine hits all alike. Each forward is timed on its own, on
    a GPU until the device has finished. The load of the machine is watched meanwhile: where other processes take more
    than `QUIET` cores, all is measured again, and the quietest attempt counts; `Latency.disturbed` tells where that one
    was not quiet either. A network that cannot take one sample has None. The networks leave as they came.

    Args:
        networks: by name, each on its own device.
        shape: one sample's shape, without N.
        runs: rounds, each one forward a network.
        warmup: rounds before that are not timed.
        seconds: of all rounds of an attempt together; when they are over, the rounds stop early, but not before the
            tenth. The warm-up gets a fifth of them, and at least one round unless ``warmup`` is 0.
        attempts: how often it is measured at most, each time after a warm-up.
        read: reads the machine's load.

    Raises:
        LimbeckError: ``runs`` or ``attempts`` is less than 1.
    """
    for name, value in (("runs", runs), ("attempts", attempts)):
        if value < 1:
            raise LimbeckError(f"{name} is {value}: allowed are 1 and more")
    with evaluation_mode(networks.values()), torch.no_grad():
        samples = {name: _sample(network, shape, 1) for name, network in networks.items()}
        able = {name: network for name, network in networks.items() if _runs(network, samples[name])}
        quietest: dict[str, list[float]] = {}
        least: float | None = None
        for _ in range(attempts):
            times, others = _watched(able, samples, runs, warmup, seconds, read)
            if not quietest or others is None or least is None or others < least:
                quietest, least = times, others
            if others is None or others <= QUIET:
                break
    return {name: _summary(quietest[name], least) if name in able else None for name in networks}


def _watched(
    networks: Mapping[str, nn.Module],
    samples: Mapping[str, Tensor],
    runs: int,
    warmup: int,
    seconds: float,
    read: Callable[[], Reading],
) -> tuple[dict[str, list[float]], float | None]:
    """The milliseconds of each network's forwards, and the cores that others took meanwhile."""
    times: dict[str, list[float]] = {name: [] for name in networks}
    start = time.perf_counter()
    for _ in _rounds(warmup, least=1, end=start + seconds / 5):
        for name, network in networks.items():
            _milliseconds(network, samples[name])
    before = read()
    for _ in _rounds(runs, least=LEAST_ROUNDS, end=start + seconds):
        for name, network in networks.items():
            times[name].append(_milliseconds(network, samples[name]))
    after = read()
    if after.busy is not None and after.wall - before.wall < WATCHED:
        time.sleep(WATCHED - (after.wall - before.wall))
        after = read()
    return times, outside_cores(before, after)


def _runs(network: nn.Module, sample: Tensor) -> bool:
    """Whether a network can take a sample; its figures were measured, so that it fails here is not its end."""
    try:
        network(sample)
    except Exception:  # the network may be the user's, and raise anything
        return False
    return True


def _summary(values: list[float], others: float | None) -> Latency:
    p95 = torch.tensor(values, dtype=torch.float64).quantile(0.95).item()
    return Latency(statistics.median(values), p95, len(values), others)


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


def _sample(network: nn.Module, shape: Sequence[int], samples: int) -> Tensor:
    """Noise (samples, *shape) in the network's type and on its device; the global generators are left alone."""
    noise = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(0))
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
