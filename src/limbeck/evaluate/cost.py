"""The cost of a network: parameters, multiply-accumulates, file size and latency."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from limbeck.evaluate import machine
from limbeck.models.functions import calls_function
from limbeck.taps import evaluation_mode

LEAST_ROUNDS = 10

QUIET = 0.2
"""The cores that other processes may use while a latency is measured. Above this, the measurement is repeated."""

ATTEMPTS = 3
"""The most measurements of a latency, to find one on an idle machine."""

WATCHED = 0.1
"""The shortest time in seconds over which the load is measured: the system counts it in steps of 0.01 s."""


@dataclass(frozen=True)
class Latency:
    """The wall time of one forward with batch size 1, over ``runs`` forwards."""

    median_ms: float
    p95_ms: float  # 95th percentile with linear interpolation
    runs: int
    others_cores: float | None = None  # that other processes used meanwhile; above `QUIET`, the times are unreliable


def parameters(network: nn.Module) -> int:
    """Return the number of parameters, including frozen ones. A shared parameter counts once."""
    return sum(parameter.numel() for parameter in network.parameters())


def macs(network: nn.Module, shape: Sequence[int]) -> int | None:
    """Return the multiply-accumulates of one forward with batch size 1 in eval mode, or None if the forward fails.

    A network that calls a function also has None, because the operations of the function cannot be counted.
    Matrix products, convolutions and attention are counted. Element-wise operations (activations, normalisation,
    pooling, biases) are not, and neither are recurrent layers, whose fused kernels hide their operations. If batch
    size 1 fails, batch size 2 is tried and its count is halved. The network is not changed; ``shape`` is that of one
    sample, without N.
    """
    for samples in () if calls_function(network) else (1, 2):
        counter = FlopCounterMode(display=False)
        with evaluation_mode([network]), torch.no_grad(), _attention_in_parts(), counter:
            ran = _runs(network, _sample(network, shape, samples))
        if ran:
            return int(counter.get_total_flops()) // (2 * samples)
    return None


def file_bytes(network: nn.Module) -> int:
    """Return the size in bytes of the file that `limbeck.models.save_network` writes, without its metadata.

    The file contains the state dict. A tensor with two names (tied weights) is written under both.
    """
    state = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in network.state_dict().items()}
    return len(safetensors.torch.save(state))


def latency(
    networks: Mapping[str, nn.Module],
    shape: Sequence[int] | Mapping[str, Sequence[int]],
    *,
    runs: int = 100,
    warmup: int = 10,
    seconds: float = 5.0,
) -> dict[str, Latency | None]:
    """Measure the time of one forward with batch size 1, in eval mode without gradients, for several networks.

    The networks run in turns, so that a slow phase of the machine affects all of them. Each forward is timed
    separately, including the synchronisation of a GPU. If other processes use more than `QUIET` cores meanwhile, the
    measurement is repeated, and of `ATTEMPTS` the one with the lowest load counts. A network that fails for batch size
    1 or calls a function has None. The networks are not changed.

    Args:
        networks: the networks by name, on any devices.
        shape: the shape of one sample, without N; or one for each network, by name.
        runs: the number of rounds, at least 1. Each round runs every network once.
        warmup: the number of rounds before them that are not timed.
        seconds: the time limit for the rounds of one attempt. The rounds stop early when it is over, but not before the
            tenth. The warm-up gets a fifth of it, and at least one round unless ``warmup`` is 0.
    """
    with evaluation_mode(networks.values()), torch.no_grad():
        shapes = shape if isinstance(shape, Mapping) else dict.fromkeys(networks, shape)
        samples = {name: _sample(network, shapes[name], 1) for name, network in networks.items()}
        timed = {name: network for name, network in networks.items() if not calls_function(network)}
        able = {name: network for name, network in timed.items() if _runs(network, samples[name])}
        calls = {name: partial(_waited, network, samples[name]) for name, network in able.items()}
        found = times(calls, runs=runs, warmup=warmup, seconds=seconds)
    return {name: found.get(name) for name in networks}


def times(
    calls: Mapping[str, Callable[[], object]], *, runs: int = 100, warmup: int = 10, seconds: float = 5.0
) -> dict[str, Latency]:
    """Measure the times of several calls in turns, as `latency` does."""
    quietest: dict[str, list[float]] = {}
    least: float | None = None
    for _ in range(ATTEMPTS):
        found, others = _watched(calls, runs, warmup, seconds)
        if not quietest or others is None or least is None or others < least:
            quietest, least = found, others
        if others is None or others <= QUIET:
            break
    return {name: _summary(values, least) for name, values in quietest.items()}


def _watched(
    calls: Mapping[str, Callable[[], object]], runs: int, warmup: int, seconds: float
) -> tuple[dict[str, list[float]], float | None]:
    """Return the times of each call in milliseconds, and the cores that other processes used."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for _ in _rounds(warmup, least=1, end=start + seconds / 5):
        for call in calls.values():
            call()
    before = machine.read()
    for _ in _rounds(runs, least=LEAST_ROUNDS, end=start + seconds):
        for name, call in calls.items():
            began = time.perf_counter_ns()
            call()
            found[name].append((time.perf_counter_ns() - began) / 1e6)
    after = machine.read()
    if after.busy is not None and after.wall - before.wall < WATCHED:
        time.sleep(WATCHED - (after.wall - before.wall))
        after = machine.read()
    return found, machine.outside_cores(before, after)


def _runs(network: nn.Module, sample: Tensor) -> bool:
    """Whether a network runs on a sample. A failure is not an error, because the metrics have been measured before."""
    try:
        network(sample)
    except Exception:  # a user's network may raise anything
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


def _waited(network: nn.Module, sample: Tensor) -> None:
    """Run a network, and wait until its device has finished."""
    network(sample)
    _wait(sample.device)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _sample(network: nn.Module, shape: Sequence[int], samples: int) -> Tensor:
    """Return noise (samples, *shape) of the network's dtype and device, without using the global generators."""
    noise = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(0))
    like = next((parameter for parameter in network.parameters() if parameter.is_floating_point()), noise)
    return noise.to(device=like.device, dtype=like.dtype)


@contextmanager
def _attention_in_parts() -> Iterator[None]:
    # The counter does not know the fused eval-mode kernel of nn.MultiheadAttention and would count it as 0.
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
