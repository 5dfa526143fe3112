"""Estimates of the time and the memory of a training step."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from limbeck.core import Batch, Stage, Tap
from limbeck.experiment.first_step import unprepared
from limbeck.taps import Taps
from limbeck.train.copies import NotCopied
from limbeck.train.engine import Engine
from limbeck.train.freeze import frozen, frozen_modules
from limbeck.train.loop import BatchSource
from limbeck.train.timing import time_steps, zeros_for


def seconds_of_step(
    stage: Stage, networks: Mapping[str, nn.Module], batches: BatchSource, engine: Engine, stored: frozenset[Tap]
) -> float | None:
    """The median time of a few steps of a stage on copies; None if the networks cannot be copied.

    A stage with ``prepare`` is timed without it and without its losses.

    Args:
        stage: of the training.
        networks: as they are before it.
        batches: its batches.
        engine: the device and the precision; nothing is compiled for the measurement.
        stored: the teacher's taps that are read from a store.
    """
    zeros = zeros_for(networks, stored, batches.example_inputs(), batches.samples + 1)
    try:
        return time_steps(unprepared(stage), networks, batches, engine, zeros)
    except NotCopied:
        return None


def tensors_a_weight(stage: Stage) -> int:
    """How many numbers a step keeps for each weight that learns: its gradient, and the state of the optimizer."""
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.zeros(2)
    optimizer = stage.optimizer([weight])
    optimizer.step()
    kept = (value for state in optimizer.state.values() for value in state.values())
    return 1 + sum(isinstance(value, Tensor) and value.shape == weight.shape for value in kept)


def saved_bytes(stage: Stage, networks: Mapping[str, nn.Module], batch: Batch, engine: Engine) -> int:
    """Bytes that the forward of a stage saves for its backward, without weights; the networks are on the device."""
    known = {one.untyped_storage().data_ptr() for network in networks.values() for one in network.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in known:
            found[memory.data_ptr()] = memory.nbytes()
        return tensor

    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        frozen(frozen_modules(stage, networks)),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        Taps(networks, stage.reads, learns=stage.networks) as taps,
        engine.autocast(),
    ):
        taps.read(batch)
    return sum(found.values())
