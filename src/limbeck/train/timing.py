"""Times a few steps of a training before it begins, which decides ``precision: auto``."""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, pairwise

import torch
from torch import Tensor

from limbeck.core import Batch, LimbeckError, Networks, Outputs, Stage, Tap
from limbeck.taps import shapes
from limbeck.train.copies import NotCopied, deep_copy
from limbeck.train.engine import Engine, Precision, has_bf16_units, make_engine
from limbeck.train.loop import BatchSource, Diverged, run

STEPS = 4
"""Steps that are timed in each precision and round, after a first one that is not; there are two rounds."""

PATIENCE = 2.0
"""Seconds of timed steps after which a round ends; at least one step is timed."""

FASTER = 1.15
"""How many times faster bf16 must be to be taken: the times of a few steps vary by less."""


@dataclass(frozen=True)
class Zeros:
    """Outputs of the right shapes, for a teacher that is read from a store."""

    taps: frozenset[Tap]
    rows: int
    shapes: Mapping[Tap, tuple[int, ...]]

    def read(self, index: Tensor, view: int) -> Mapping[Tap, Tensor]:
        """Zeros."""
        return {tap: torch.zeros(len(index), *self.shapes[tap]) for tap in self.taps}


def resolve_precision(
    stages: Sequence[Stage],
    networks: Networks,
    batches: BatchSource,
    *,
    device: str,
    precision: Precision,
    compile: bool = False,  # noqa: A002 (what torch calls it)
    stored: frozenset[Tap] = frozenset(),
) -> Engine:
    """The engine of a training, with ``precision: auto`` decided by timing where the device has bf16 units.

    bf16 is taken where the longest stage without ``prepare`` is at least `FASTER` times as fast in it. The networks and
    losses are copied for this, and no generator advances. Where the networks cannot be copied, or all stages have a
    ``prepare``, nothing is timed and ``auto`` means 32 bits.

    Args:
        stages: of the training.
        networks: as they are before it.
        batches: its batches.
        device: as in `make_engine`.
        precision: as in `make_engine`.
        compile: as in `make_engine`; the steps are timed without it.
        stored: the teacher's taps that will be read from a store.

    Raises:
        LimbeckError: as `make_engine`; or a step fails with an error that the user can fix.
    """
    engine = make_engine(device=device, precision=precision, compile=compile)
    ready = [stage for stage in stages if stage.prepare is None]
    if not ready or precision != "auto" or not has_bf16_units(engine.device):
        return engine
    longest = max(ready, key=lambda stage: stage.epochs)
    zeros = zeros_for(networks, stored, batches.example_inputs(), batches.samples + 1)
    both = [make_engine(device=device, precision="32"), make_engine(device=device, precision="bf16")]
    try:
        rounds = [[time_steps(longest, networks, batches, one, zeros) for one in both] for _ in range(2)]
    except NotCopied as error:
        return replace(engine, reason=f"not measured: {error}")
    full, low = map(min, *rounds)
    return make_engine(device=device, precision=precision, compile=compile, faster=full / low >= FASTER)


def time_steps(stage: Stage, networks: Networks, batches: BatchSource, engine: Engine, zeros: Outputs | None) -> float:
    """The median time of a step after the first, in seconds, on copies of the networks and losses.

    Raises:
        NotCopied: the networks cannot be copied, or a copy does not run.
    """
    stage, copies = deep_copy((replace(stage, epochs=1, finish=None), dict(networks)), networks)
    timed = _Timed(batches, engine.device)
    generators = engine.generators()
    try:
        for _ in run([stage], copies, timed, engine, store=zeros):
            pass
    except Diverged:  # the training itself will report it
        pass
    except LimbeckError:
        raise
    except Exception as error:
        raise NotCopied("a copy of the networks does not run") from error
    finally:
        engine.restore_generators(generators)
    passed = [after - before for before, after in pairwise(timed.times)]
    return statistics.median(passed[1:])


class _Timed:
    """A few batches, from as many epochs as needed, and the times at which they were asked for."""

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


def zeros_for(networks: Networks, stored: frozenset[Tap], inputs: Tensor, samples: int) -> Outputs | None:
    """Zeros in the place of the taps ``stored`` for so many samples, shaped after a few inputs; None without taps."""
    if not stored:
        return None
    probe = Batch(inputs, torch.zeros(len(inputs), dtype=torch.int64), torch.arange(len(inputs)), 0)
    return Zeros(stored, samples, shapes(networks, stored, probe))
