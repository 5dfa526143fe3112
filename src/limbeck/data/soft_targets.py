"""Targets other than one class index a sample: label smoothing, mixup, CutMix, unlabelled samples, sample weights."""

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

    The row of an unlabelled sample is 0. The sources are Zhang et al. (2018) for mixup, Yun et al. (2019) for CutMix
    and Szegedy et al. (2016) for label smoothing. torchvision mixes each batch with the same batch rolled by one
    sample. A batch has one weight, drawn from Beta(alpha, alpha). With both alphas, each batch uses one of the two at
    random. `limbeck.recipe.blocks.TrainBlock` checks the values.
    """

    classes: int  # K
    label_smoothing: float = 0.0  # the share of the probability that all classes get in equal parts; below 1
    mixup: float = 0.0  # alpha; 0: off
    cutmix: float = 0.0  # alpha; 0: off
    unlabelled: bool = False  # whether the training set has unlabelled samples
    weighted: bool = False  # whether it has sample weights

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why a target is not one class index."""
        named = {"unlabelled": "unlabelled samples", "weighted": "sample weights"}
        options = ("label_smoothing", "mixup", "cutmix", "unlabelled", "weighted")
        return tuple(named.get(name, name) for name in options if getattr(self, name))

    @property
    def mixing(self) -> str:
        """The names of the options that mix inputs, joined by "and"; empty if there are none."""
        return " and ".join(name for name in ("mixup", "cutmix") if getattr(self, name))

    def rows(self, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Targets (N, K) without mixing, from class indices (N,), -1 for no label, and sample weights (N,)."""
        rows = F.one_hot(targets.clamp(min=0), self.classes).float() * (targets >= 0)[:, None]
        if weights is not None:
            rows *= weights[:, None]
        return rows * (1 - self.label_smoothing) + rows.sum(1, keepdim=True) * (self.label_smoothing / self.classes)

    def check(self, split: Split, batch_size: int) -> None:
        """Raise LimbeckError if batches of this size cannot be mixed so."""
        if self.mixing and batch_size < 2:
            raise LimbeckError(
                f"{self.mixing} mixes the samples of a batch with each other: batch_size is {batch_size}, "
                "it must be 2 or more"
            )
        if self.cutmix and split.inputs.dim() != 4:
            shape = tuple(split.inputs.shape)
            raise LimbeckError(f"cutmix is {self.cutmix}, but the inputs have shape {shape}; allowed are (N, C, H, W)")

    def mixed(self, seed: int, epoch: int, number: int, batch: Batch) -> Batch:
        """Mix the batch with this number in an epoch; a pure function of the arguments."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key(Purpose.MIX, seed, epoch, number))
            whole = batch.inputs if batch.inputs.dim() == 4 else batch.inputs.flatten(1)[..., None, None]
            inputs, targets = self._mix(whole, batch.targets)
        return replace(batch, inputs=inputs.view(batch.inputs.shape), targets=targets)

    @cached_property
    def _mix(self) -> Any:
        from torchvision.transforms import v2  # type: ignore[import-untyped]  # takes a second to import

        kinds = ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix))
        return v2.RandomChoice([kind(alpha=float(alpha)) for kind, alpha in kinds if alpha])


def soft_targets(split: Split, classes: int, **options: float) -> SoftTargets | None:
    """The soft targets of a training set with these options of `SoftTargets`; None if targets are class indices."""
    unlabelled, weighted = bool((split.labels < 0).any()), split.weights is not None
    made = SoftTargets(classes, **options, unlabelled=unlabelled, weighted=weighted)
    return made if made.reasons else None
