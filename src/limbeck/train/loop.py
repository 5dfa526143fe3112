"""The one training loop. It knows stages and terms; it names no method, and it prints nothing."""

import functools
import itertools
import operator
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck.core import Batch, LimbeckError, Networks, Outputs, Reader, Stage, Tap
from limbeck.taps import Taps, evaluation_mode
from limbeck.train.best import Best
from limbeck.train.divergence import Diverged as Diverged
from limbeck.train.divergence import Means, NotFinite, cause, explained
from limbeck.train.engine import Engine
from limbeck.train.freeze import Versions, frozen, frozen_modules, learners
from limbeck.train.memory_format import channels_last, match_parameters
from limbeck.train.readers import MakeReader, frozen_readers, network_reader
from limbeck.train.regime import PLAIN, Average, Regime, Updater


class BatchSource(Protocol):
    """The batches of each epoch."""

    samples: int  # of one epoch

    def __len__(self) -> int: ...

    def __call__(self, epoch: int) -> Iterable[Batch]:
        """The batches of one epoch, counted from 0."""
        ...

    def sweep(self) -> Iterable[Batch]:
        """Each sample once, in order, not augmented: what a stage's ``prepare`` reads."""
        ...

    def example_inputs(self) -> Tensor:
        """The inputs of the first one or two samples, not augmented, to check networks on."""
        ...


@dataclass(frozen=True)
class Epoch:
    """The result of one pass over the training set."""

    stage: str
    position: int  # the stage's, from 0
    number: int  # finished epochs of the stage, from 1
    epochs: int  # of the stage in all
    terms: Mapping[str, float]  # each term's mean over the steps, before its weight
    loss: float  # the weighted sum's mean over the steps
    images: int
    seconds: float
    state: Callable[[], dict[str, Any]]  # all that exact resume needs; take it before asking for the next epoch
    learned: nn.Module  # the networks and losses that learn in the stage
    notes: tuple[str, ...] = ()  # on the readers of frozen networks, see `limbeck.train.readers.network_reader`


class Pause(NamedTuple):
    """Where a training is before a batch; ordered so that the training that is furthest behind is the smallest."""

    stage: int  # minus the number of stages that follow
    epoch: int  # of the stage, from 0
    batch: int  # of the epoch, from 0


class Step(nn.Module):
    """Everything that learns in a stage, as one module: tensors in, the terms' values and the loss out."""

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
        self._terms = [(term.loss, term.reads, term.weight) for term in stage.terms.values()]

    def compile_losses(self) -> None:
        """Replace each loss by its compiled form; the losses' parameters and state stay in `losses`."""
        from limbeck.train.compile import compiled_on_maps  # the compiler takes a second to import

        self._terms = [(compiled_on_maps(loss), reads, weight) for loss, reads, weight in self._terms]

    def forward(self, read: Mapping[Tap, Tensor], progress: float) -> list[Tensor]:
        """Every term's value, and the loss as the last entry."""
        values, summands = [], []
        for term, reads, weight in self._terms:
            value = term(*[_full(read[tap]) for tap in reads])
            factor = weight(progress) if callable(weight) else weight
            values.append(value)
            summands.append(value if factor == 1 else factor * value)
        return [*values, functools.reduce(operator.add, summands)]


class TrainingSweep:
    """Reads the training set for a stage's ``prepare``; see `limbeck.core.Sweep`."""

    def __init__(self, epoch: int, networks: Networks, batches: BatchSource, engine: Engine) -> None:
        self.epoch, self.networks, self.batches, self.engine = epoch, networks, batches, engine

    def __call__(self, *taps: Tap) -> Iterator[tuple[Tensor, ...]]:
        """The taps' tensors, batch by batch, in at least 32 bits."""
        read = [self.networks[name] for name in dict.fromkeys(tap.source for tap in taps) if name in self.networks]
        with evaluation_mode(read), Taps(self.networks, taps) as tapped:
            for batch in self.batches.sweep():
                # around the networks only, because the caller computes in its own context
                with torch.no_grad(), self.engine.without_autocast(), self.engine.autocast():
                    values = gathered(tapped.read(batch), batch, self.engine)
                yield tuple(_full(values[tap]) for tap in taps)


@torch.inference_mode(mode=False)  # a decorator covers each part of a generator, but not what happens between yields
def run(
    stages: Sequence[Stage],
    networks: Networks,
    batches: BatchSource,
    engine: Engine,
    *,
    store: Outputs | None = None,
    state: dict[str, Any] | None = None,
    regime: Regime = PLAIN,
    best: Best | None = None,
) -> Iterator[Epoch]:
    """Train the stages in order and yield after every epoch. Logging, evaluation and checkpoints are the caller's.

    The networks that a stage's ``learns`` names and the losses' own parameters learn, where ``requires_grad`` is True.
    Everything else is frozen: it is in eval mode, gets no gradients and stays bit-identical, buffers too. A part whose
    parameters are all frozen (`limbeck.train.freeze.frozen_parts`) is frozen with its BatchNorm and dropout. A
    ``no_grad`` or ``inference_mode`` around the call has no effect.

    Each stage has a fresh optimizer. Each network runs once a batch. Losses see tensors in at least 32 bits, whatever
    the engine's precision. A stage's ``finish`` is called when the epoch after its last one is asked for; only a last
    stage's may change a network's structure, because no checkpoint is taken after it.

    Args:
        stages: what to train.
        networks: at least those that the stages name; moved to the engine's device.
        batches: called with the number of an epoch of its stage, from 0.
        engine: device, precision, and whether to compile.
        store: the teacher's tensors, computed beforehand; a stage that reads only these does not run the teacher.
        state: from `Epoch.state`, to resume where it was taken.
        regime: options of the training. `limbeck.experiment.plan` has applied its warm-up and rates to the stages.
        best: decides when the last stage ends, and restores its best weights then. The caller adds the scores.

    Raises:
        LimbeckError: a tap does not exist or has no one value; nothing in a stage can learn.
        Diverged: a term, or a weight at the end of an epoch, became NaN or infinite; the message says where that came
            from. The networks that learn have no meaningful weights any more; those of the last epoch were finite.
    """
    for event in turns(stages, networks, batches, engine, store=store, state=state, regime=regime, best=best):
        if isinstance(event, Epoch):
            yield event


def turns(
    stages: Sequence[Stage],
    networks: Networks,
    batches: BatchSource,
    engine: Engine,
    *,
    store: Outputs | None = None,
    state: dict[str, Any] | None = None,
    regime: Regime = PLAIN,
    best: Best | None = None,
    reader: MakeReader = network_reader,
) -> Iterator[Epoch | Pause]:
    """As `run`, but also yield before every batch is read, so that several trainings can take turns.

    It is continued outside of ``torch.autocast`` and ``torch.inference_mode``, with the generators as it left them:
    see `limbeck.train.together`. ``reader`` makes the readers of the frozen networks.
    """
    for network in networks.values():
        engine.place(network)
    steps = [Step(stage, networks) for stage in stages]
    learning = dict.fromkeys(name for stage in stages for name in stage.networks)
    with channels_last([networks[name] for name in learning], batches.example_inputs()):
        if state is not None:
            nn.ModuleList(steps).load_state_dict(state["modules"])
        for position in range(state["stage"] if state else 0, len(stages)):
            known = state if state and state["stage"] == position else None
            last = best if position + 1 == len(stages) else None
            yield from _stage(
                stages[position], position, steps, networks, batches, engine, store, known, regime, last, reader
            )
            if last is not None:
                last.restore(steps[position])
            if (finish := stages[position].finish) is not None:
                finish()


def _stage(
    stage: Stage,
    position: int,
    steps: Sequence[Step],
    networks: Networks,
    batches: BatchSource,
    engine: Engine,
    store: Outputs | None,
    state: dict[str, Any] | None,
    regime: Regime,
    best: Best | None,
    reader: MakeReader,
) -> Iterator[Epoch | Pause]:
    step = steps[position]
    norms = engine.processes.synchronised(step.learners.values() if regime.sync_batch_norm else ())
    with frozen(frozen_modules(stage, networks)) as rest, norms:
        learning = _learning(step, stage)
        optimizer = stage.optimizer(learning)
        rates = [group["lr"] for group in optimizer.param_groups]
        engine.place(step)
        updater = None if regime.every_batch else Updater(regime, stage, networks, optimizer, learning)
        average = None if updater is None else updater.average
        stateful = [part for part in (average, best) if part is not None]
        if engine.compile:
            step.compile_losses()
        averaged = engine.processes.averaged(step, step.losses)
        if state is not None:
            _restore(state, optimizer, engine, stateful)
        read: Versions | None = None
        for number in range(state["epoch"] if state else 0, stage.epochs):
            if best is not None and best.ends(number):
                break
            start = time.perf_counter()
            sweep = TrainingSweep(number, networks, batches, engine)
            if stage.prepare is not None:
                stage.prepare(sweep)
            versions = Versions(net for name, net in networks.items() if name not in stage.networks)
            if read is None or versions.numbers != read.numbers:  # first epoch, or a frozen network was changed
                readers, notes = frozen_readers(stage, networks, batches.example_inputs(), engine, store, reader)
                taps, read = Taps(networks, stage.reads, learns=stage.networks, readers=readers), versions
            place = Pause(position + 1 - len(steps), number, 0)
            try:
                means, images, paused = yield from _epoch(
                    stage, place, averaged, rest, taps, optimizer, rates, batches, engine, updater
                )
            except NotFinite as first:
                raise _diverged(stage, first, sweep, readers) from None
            yield Epoch(
                stage=stage.name,
                position=position,
                number=number + 1,
                epochs=stage.epochs,
                terms=dict(zip(stage.terms, means, strict=False)),
                loss=means[-1],
                images=images,
                seconds=time.perf_counter() - start - paused,
                state=functools.partial(_snapshot, position, number + 1, steps, optimizer, engine, stateful),
                learned=step,
                notes=notes,
            )


def _learning(step: Step, stage: Stage) -> list[nn.Parameter]:
    learning = [parameter for parameter in step.parameters() if parameter.requires_grad]
    if not learning:
        raise LimbeckError(f"stage {stage.name!r}: nothing learns in {', '.join(stage.learns)}")
    return learning


def _epoch(
    stage: Stage,
    place: Pause,
    step: nn.Module,
    rest: Sequence[nn.Module],
    taps: Taps,
    optimizer: Optimizer,
    rates: Sequence[float],
    batches: BatchSource,
    engine: Engine,
    updater: Updater | None,
) -> Generator[Pause, None, tuple[list[float], int, float]]:
    """Returns the terms' means, the number of samples, and the seconds that other trainings took."""
    images, means, paused = 0, Means(), 0.0
    optimizer.zero_grad(set_to_none=True)  # gradients from before
    with taps, engine.without_autocast():
        step.train()
        for part in rest:  # a loss may hold a layer of a frozen network, such as the teacher's classifier
            part.training = False
        with nullcontext() if updater is None else updater.epoch(place.epoch, len(batches)):
            stream = iter(batches(place.epoch))
            for position in itertools.count():
                pause = time.perf_counter()
                place = place._replace(batch=position)
                yield place
                paused += time.perf_counter() - pause
                batch = next(stream, None)  # after the pause, in which others may write to a batch
                if batch is None:
                    break
                progress = (place.epoch + position / len(batches)) / stage.epochs
                factor = stage.schedule(progress)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                means.add(_update(place, step, taps, optimizer, batch, progress, engine, updater))
                images += batch.total or len(batch.targets)
    terms = means.read()
    if not all(weight.isfinite().all() for group in optimizer.param_groups for weight in group["params"]):
        raise NotFinite(len(batches) - 1, [])  # before a checkpoint is written
    return terms, images, paused


def _update(
    place: Pause,
    step: nn.Module,
    taps: Taps,
    optimizer: Optimizer,
    batch: Batch,
    progress: float,
    engine: Engine,
    updater: Updater | None,
) -> list[Tensor]:
    """One step, in a function so that its tensors are freed before the next one."""
    with engine.autocast(), engine.processes.own_generators(engine.device, *place):
        read = taps.read(batch)
    completes = updater is None or updater.completes
    with nullcontext() if completes else engine.processes.unaveraged(step):
        values = step(gathered(read, batch, engine), progress)
        if updater is None:
            values[-1].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        else:
            updater.add(values[-1], batch.total or len(batch.targets))
    torch.clear_autocast_cache()  # inside a caller's autocast it would keep the old weights
    return [value.detach() for value in values]


def gathered(read: Mapping[Tap, Tensor], batch: Batch, engine: Engine) -> dict[Tap, Tensor]:
    """What was read on a batch, of all processes."""
    return {tap: engine.processes.gather(value, batch.total) for tap, value in read.items()}


def _snapshot(
    position: int, epoch: int, steps: Sequence[Step], optimizer: Any, engine: Engine, more: Sequence[Average | Best]
) -> dict[str, Any]:
    return {
        "stage": position,
        "epoch": epoch,
        "modules": nn.ModuleList(steps).state_dict(),
        "optimizer": optimizer.state_dict(),
        "generators": engine.generators(),
        **{name: value for part in more for name, value in part.state().items()},
    }


def _restore(state: dict[str, Any], optimizer: Any, engine: Engine, more: Sequence[Average | Best]) -> None:
    optimizer.load_state_dict(state["optimizer"])
    match_parameters(optimizer)
    for part in more:
        part.load(state)
    engine.restore_generators(state["generators"])


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _diverged(stage: Stage, first: NotFinite, sweep: TrainingSweep, readers: Mapping[str, Reader]) -> Diverged:
    """The error, with the `cause` that is found in the batch of the step."""
    why, frozen_taps = "", [tap for tap in stage.reads if tap.source not in stage.networks]
    fixed = Taps(sweep.networks, frozen_taps, readers=readers)
    alone = sweep.engine.processes.count == 1  # the search ends by the clock, which several processes do not share
    for batch in islice(sweep.batches(sweep.epoch), first.step, first.step + 1) if alone else ():
        with torch.no_grad(), sweep.engine.without_autocast():
            why = cause(batch, fixed.read(batch), sweep)
    return Diverged(explained(stage, sweep.epoch, first, len(sweep.batches), why))
