"""Targets that are not one class index a sample: label smoothing, mixup, CutMix, unlabelled samples, sample weights."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core import Batch, LimbeckError
from limbeck.data.keys import Purpose, key
from limbeck.data.split import Split


@dataclass(frozen=True)
class SoftTargets:
    """Makes targets (N, K) float32: the probabilities of the classes, times the weight of the sample.

    The row of an unlabelled sample is 0. mixup is that of Zhang et al. (2018), CutMix that of Yun et al. (2019), label
    smoothing that of Szegedy et al. (2016). Mixing is done by torchvision, whose CutMix has the box of the authors'
    code: each batch is mixed with itself, rolled by one sample, and has one weight, drawn from Beta(alpha, alpha). With
    both alphas, each batch uses one of the two, at random.

    Raises:
        LimbeckError: a value is out of range.
    """

    classes: int  # K
    label_smoothing: float = 0.0  # the share of the probability that is spread evenly over all classes
    mixup: float = 0.0  # alpha; 0: off
    cutmix: float = 0.0  # alpha; 0: off
    unlabelled: bool = False  # whether the training set has unlabelled samples
    weighted: bool = False  # whether it has sample weights

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise LimbeckError(f"label_smoothing is {self.label_smoothing}; allowed are numbers in [0, 1)")
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise LimbeckError(f"{name} is {value}; allowed are 0 (off) and greater numbers")

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why a target is not one class index."""
        named = {"unlabelled": "unlabelled samples", "weighted": "sample weights"}
        options = ("label_smoothing", "mixup", "cutmix", "unlabelled", "weighted")
        return tuple(named.get(name, name) for name in options if getattr(self, name))

    @property
    def mixing(self) -> str:
        """The options that mix inputs, in words; empty if none does."""
        return " and ".join(name for name in ("mixup", "cutmix") if getattr(self, name))

    def rows(self, targets: Tensor, weights: Tensor | None) -> Tensor:
        """The targets (N, K) of class indices (N,), -1 for no label, and sample weights (N,); not mixed."""
        rows = F.one_hot(targets.clamp(min=0), self.classes).float() * (targets >= 0)[:, None]
        if weights is not None:
            rows *= weights[:, None]
        return rows * (1 - self.label_smoothing) + rows.sum(1, keepdim=True) * (self.label_smoothing / self.classes)

    def check(self, split: Split) -> None:
        """Raise LimbeckError if samples cannot be mixed so."""
        if self.cutmix and split.inputs.dim() != 4:
            shape = tuple(split.inputs.shape)
            raise LimbeckError(f"cutmix is {self.cutmix}, but the inputs have shape {shape}; allowed are (N, C, H, W)")

    def mixed(self, seed: int, epoch: int, number: int, batch: Batch) -> Batch:
        """The batch with this number in an epoch after mixing; a pure function of these arguments."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key(Purpose.MIX, seed, epoch, number))
            whole = batch.inputs if batch.inputs.dim() == 4 else batch.inputs.flatten(1)[..., None, None]
            inputs, targets = self._mix(whole, batch.targets)
        return replace(batch, inputs=inputs.view(batch.inputs.shape), targets=targets)

    @cached_property
    def _mix(self) -> Any:
        from torchvision.transforms import v2  # type: ignore[import-untyped]  # takes a second to import

        found = [make(alpha=alpha) for make, alpha in ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix)) if alpha]
        return v2.RandomChoice(found)


def soft_targets(split: Split, classes: int, **options: float) -> SoftTargets | None:
    """How to make the targets of a training set; None if they are class indices. The options are `SoftTargets`'.

    Raises:
        LimbeckError: an option is out of range.
    """
    made = SoftTargets(
        classes, **options, unlabelled=bool((split.targets < 0).any()), weighted=split.weights is not None
    )
    return made if made.reasons else None
