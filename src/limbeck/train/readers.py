"""Readers of frozen networks: hooks on a fused copy, compiled, or from a store."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from limbeck.core import Batch, Networks, Outputs, Reader, Stage, Tap
from limbeck.taps import Taps
from limbeck.train.engine import Engine
from limbeck.train.fuse import fuse
from limbeck.train.memory_format import runs_channels_last

CHUNK = 4096
"""Rows that are copied to the device at once."""


MakeReader = Callable[[nn.Module, Sequence[Tap], Tensor, Engine], tuple[Reader, str]]
"""Makes the reader of a network and a note, as `network_reader`."""


def network_reader(network: nn.Module, taps: Sequence[Tap], inputs: Tensor, engine: Engine) -> tuple[Reader, str]:
    """The fastest way to a frozen network's tensors: without gradients, in the engine's precision.

    The network is read as it is now: make another reader where it changes.

    Args:
        network: on the engine's device; in eval mode while it is read.
        taps: what to read of it; one or more, all of the same source.
        inputs: (N, ...) a few samples in 32 bits, on which the fused copy is checked.
        engine: precision, and whether to compile; if so, the first batch compiles, for its size.

    Returns:
        The reader, and a note that says how many BatchNorm layers could not be folded because the network could not be
        copied or the check failed, and whether the weights could not be cast; "" if neither happened. See
        `limbeck.train.fuse.fuse`.

    Raises:
        LimbeckError: a tap does not exist or has no one value.
        CannotCompile: at the first batch, the network cannot be one graph, or the compiled tensors differ.
    """
    taps = tuple(taps)
    fused, note = fused_copy(network, taps, inputs, engine)
    return reader_of(fused, taps, engine, own=fused is not network), note


def fused_copy(network: nn.Module, taps: Sequence[Tap], inputs: Tensor, engine: Engine) -> tuple[nn.Module, str]:
    """The copy that `network_reader` reads, or the network itself if it cannot be copied; and the note."""
    fits = runs_channels_last(network, inputs)
    fused, why = fuse(network, inputs, taps, precision=engine.precision, channels_last=fits)
    return fused, f"the {taps[0].source} is not fused in full: {why}" if why else ""


def reader_of(fused: nn.Module, taps: tuple[Tap, ...], engine: Engine, *, own: bool) -> Reader:
    """What reads a `fused_copy`; ``own``: it is a copy that nothing else reads."""
    if engine.compile:
        return _compiled(fused, taps, engine)
    tapped = Taps({tap.source: fused for tap in taps}, taps)
    # The copy belongs to this reader alone, so its hooks stay; the network itself has them only while it is read.
    hooks = nullcontext(tapped.__enter__()) if own else tapped

    def read(batch: Batch) -> Mapping[Tap, Tensor]:
        with torch.no_grad(), engine.autocast(), hooks:
            return tapped.read(batch)

    return read


def frozen_readers(
    stage: Stage,
    networks: Networks,
    inputs: Tensor,
    engine: Engine,
    store: Outputs | None,
    make: MakeReader = network_reader,
) -> tuple[dict[str, Reader], tuple[str, ...]]:
    """A reader for each network that a stage reads and that does not learn in it, by the network's name; and notes.

    Args:
        stage: what is read.
        networks: by name, on the engine's device; the frozen ones in eval mode while they are read.
        inputs: (N, ...) a few samples in 32 bits, on which fused copies are checked.
        engine: precision, and whether to compile.
        store: the teacher's tensors; used where it has all that the stage reads of it.
        make: makes the other readers.

    Returns:
        The readers, and the notes of `network_reader`.
    """
    readers, notes = dict[str, Reader](), list[str]()
    for name, taps in frozen_taps(stage, networks).items():
        if store is not None and store.taps >= set(taps):
            readers[name] = _stored(store if engine.device.type == "cpu" else Resident(store, engine.device))
        else:
            readers[name], note = make(networks[name], taps, inputs, engine)
            notes += [note] if note else []
    return readers, tuple(notes)


def frozen_taps(stage: Stage, networks: Networks) -> dict[str, tuple[Tap, ...]]:
    """What a stage reads of the networks that do not learn in it, by the network's name."""
    frozen = [name for name in networks if name not in stage.networks]
    found = {name: tuple(tap for tap in stage.reads if tap.source == name) for name in frozen}
    return {name: taps for name, taps in found.items() if taps}


class Resident:
    """Outputs whose current view is on a device: reading rows from the host at each step would wait for it.

    An epoch reads one view, so a view is copied once an epoch.

    Args:
        outputs: what is read, in the host's memory.
        device: where the rows are needed, and where the index is.
    """

    def __init__(self, outputs: Outputs, device: torch.device) -> None:
        self.taps, self.rows = outputs.taps, outputs.rows
        self._outputs, self._device = outputs, device
        self._view, self._there = -1, dict[Tap, Tensor]()

    def read(self, index: Tensor, view: int) -> Mapping[Tap, Tensor]:
        """As `limbeck.core.Outputs.read`, on the device."""
        if view != self._view:
            self._there = {}  # before the next is copied: two views need not fit
            starts = range(0, self.rows, CHUNK)
            chunks = [torch.arange(start, min(start + CHUNK, self.rows)) for start in starts]
            parts = [self._outputs.read(chunk, view) for chunk in chunks]
            self._there = {tap: torch.cat([part[tap] for part in parts]).to(self._device) for tap in self.taps}
            self._view = view
        return {tap: values[index] for tap, values in self._there.items()}


def _compiled(network: nn.Module, taps: tuple[Tap, ...], engine: Engine) -> Reader:
    from limbeck.train.compile import compiled_reader  # the compiler takes a second to import

    made: list[Callable[[Tensor], Mapping[Tap, Tensor]]] = []

    def read(batch: Batch) -> Mapping[Tap, Tensor]:
        with engine.autocast():
            if not made:
                made.append(compiled_reader(network, batch.inputs, taps))
            return made[0](batch.inputs)

    return read


def _stored(store: Outputs) -> Reader:
    return lambda batch: store.read(batch.index, batch.view)
