"""One split, batch by batch, from memory."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from limbeck.core import Batch, LimbeckError
from limbeck.data.keys import Purpose, key
from limbeck.data.scaling import coefficients, scaled
from limbeck.data.split import Split
from limbeck.data.views import NONE, Augment, augment


class Batches:
    """The batches of an epoch; calling with the epoch's number iterates over them.

    With ``shuffle`` the order is a pure function of (seed, epoch), every image is augmented as view number
    ``epoch``, and a last batch of one single sample is left out, because BatchNorm cannot train on it; which sample
    that is changes from epoch to epoch. Without it samples come in order, all of them, unchanged and as view 0.

    ``batch.index`` is the sample's place in the split. The samples are moved to the device once, as they are
    (a uint8 image stays 1 byte a value); choosing, augmenting and normalising a batch all happen there.

    Args:
        split: the samples.
        batch_size: samples a batch, at least 1.
        seed: of order and augmentation.
        mean: as in `normalise`.
        std: as in `normalise`.
        augment: what may happen to the images.
        shuffle: for training; see above.
        device: where the batches live.

    Raises:
        LimbeckError: the batch size is less than 1; mean or std do not fit; shuffling leaves no batch at all; the
            inputs cannot be augmented so.
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
    ) -> None:
        if batch_size < 1:
            raise LimbeckError(f"the batch size is {batch_size}; allowed are 1 and greater")
        if shuffle and len(split) == 1 < batch_size:
            raise LimbeckError(
                "a single sample cannot be shuffled into batches; allowed are 2 and more, or batch size 1"
            )
        left_out = shuffle and len(split) % batch_size == 1
        self.samples = len(split) - left_out
        self._batch_size, self._seed, self._shuffle, self._augment = batch_size, seed, shuffle, augment
        self._inputs, self._targets = split.inputs.to(device), split.targets.to(device)
        self._scaling = coefficients(self._inputs, mean, std)
        if shuffle:
            self._view(
                torch.arange(0, device=device), 0
            )  # what cannot be augmented is refused now, not in the first epoch

    def __len__(self) -> int:
        return -(-self.samples // self._batch_size)

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, counted from 0."""
        order = self._order(epoch).to(self._inputs.device)
        for start in range(0, self.samples, self._batch_size):
            index = order[start : start + self._batch_size]
            inputs = self._view(index, epoch) if self._shuffle else self._inputs[index]
            yield Batch(scaled(inputs, self._scaling), self._targets[index], index, epoch if self._shuffle else 0)

    def sweep(self) -> Iterator[Batch]:
        """Every sample once, in order, unchanged and as view 0."""
        for start in range(0, len(self._targets), self._batch_size):
            index = torch.arange(start, min(start + self._batch_size, len(self._targets)), device=self._inputs.device)
            yield Batch(scaled(self._inputs[index], self._scaling), self._targets[index], index, 0)

    def _view(self, index: Tensor, view: int) -> Tensor:
        return augment(self._inputs[index], index, options=self._augment, seed=self._seed, view=view)

    def _order(self, epoch: int) -> Tensor:
        if not self._shuffle:
            return torch.arange(len(self._targets))
        generator = torch.Generator().manual_seed(key(Purpose.ORDER, self._seed, epoch))
        return torch.randperm(len(self._targets), generator=generator)
