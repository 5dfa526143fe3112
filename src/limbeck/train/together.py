"""Several students that learn at the same time, from the same batches and from one run of the teacher for each batch.

Every student gets the same bits as in a training of its own. The trainings take turns batch by batch: each has its
own state of the random generators, and they share the batches and the teacher's tensors.
"""

import itertools
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from limbeck.core import Batch, LimbeckError, Reader, Tap
from limbeck.taps import Taps, version
from limbeck.train.engine import Engine
from limbeck.train.loop import BatchSource, Pause
from limbeck.train.readers import fused_copy, reader_of

Event = TypeVar("Event")

_UNKNOWN = Pause(-(2**31), 0, 0)  # before all others


@torch.inference_mode(mode=False)
def together(trainings: Sequence[Generator[Event | Pause, None, Any]], engine: Engine) -> Iterator[Event]:
    """Let trainings take turns, and yield their events.

    The one that is furthest behind (`limbeck.train.loop.Pause`) is continued. Thus all reach their last stage before
    one begins it, and those in the same epoch read the same batch one after the other.

    Args:
        trainings: what yields events and pauses. Each seeds the generators when it starts.
        engine: its device's generators belong to the training that is continued.

    Raises:
        LimbeckError: it is used inside ``torch.autocast``, which trainings that take turns would leave and enter.
    """
    if torch.is_autocast_enabled(engine.device.type):
        raise LimbeckError("several students cannot be trained together inside torch.autocast: leave it first")
    running = dict(enumerate(trainings))
    states = dict.fromkeys(running, engine.generators())
    places = dict.fromkeys(running, _UNKNOWN)
    try:
        while running:
            number = min(running, key=places.__getitem__)
            engine.restore_generators(states[number])
            event = next(running[number], None)
            states[number] = engine.generators()
            if isinstance(event, Pause):
                places[number] = event
            elif event is None:
                del running[number]
            else:
                yield event
    finally:
        for events in running.values():
            events.close()


def groups(sizes: Sequence[int], free: int) -> list[list[int]]:
    """Divide students into groups that are trained together, in order: as many as fit into half of the memory.

    Args:
        sizes: the bytes that each keeps between its steps.
        free: bytes.

    Returns:
        The positions of the students of each group, at least one.
    """
    found, used = list[list[int]](), 0
    for position, size in enumerate(sizes):
        if not found or used + size > free // 2:
            found, used = [*found, []], 0
        found[-1].append(position)
        used += size
    return found


class SharedBatches:
    """Batches that trainings which take turns read from one stream for each epoch.

    A training that the others have left behind reads a new stream, which those that are as far as it then share.
    If a network or a loss writes to a batch, the others do not read it: from then on each has streams of its own.
    """

    def __init__(self, batches: BatchSource) -> None:
        self.samples, self.sweep, self.example_inputs = batches.samples, batches.sweep, batches.example_inputs
        self._batches = batches
        self._current = _Stream(-1, ())
        self._written = False  # a batch that others would have read was changed in place

    def __len__(self) -> int:
        return len(self._batches)

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, counted from 0."""
        stream = _Stream(-1, ())
        for position in itertools.count():
            if not self._written and self._current.holds(epoch, position):
                stream = self._current
            if stream.is_written(position):
                self._written = True
            if not stream.holds(epoch, position) or stream.is_written(position):
                stream = self._current = _Stream(epoch, self._batches(epoch))
            batch = stream.at(position)
            if batch is None:
                return
            yield batch


class _Stream:
    """The batches of an epoch, of which the last one that was asked for is kept."""

    def __init__(self, epoch: int, batches: Iterable[Batch]) -> None:
        self.epoch, self.position = epoch, -1
        self._batches = iter(batches)
        self._last: Batch | None = None
        self._versions = [0]

    def holds(self, epoch: int, position: int) -> bool:
        """Whether `at` can give the batch of this epoch."""
        return self.epoch == epoch and self.position <= position

    def is_written(self, position: int) -> bool:
        """Whether the batch at this position was asked for before, and was changed in place since."""
        return self.position == position and _versions(self._last) != self._versions

    def at(self, position: int) -> Batch | None:
        """The batch at a position that is not before the last one; None after the end."""
        while self.position < position:
            self._last, self.position = next(self._batches, None), self.position + 1
            self._versions = _versions(self._last)
        return self._last


def _versions(batch: Batch | None) -> list[int]:
    return [] if batch is None else [version(tensor) for tensor in (batch.inputs, batch.targets, batch.index)]


class SharedReaders:
    """Makes the readers of frozen networks for trainings that take turns: one run for each batch serves them all.

    Those that would read differently fused copies (`limbeck.train.fuse`) of a network do not share it, because their
    tensors would differ in rounding. Nor do those that read a compiled network, or one that cannot be copied.
    """

    def __init__(self) -> None:
        self._shared: list[tuple[nn.Module, _Shared]] = []

    def __call__(self, network: nn.Module, taps: Sequence[Tap], inputs: Tensor, engine: Engine) -> tuple[Reader, str]:
        """As `limbeck.train.readers.network_reader`."""
        fused, note = fused_copy(network, taps, inputs, engine)
        if engine.compile or fused is network:
            return reader_of(fused, tuple(taps), engine, own=fused is not network), note
        self._shared = [(other, shared) for other, shared in self._shared if shared.is_read]
        for other, shared in self._shared:
            if other is network and _equal(shared.fused, fused):
                return shared.reader(taps), note
        self._shared.append((network, _Shared(fused, engine)))
        return self._shared[-1][1].reader(taps), note


class _Shared:
    """A fused copy, and the tensors of its last batch."""

    def __init__(self, fused: nn.Module, engine: Engine) -> None:
        self.fused, self._engine = fused, engine
        self._readers = weakref.WeakKeyDictionary[Reader, frozenset[Tap]]()  # those of stages that are over are gone
        self._batch: Batch | None = None
        self._values: Mapping[Tap, Tensor] = {}
        self._versions = list[int]()
        self._tapped, self._taps = Taps({}, ()), frozenset[Tap]()

    @property
    def is_read(self) -> bool:
        """Whether a stage still has a reader."""
        return bool(self._readers)

    def reader(self, taps: Sequence[Tap]) -> Reader:
        """A reader of these taps."""

        def read(batch: Batch) -> Mapping[Tap, Tensor]:
            known = batch is self._batch and self._values.keys() >= set(taps)
            if not known or self._versions != list(map(version, self._values.values())):  # a loss may write to them
                self._run(batch)
            return {tap: self._values[tap] for tap in taps}

        self._readers[read] = frozenset(taps)
        return read

    def _run(self, batch: Batch) -> None:
        taps = frozenset().union(*self._readers.values())
        if taps != self._taps:
            self._tapped.__exit__()
            self._tapped, self._taps = Taps({tap.source: self.fused for tap in taps}, taps), taps
            self._tapped.__enter__()
        with torch.no_grad(), self._engine.autocast():
            self._batch, self._values = batch, self._tapped.read(batch)
        self._versions = list(map(version, self._values.values()))


def _equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two copies of a network have the same layers and the same weights, to the bit."""
    kinds = ([(name, type(module)) for name, module in network.named_modules()] for network in (one, other))
    first, second = (dict([*network.named_parameters(), *network.named_buffers()]) for network in (one, other))
    same = first.keys() == second.keys() and next(kinds) == next(kinds)
    return same and all(
        value.dtype == second[name].dtype and torch.equal(value, second[name]) for name, value in first.items()
    )
