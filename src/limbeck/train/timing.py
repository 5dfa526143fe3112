"""A few steps of the very training, timed before it begins: what `auto` decides by."""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, count, pairwise
from typing import Literal

import torch
from torch import Tensor

from limbeck.core import Batch, LimbeckError, Networks, Outputs, Stage, Tap
from limbeck.taps import shapes
from limbeck.train.copies import NotCopied, deep_copy
from limbeck.train.engine import Engine, Precision, can_compile, has_bf16_units, make_engine
from limbeck.train.loop import BatchSource, Diverged, run

STEPS = 4
"""Timed in each precision and turn, after one that is not, because it may compile; the turns are two."""

PATIENCE = 10.0
"""Seconds of timed steps after which a turn ends; one is always timed."""

FASTER = 1.15
"""How many times bf16 must be faster to be taken: less is within what the timing of a few steps swings by."""

COMPILE_AFTER = 600.0
"""Seconds of training from which compiling the frozen networks is taken to pay.

Compiling took 7 to 20 s on 2 cores, and gained a tenth to a quarter of a step that runs a teacher.
"""

COMPILED_FASTER = 1.05
"""How many times a compiled step must be faster to be taken."""


@dataclass(frozen=True)
class Zeros:
    """Outputs of the right shapes, for a teacher that is read from a store."""

    taps: frozenset[Tap]
    rows: int
    shapes: Mapping[Tap, tuple[int, ...]]

    def read(self, index: Tensor, view: int) -> Mapping[Tap, Tensor]:
        """Zeros."""
        return {tap: torch.zeros(len(index), *self.shapes[tap]) for tap in self.taps}


class _Timed:
    """A few batches, of as many epochs as it takes, and the times at which they were asked for."""

    def __init__(self, batches: BatchSource, device: torch.device) -> None:
        self.samples = batches.samples
        self._batches, self._device = batches, device
        self.times: list[float] = []

    def __len__(self) -> int:
        return max(len(self._batches), STEPS + 1)  # so that no step is beyond the end of the training

    def __call__(self, epoch: int) -> Iterator[Batch]:
        for number, batch in enumerate(chain.from_iterable(map(self._batches, count(epoch)))):
            self._note()
            if number > STEPS or (number > 1 and self.times[-1] - self.times[1] > PATIENCE):
                return
            yield batch

    def sweep(self) -> Iterator[Batch]:
        yield from self._batches.sweep()

    def example_inputs(self) -> Tensor:
        return self._batches.example_inputs()

    def _note(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        self.times.append(time.perf_counter())


def engine_for(
    stages: Sequence[Stage],
    networks: Networks,
    batches: BatchSource,
    *,
    device: str,
    precision: Precision,
    compile: bool | Literal["auto"],  # noqa: A002 (what torch calls it)
    stored: frozenset[Tap] = frozenset(),
) -> Engine:
    """The engine with what ``auto`` stands for decided, by a trial where the machine leaves a choice.

    The networks and losses are copied for it, and no generator moves. bf16 is taken where the longest stage is at least
    `FASTER` times as fast in it. Frozen networks are compiled where the stages that run a frozen teacher would take
    more than `COMPILE_AFTER`, each of their steps as long as one of the longest of them, and such a step is
    `COMPILED_FASTER` compiled. Stages that need preparation are left out of all this. Nothing is tried where the
    networks cannot be copied, and `auto` then stands for 32 bits and not compiled.

    Args:
        stages: of the training.
        networks: as they are before it.
        batches: its batches.
        device: as in `Engine`.
        precision: as in `Engine`.
        compile: compile frozen networks and losses, or ``auto``.
        stored: the teacher's taps that will be read from a store.

    Raises:
        LimbeckError: there is no such device or precision; compiling is asked for and there is no compiler.
    """
    untried = make_engine(device=device, precision=precision, compile=compile is True)
    ready = [stage for stage in stages if stage.prepare is None]
    taught = [stage for stage in ready if _runs_teacher(stage, stored)]
    open_precision = precision == "auto" and has_bf16_units(untried.device)
    open_compile = compile == "auto" and bool(taught) and can_compile(untried.device)
    if not ready or not (open_precision or open_compile):
        return untried
    zeros = _zeros(networks, stored, batches.example_inputs(), batches.samples + 1)

    def seconds(stage: Stage, engine: Engine) -> float:
        return _seconds(stage, networks, batches, engine, zeros)

    def best(stage: Stage, *precisions: Precision) -> dict[Precision, float]:
        engines = [make_engine(device=device, precision=one) for one in precisions]
        turns = [[seconds(stage, engine) for engine in engines] for _ in range(2)]
        return dict(zip(precisions, map(min, *turns), strict=True))

    found, faster = dict[Precision, float](), None
    try:
        if open_precision:
            found = best(_longest(ready), "32", "bf16")
            faster = found["32"] / found["bf16"] >= FASTER
        eager = make_engine(device=device, precision=precision, compile=compile is True, faster=faster)
        if not open_compile:
            return eager
        longest = _longest(taught)
        if longest is not _longest(ready) or not found:
            found = best(longest, eager.precision)
    except NotCopied as error:
        if open_precision:
            return replace(untried, reason=f"not measured: {error}")
        return untried
    step = found[eager.precision]
    if step * len(batches) * sum(stage.epochs for stage in taught) > COMPILE_AFTER:
        from limbeck.train.compile import CannotCompile  # the compiler takes a second to import

        with suppress(CannotCompile, NotCopied):  # then it does not pay
            compiled = make_engine(device=device, precision=precision, compile=True, faster=faster)
            if step / seconds(longest, compiled) >= COMPILED_FASTER:
                return compiled
    return eager


def _longest(stages: Sequence[Stage]) -> Stage:
    return max(stages, key=lambda stage: stage.epochs)


def _runs_teacher(stage: Stage, stored: frozenset[Tap]) -> bool:
    """Whether it reads a teacher that does not learn in it, and not from a store."""
    learning = {name.partition(".")[0] for name in stage.learns}
    read = {tap for term in stage.terms.values() for tap in term.reads} - stored
    return "teacher" not in learning and any(tap.source == "teacher" for tap in read)


def _seconds(stage: Stage, networks: Networks, batches: BatchSource, engine: Engine, zeros: Outputs | None) -> float:
    """The median time of a step after the first.

    Raises:
        NotCopied: there is no copy to try it on, or none that runs, though the training itself may.
    """
    stage, copies = deep_copy((replace(stage, epochs=1, finish=None), dict(networks)), networks)
    timed = _Timed(batches, engine.device)
    generators = engine.generators()
    try:
        for _ in run([stage], copies, timed, engine, store=zeros):
            pass
    except Diverged:  # the training itself will tell
        pass
    except LimbeckError:
        raise
    except Exception as error:
        raise NotCopied("a copy of the networks does not run") from error
    finally:
        engine.restore_generators(generators)
    passed = [after - before for before, after in pairwise(timed.times)]
    return statistics.median(passed[1:])


def _zeros(networks: Networks, stored: frozenset[Tap], few: Tensor, samples: int) -> Outputs | None:
    if not stored:
        return None
    probe = Batch(few, torch.zeros(len(few), dtype=torch.int64), torch.arange(len(few)), 0)
    return Zeros(stored, samples, shapes(networks, stored, probe))
