"""What a training works with: data, how it is trained, and the engine."""

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core import Batch, LimbeckError, MakeOptimizer, Schedule
from limbeck.data import Augment, Batches, Data, Split, normalise
from limbeck.data.soft_targets import SoftTargets
from limbeck.train.engine import Engine
from limbeck.train.regime import PLAIN, Regime

NO_AUGMENTATION = Augment()


@dataclass(frozen=True)
class Training:
    """How a network is trained; ``exclude`` holds the classes left out of its training set.

    With ``views`` the epochs take turns over so many augmented views of each sample, which are those of ``view_seed``.

    Raises:
        LimbeckError: the epochs or the batch size are not a whole number of at least 1.
    """

    epochs: int
    batch_size: int
    optimizer: MakeOptimizer
    schedule: Schedule
    augment: Augment = NO_AUGMENTATION
    exclude: tuple[int, ...] = ()
    views: int | None = None
    view_seed: int | None = None
    soft: SoftTargets | None = None  # None: the targets are class indices
    balanced: bool = False
    regime: Regime = PLAIN

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("batch_size", self.batch_size)):
            if not isinstance(value, int) or value < 1:
                raise LimbeckError(f"{name} is {value!r}: allowed are whole numbers from 1")


def training_batches(data: Data, training: Training, *, seed: int, engine: Engine) -> Batches:
    """The training set in the order and the augmented views that the seed gives."""
    return Batches(
        data.train.without(training.exclude),
        batch_size=training.batch_size,
        seed=seed,
        mean=data.mean,
        std=data.std,
        augment=training.augment,
        views=training.views,
        view_seed=training.view_seed,
        soft=training.soft,
        balanced=training.balanced,
        device=engine.device,
        part=(engine.processes.rank, engine.processes.count),
    )


@dataclass(frozen=True)
class Workspace:
    """Data, training and engine: what nearly every part of a run needs."""

    data: Data
    training: Training
    engine: Engine

    @property
    def samples(self) -> Split:
        """The training set, without the classes that are left out."""
        return self.data.train.without(self.training.exclude)

    def batches(self, seed: int) -> Batches:
        """The training set in the order and the augmented views that the seed gives."""
        return training_batches(self.data, self.training, seed=seed, engine=self.engine)

    def spread(self, count: int) -> Batch:
        """``count`` samples on the device, neither augmented nor mixed, spread evenly over the labelled ones.

        If no sample has a label, they are spread over all.
        """
        split, device = self.samples, self.engine.device
        labelled = torch.nonzero(split.labels >= 0).flatten()
        places = labelled if len(labelled) else torch.arange(len(split))
        batch = _batch(self.data, split, places[torch.arange(count) * len(places) // count], self.training.soft)
        return Batch(batch.inputs.to(device), batch.targets.to(device), batch.index.to(device), 0)


def example_batch(data: Data, most: int = 2, soft: SoftTargets | None = None) -> Batch:
    """The first training samples, neither augmented nor mixed, to try networks on."""
    return _batch(data, data.train, torch.arange(min(most, len(data.train))), soft)


def _batch(data: Data, split: Split, index: Tensor, soft: SoftTargets | None) -> Batch:
    targets = split.targets[index]
    if soft is not None:
        targets = soft.rows(targets, None if split.weights is None else split.weights[index])
    return Batch(normalise(split.inputs[index], data.mean, data.std), targets, index, 0)
