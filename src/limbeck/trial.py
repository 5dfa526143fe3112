"""A few steps of the very training, timed before it begins: what `auto` decides by."""

import copy
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from limbeck.core import Batch, Networks, Outputs, Stage, Tap
from limbeck.engine import Engine, Precision, can_compile, has_bf16_units, pick_device
from limbeck.taps import shapes
from limbeck.train import BatchSource, Diverged, run

STEPS = 4
"""Timed in each precision and turn, after one that is not; the turns are two."""

PATIENCE = 10.0
"""Seconds after which a turn ends, whatever its steps."""

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
    """A few batches, and the times at which they were asked for."""

    def __init__(self, batches: BatchSource, device: torch.device) -> None:
        self.samples = batches.samples
        self._batches, self._device = batches, device
        self.times: list[float] = []

    def __len__(self) -> int:
        return len(self._batches)

    def __call__(self, epoch: int) -> Iterator[Batch]:
        for number, batch in enumerate(self._batches(epoch)):
            self._note()
            if number > STEPS or self.times[-1] - self.times[0] > PATIENCE:
                return
            yield batch
        self._note()

    def sweep(self) -> Iterator[Batch]:
        yield from self._batches.sweep()

    def few(self) -> Tensor:
        return self._batches.few()

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

    The networks and losses are copied for it, and no generator moves. bf16 is taken where the first stage that needs
    no preparation is at least `FASTER` times as fast in it; frozen networks are compiled where the whole training
    would take more than `COMPILE_AFTER`, they are not read from a store, and the compiled step is `COMPILED_FASTER`.

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
    place = pick_device(device)
    ready = [stage for stage in stages if stage.prepare is None]
    resting = {tap for stage in stages for term in stage.terms.values() for tap in term.reads} - stored
    runs_teacher = any(tap.source == "teacher" for tap in resting)
    open_precision = precision == "auto" and has_bf16_units(place)
    open_compile = compile == "auto" and runs_teacher and can_compile(place)
    if not ready or not (open_precision or open_compile):
        return Engine(device=device, precision=precision, compile=compile is True)
    candidates: tuple[Precision, ...] = ("32", "bf16") if open_precision else (precision,)
    zeros = _zeros(networks, stored, batches.few(), batches.samples + 1)
    times: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    for candidate in candidates * 2:
        engine = Engine(device=device, precision=candidate)
        times[candidate].append(_seconds(ready[0], networks, batches, engine, zeros))
    best = {candidate: min(found) for candidate, found in times.items()}
    faster = best["32"] / best["bf16"] >= FASTER if open_precision else None
    step = best["bf16"] if faster else best[candidates[0]]
    seconds = step * len(batches) * sum(stage.epochs for stage in stages)
    pays = compile is True
    if open_compile and seconds > COMPILE_AFTER:
        from limbeck.compiled import CannotCompile  # the compiler takes a second to import

        with suppress(CannotCompile):  # then it does not pay
            engine = Engine(device=device, precision=precision, compile=True, faster=faster)
            pays = step / _seconds(ready[0], networks, batches, engine, zeros) >= COMPILED_FASTER
    return Engine(device=device, precision=precision, compile=pays, faster=faster)


def _seconds(stage: Stage, networks: Networks, batches: BatchSource, engine: Engine, zeros: Outputs | None) -> float:
    """The median time of a step."""
    stage, copies = copy.deepcopy((replace(stage, epochs=1, finish=None), dict(networks)))
    timed = _Timed(batches, engine.device)
    generators = engine.generators()
    with suppress(Diverged):  # the training itself will tell
        for _ in run([stage], copies, timed, engine, store=zeros):
            pass
    engine.restore_generators(generators)
    passed = [after - before for before, after in zip(timed.times, timed.times[1:], strict=False)]
    return statistics.median(passed[1:] or passed)


def _zeros(networks: Networks, stored: frozenset[Tap], few: Tensor, samples: int) -> Outputs | None:
    if not stored:
        return None
    probe = Batch(few, torch.zeros(len(few), dtype=torch.int64), torch.arange(len(few)), 0)
    return Zeros(stored, samples, shapes(networks, stored, probe))
