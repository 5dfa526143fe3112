"""The batches of one split, from memory or from disk."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from limbeck.core import Batch, LimbeckError
from limbeck.data.dividing import batch_sizes, part_of
from limbeck.data.images import Images
from limbeck.data.keys import Purpose, key
from limbeck.data.scaling import coefficients, scaled
from limbeck.data.soft_targets import SoftTargets
from limbeck.data.split import Split
from limbeck.data.streaming import Stream
from limbeck.data.views import NONE, Augment, change, change_masks, check, check_points, draws

TOGETHER = 2**18
"""Bytes of normalised samples up to which batches in memory are made together and then divided.

Making a small batch alone takes most of its time for calling operations: 50 of 640 microseconds of a tiny step.
"""


class Batches:
    """The batches of an epoch; calling with the epoch's number iterates over them.

    With ``shuffle``, the order is a pure function of (seed, epoch), every image is augmented as view number ``epoch``
    (with ``views``, ``epoch % views``), and a last batch of a single sample is left out, because BatchNorm cannot train
    on it; which one changes from epoch to epoch. Without ``shuffle``, all samples come in order, unchanged, as view 0.
    With ``balanced``, the numbers of samples of the classes in an epoch differ by at most one. The length of the epoch
    does not change: some samples are left out or repeated. A repeated sample has the same view each time.
    Images of tar files may be shuffled a few files at a time (`Images.together`).
    In every pass in order, the last two batches share evenly if one sample would be left
    (`limbeck.data.dividing.batch_sizes`).

    The view of a sample is a pure function of (view_seed, view, index), for any batch size, order and number of
    workers. ``batch.index`` holds the places of the samples in the split.

    Samples in memory are moved to the device once and keep their type (uint8 is 1 byte a value); a batch is chosen,
    augmented and normalised on the device. Images on disk are decoded, and transformed if their split has a transform,
    by worker processes a few batches ahead (`limbeck.data.streaming`); they are augmented and normalised on the device.

    Args:
        split: the samples.
        batch_size: samples a batch, at least 1.
        seed: of the order.
        mean: as in `normalise`.
        std: as in `normalise`.
        augment: random changes of the images.
        shuffle: for training, see above.
        device: the device of the batches.
        views: number of views, at least 1; None: one view an epoch.
        view_seed: of the views; None: ``seed``.
        soft: makes the targets (N, K) and, with ``shuffle``, mixes each batch as a pure function of (seed, epoch,
            number of the batch). None: targets are class indices.
        balanced: draw each class equally often, see above.
        part: the number of this process, from 0, and of all processes. The batches have the samples of this process,
            see `limbeck.data.dividing.part_of`.

    Raises:
        LimbeckError: mean or std do not fit; shuffling leaves no batch; the inputs cannot be augmented or mixed so;
            ``balanced``, but a sample is unlabelled. In a pass: an image on disk cannot be read.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Augment = NONE,
        shuffle: bool = True,
        device: torch.device | str = "cpu",
        views: int | None = None,
        view_seed: int | None = None,
        soft: SoftTargets | None = None,
        balanced: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if shuffle and len(split) == 1 < batch_size:
            raise LimbeckError(
                "a single sample cannot be shuffled into batches; allowed are 2 and more, or batch size 1"
            )
        if shuffle and augment != NONE:  # an error here comes before the first epoch
            check(split.inputs.shape, augment)
            check_points(split.targets, augment)
        if soft is not None:
            soft.check(split, batch_size)
        if balanced and split.targets.dtype != torch.int64:
            raise LimbeckError("balanced draws samples by their class, but the targets are not classes")
        unlabelled = int((split.targets < 0).sum()) if balanced else 0
        if unlabelled:
            raise LimbeckError(f"balanced draws samples by their class, but {unlabelled:,} samples are unlabelled")
        self.samples = len(split) - (shuffle and len(split) % batch_size == 1)
        least = min(min(batch_sizes(count, batch_size), default=1) for count in (self.samples, len(split)))
        if least < part[1]:
            raise LimbeckError(
                f"a batch has {least} samples for {part[1]} processes, but each process needs at least one sample of "
                f"every batch: change batch_size, which is {batch_size}"
            )
        self._batch_size, self._shuffle, self._augment = batch_size, shuffle, augment
        self._seed, self._view_seed, self._views = seed, seed if view_seed is None else view_seed, views
        self._device, self._targets = torch.device(device), split.targets.to(device)
        self._soft, self._balanced, self._part = soft, balanced, part
        self._weights = None if split.weights is None else split.weights.to(device)
        self._scaling = coefficients(split.inputs, mean, std, device=self._device)
        self._inputs = split.inputs
        self._read: Callable[[Tensor, Sequence[int], int | None], Iterator[Tensor]]  # order, sizes and view to batches
        if isinstance(split.inputs, Images):
            self._shards = split.inputs.shards() if split.inputs.together else torch.empty(0)
            self._read = Stream(split.inputs, seed=self._view_seed, device=self._device)
        else:
            held = split.inputs.to(self._device).contiguous()  # choosing is fast where a sample is one block of memory
            together = max(1, TOGETHER // (4 * max(1, held[:1].numel()) * batch_size))
            self._read = functools.partial(_chosen, held, together)

    def __len__(self) -> int:
        return -(-self.samples // self._batch_size)

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, counted from 0."""
        view = epoch if self._views is None else epoch % self._views
        order = self._order(epoch)[: self.samples]
        if self._shuffle and self._soft is not None and self._soft.mixing:  # the samples of a whole batch
            batches = self._pass(order, view, (0, 1))
            mixed = map(functools.partial(self._soft.mixed, self._seed, epoch), itertools.count(), batches)
            return mixed if self._part == (0, 1) else map(self._own, mixed)
        return self._pass(order, view if self._shuffle else None, self._part)

    def sweep(self) -> Iterator[Batch]:
        """Every sample once, in order, unchanged and as view 0."""
        return self._pass(torch.arange(len(self._targets)), None, self._part)

    def view(self, number: int, *, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """The samples from ``start`` up to ``stop``, or to the last, once and in order, as this view.

        Each is identical, to the bit, to the sample that an epoch of this view trains on.

        Raises:
            LimbeckError: there are no such samples.
        """
        count = len(self._targets)
        stop = count if stop is None else stop
        if not 0 <= start <= stop <= count:
            raise LimbeckError(f"there are no samples {start} to {stop}; allowed are 0 to {count}, in this order")
        return self._pass(torch.arange(start, stop), number, self._part)

    def example_inputs(self) -> Tensor:
        """The inputs of the first two samples (of one, if there is one), not augmented, to try networks on."""
        inputs = self._inputs[torch.arange(min(2, len(self._inputs)))].to(self._device)
        return scaled(inputs.contiguous(), self._scaling)

    def _pass(self, order: Tensor, view: int | None, part: tuple[int, int]) -> Iterator[Batch]:
        """These samples in this order, as this view, or unchanged. Small batches share memory, not values."""
        wholes = sizes = batch_sizes(len(order), self._batch_size)
        if part != (0, 1):
            parts = [whole[part_of(len(whole), *part)] for whole in torch.split(order, wholes)]
            order, sizes = torch.cat(parts), [len(one) for one in parts]
        there, start, both = order.to(self._device), 0, zip(sizes, wholes, strict=True)
        numbers = None
        if view is not None and self._augment != NONE:
            # those of a whole pass at once: one by one is a third of the time
            numbers = draws(there, options=self._augment, seed=self._view_seed, view=view)
        for inputs in self._read(order, sizes, view):
            stop = start + len(inputs)
            index = there[start:stop]
            targets = self._targets.index_select(0, index)
            if numbers is not None:
                inputs = change(inputs, numbers[:, start:stop], options=self._augment)
                if targets.dtype == torch.uint8:
                    targets = change_masks(targets, numbers[:, start:stop], options=self._augment)
            if self._soft is not None:
                targets = self._soft.rows(targets, None if self._weights is None else self._weights[index])
            several = Batch(scaled(inputs, self._scaling), targets, index, view or 0)
            yield from _parts(several, both)
            start = stop

    def _own(self, batch: Batch) -> Batch:
        own = part_of(len(batch.index), *self._part)
        return Batch(batch.inputs[own], batch.targets[own], batch.index[own], batch.view, len(batch.index))

    def _order(self, epoch: int) -> Tensor:
        if not self._shuffle:
            return torch.arange(len(self._targets))
        generator = torch.Generator().manual_seed(key(Purpose.ORDER, self._seed, epoch))
        order = torch.randperm(len(self._targets), generator=generator)
        if isinstance(self._inputs, Images) and self._inputs.together:
            order = _by_shard(order, self._shards, self._inputs.together, generator)
        return _balanced(order, self._targets.cpu(), generator) if self._balanced else order


def _by_shard(order: Tensor, shards: Tensor, together: int, generator: torch.Generator) -> Tensor:
    """A random order (N,), so that the samples of ``together`` shards, chosen at random, come one after the other."""
    places = torch.randperm(int(shards.max()) + 1, generator=generator) // together
    return order[torch.argsort(places[shards[order]], stable=True)]


def _balanced(order: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
    """N places, from a random order (N,). The counts of the classes differ by at most 1, as do those in a class."""
    by_class = order[torch.argsort(targets[order], stable=True)]
    _, sizes = torch.unique(targets, return_counts=True)
    starts = sizes.cumsum(0) - sizes
    places = torch.arange(len(order))
    label = torch.randperm(len(sizes), generator=generator)[places % len(sizes)]
    chosen = by_class[starts[label] + places // len(sizes) % sizes[label]]
    return chosen[torch.randperm(len(order), generator=generator)]


def _parts(batch: Batch, sizes: Iterator[tuple[int, int]]) -> Iterator[Batch]:
    """The parts of a batch, in the next sizes: of this process, and of the whole batch."""
    start = 0
    while start < len(batch.index):
        size, total = next(sizes)
        part = slice(start, start + size)
        yield Batch(batch.inputs[part], batch.targets[part], batch.index[part], batch.view, total)
        start = part.stop


def _chosen(held: Tensor, together: int, order: Tensor, sizes: Sequence[int], _: int | None) -> Iterator[Tensor]:
    """Copies of samples in memory, ``together`` batches at a time."""
    stretches = [sum(sizes[first : first + together]) for first in range(0, len(sizes), together)]
    for index in torch.split(order.to(held.device), stretches):
        yield held.index_select(0, index)
