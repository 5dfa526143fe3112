"""The one training loop. It knows stages and terms; it names no method, and it prints nothing."""

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from limbeck.core import Batch, LimbeckError, Networks, Stage, Tap
from limbeck.engine import Engine
from limbeck.taps import Taps, check, evaluation_mode


class Diverged(LimbeckError):
    """A term became NaN or infinite."""


class BatchSource(Protocol):
    """The batches of an epoch, and how many they are."""

    samples: int  # of one epoch

    def __len__(self) -> int: ...

    def __call__(self, epoch: int) -> Iterable[Batch]:
        """The batches of one epoch, counted from 0."""
        ...

    def sweep(self) -> Iterable[Batch]:
        """Each sample once, in order, not augmented: what a stage's ``prepare`` goes over."""
        ...


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training set came to."""

    stage: str
    position: int  # the stage's, from 0
    number: int  # finished epochs of the stage, from 1
    epochs: int  # of the stage in all
    terms: Mapping[str, float]  # each term's mean over the steps, before its weight
    loss: float  # the weighted sum's mean over the steps
    images: int
    seconds: float
    state: Callable[[], dict[str, Any]]  # all that exact resume needs; take it before asking for the next epoch


class Step(nn.Module):
    """All that learns in a stage, as one module: a batch in, the loss and the terms' values out."""

    def __init__(self, stage: Stage, networks: Networks) -> None:
        super().__init__()
        self.learners = nn.ModuleDict(
            {name.replace(".", "/"): part for name, part in zip(stage.learns, learners(stage, networks), strict=True)}
        )
        self.losses = nn.ModuleDict()
        for name, term in stage.terms.items():
            if isinstance(term.loss, functools.partial) and isinstance(term.loss.func, nn.Module):
                raise TypeError(f"term {name!r}: a partial hides its module's parameters; pass the module itself")
            if isinstance(term.loss, nn.Module):
                self.losses[name] = term.loss
        self._stage = stage
        learning = {name.partition(".")[0] for name in stage.learns}
        self.taps = Taps(networks, [tap for term in stage.terms.values() for tap in term.reads], learns=learning)

    def forward(
        self, inputs: Tensor, targets: Tensor, index: Tensor, view: int, progress: float
    ) -> tuple[Tensor, Tensor]:
        """The loss, and every term's value (detached) with the loss as the last entry.

        The batch comes as its fields: the engine's wrapper would copy a dataclass at every step.
        """
        batch = Batch(inputs, targets, index, view)
        read = self.taps.read(batch)
        values, loss = [], torch.zeros((), device=batch.inputs.device)
        with torch.autocast(batch.inputs.device.type, enabled=False):
            for term in self._stage.terms.values():
                value = term.loss(*(_full(read[tap]) for tap in term.reads))
                weight = term.weight if isinstance(term.weight, int | float) else term.weight(progress)
                loss = loss + weight * value
                values.append(value.detach())
        return loss, torch.stack([*values, loss.detach()])


class TrainingSweep:
    """The way over the training set that a stage's ``prepare`` is given; see `limbeck.core.Sweep`."""

    def __init__(self, epoch: int, networks: Networks, batches: BatchSource, engine: Engine) -> None:
        self.epoch = epoch
        self._networks, self._batches, self._engine = networks, batches, engine

    def __call__(self, *taps: Tap) -> Iterator[tuple[Tensor, ...]]:
        """The taps' tensors, batch by batch, in at least 32 bits."""
        read = [self._networks[name] for name in dict.fromkeys(tap.source for tap in taps) if name in self._networks]
        with evaluation_mode(read), Taps(self._networks, taps) as tapped:
            for batch in self._batches.sweep():
                with torch.no_grad(), self._engine.autocast():  # for the networks, not for what the caller computes
                    values = tapped.read(batch)
                yield tuple(_full(values[tap]) for tap in taps)


def learners(stage: Stage, networks: Networks) -> list[nn.Module]:
    """The modules that a stage's ``learns`` names: networks, or parts of them.

    Raises:
        LimbeckError: there is no such network or layer.
    """
    found = []
    for name in stage.learns:
        network, _, layer = name.partition(".")
        if network not in networks:
            raise LimbeckError(
                f"stage {stage.name!r}: there is no network {network!r} to learn; there are {', '.join(networks)}"
            )
        check(networks, Tap(network, layer))
        found.append(networks[network].get_submodule(layer))
    return found


def run(
    stages: Sequence[Stage],
    networks: Networks,
    batches: BatchSource,
    engine: Engine,
    *,
    state: dict[str, Any] | None = None,
) -> Iterator[Epoch]:
    """Train stage after stage, yielding after every epoch; what happens between epochs is the caller's.

    What a stage's ``learns`` names and its losses' own parameters learn, as far as their ``requires_grad`` says; all
    else is in eval mode, gets no gradient and stays bit-identical, buffers too. Each stage has a fresh optimizer. Each
    network runs once a batch. Losses see tensors in at least 32 bits, whatever the engine's precision. A stage's
    ``finish`` is called when its last epoch has been yielded and the next is asked for; what it changes in a network's
    structure (not its values) is for a last stage only, because no checkpoint is taken after it.

    Args:
        stages: what to train, on what, in order.
        networks: at least those that the stages name; moved to the engine's device.
        batches: an epoch's number (of its stage, from 0) to its batches.
        engine: device and precision.
        state: from `Epoch.state`, to go on where it was taken.

    Raises:
        LimbeckError: a tap does not exist or has no one value; nothing in a stage can learn.
        Diverged: a term became NaN or infinite.
    """
    for network in networks.values():
        engine.place(network)
    steps = [Step(stage, networks) for stage in stages]
    if state is not None:
        nn.ModuleList(steps).load_state_dict(state["modules"])
    for position in range(state["stage"] if state else 0, len(stages)):
        resumed = state if state and state["stage"] == position else None
        yield from _stage(stages[position], position, steps, networks, batches, engine, resumed)


def _stage(
    stage: Stage,
    position: int,
    steps: Sequence[Step],
    networks: Networks,
    batches: BatchSource,
    engine: Engine,
    state: dict[str, Any] | None,
) -> Iterator[Epoch]:
    step = steps[position]
    with _frozen(_resting(stage, networks)) as frozen:
        learning = [parameter for parameter in step.parameters() if parameter.requires_grad]
        if not learning:
            raise LimbeckError(f"stage {stage.name!r}: nothing learns in {', '.join(stage.learns)}")
        optimizer = stage.optimizer(learning)
        rates = [group["lr"] for group in optimizer.param_groups]
        module, optimizer = engine.prepare(step, optimizer)
        if state is not None:
            optimizer.load_state_dict(state["optimizer"])
            engine.restore_generators(state["generators"])
        for number in range(state["epoch"] if state else 0, stage.epochs):
            start = time.perf_counter()
            if stage.prepare is not None:
                stage.prepare(TrainingSweep(number, networks, batches, engine))
            with step.taps:
                module.train()
                for part in frozen:  # a loss may hold a layer of a frozen network, such as the teacher's classifier
                    part.training = False
                means, images = _epoch(stage, number, module, optimizer, rates, batches, engine)
            yield Epoch(
                stage=stage.name,
                position=position,
                number=number + 1,
                epochs=stage.epochs,
                terms=dict(zip(stage.terms, means, strict=False)),
                loss=means[-1],
                images=images,
                seconds=time.perf_counter() - start,
                state=functools.partial(_snapshot, position, number + 1, steps, optimizer, engine),
            )
    if stage.finish is not None:
        stage.finish()


def _epoch(
    stage: Stage,
    number: int,
    module: Any,
    optimizer: Any,
    rates: Sequence[float],
    batches: BatchSource,
    engine: Engine,
) -> tuple[list[float], int]:
    images, sums = 0, torch.zeros(len(stage.terms) + 1, device=engine.device)
    for position, batch in enumerate(batches(number)):
        progress = (number + position / len(batches)) / stage.epochs
        factor = stage.schedule(progress)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        loss, values = module(batch.inputs, batch.targets, batch.index, batch.view, progress)
        optimizer.zero_grad(set_to_none=True)
        engine.backward(loss)
        optimizer.step()
        sums += values
        images += len(batch.targets)
    means = (sums / len(batches)).tolist()
    _check_finite(stage, number, means)
    return means, images


def _snapshot(position: int, epoch: int, steps: Sequence[Step], optimizer: Any, engine: Engine) -> dict[str, Any]:
    return {
        "stage": position,
        "epoch": epoch,
        "modules": nn.ModuleList(steps).state_dict(),
        "optimizer": optimizer.state_dict(),
        "generators": engine.generators(),
    }


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _check_finite(stage: Stage, number: int, means: list[float]) -> None:
    bad = [name for name, mean in zip([*stage.terms, "loss"], means, strict=True) if not math.isfinite(mean)]
    if bad:
        raise Diverged(
            f"stage {stage.name!r}, epoch {number + 1}: {', '.join(bad)} became NaN or infinite; "
            "lower the learning rate or the term's weight"
        )


def _resting(stage: Stage, networks: Networks) -> list[nn.Module]:
    """The modules that do not learn: those of whole networks, and of the others the parts that are not named."""
    found = []
    for name, network in networks.items():
        named = [layer for layer in stage.learns if layer.partition(".")[0] == name]
        if name not in named:
            learning = {part for layer in named for part in network.get_submodule(layer.partition(".")[2]).modules()}
            found += [module for module in network.modules() if module not in learning]
    return found


@contextmanager
def _frozen(modules: Iterable[nn.Module]) -> Iterator[list[nn.Module]]:
    """Eval mode and no parameter gradients inside the block; afterwards the flags are what they were.

    Gives the modules.
    """
    modes = {module: module.training for module in modules}
    parameters = {parameter: parameter.requires_grad for module in modes for parameter in module.parameters(False)}
    for module in modes:
        module.training = False
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield list(modes)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, needed in parameters.items():
            parameter.requires_grad_(needed)
