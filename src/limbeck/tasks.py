"""The kinds of problem: what a network returns, its losses, and how good it is."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from limbeck.core import LimbeckError, Loss
from limbeck.data import Data
from limbeck.data.bounds import check_memory
from limbeck.data.targets import UNITS, TaskName
from limbeck.evaluate import Figures, metrics
from limbeck.evaluate.landmarks import landmark_metrics
from limbeck.evaluate.multi_label import multi_label_metrics
from limbeck.evaluate.own_metric import OwnMetric
from limbeck.evaluate.regression import regression_metrics
from limbeck.evaluate.segmentation import segmentation_metrics
from limbeck.methods import task_losses

OUTPUTS_HELD = 3
"""The outputs of a split that are in memory together: the teacher's, and the student's in parts and joined."""


@dataclass(frozen=True)
class Shown:
    """How one of a task's figures is shown."""

    key: str  # the field of the task's figures
    label: str  # in tables and sentences
    percent: bool = False  # whether it is shown as a percentage
    falls: bool = False  # whether lower is better
    digits: int = 4  # after the point

    def score(self, value: float) -> float:
        """The value, or its negative, so that greater is better."""
        return -value if self.falls else value

    def number(self, value: float) -> str:
        """The value as a number, without ``%``."""
        return f"{100 * value:.2f}" if self.percent else f"{value:.{self.digits}f}"

    def text(self, value: float) -> str:
        """The value with ``%`` if it is shown as a percentage."""
        return self.number(value) + " %" * self.percent


@dataclass(frozen=True)
class Task:
    """All that depends on the kind of problem."""

    figures: Callable[..., Figures]
    """As `limbeck.evaluate.metrics`: (outputs, targets, *, teacher_logits, name, split, files) to figures."""

    headline: Shown
    """The figure by which networks are compared."""

    others: tuple[Shown, ...]
    """The other figures in the table of results."""

    constant: Callable[[Tensor, int], Tensor] | None = None
    """Targets (N, ...) and the number of classes to the outputs of one sample that fit the targets best if they do not
    depend on the input. None for classification, whose chance is computed from counts."""

    places: bool = False
    """Whether a network returns its outputs for every pixel, (outputs, H, W)."""

    hard_loss: Loss | None = None
    """As `limbeck.core.Setup.hard_loss`."""

    soft_loss: Loss | None = None
    """As `limbeck.core.Setup.soft_loss`."""

    own_metric: OwnMetric | None = None
    """A metric of the user, which is computed on the test split."""

    def check_data(self, data: Data) -> None:
        """Raise LimbeckError if the data has nothing to learn, or a split on which networks cannot be measured."""
        unit = UNITS.get(data.task, "class")
        least = 1 if data.task in UNITS else 2
        if len(data.classes) < least:
            raise LimbeckError(
                f"the data has {len(data.classes)} {unit}, so there is nothing to learn: it takes {least} or more"
            )
        splits = {"validation": data.validation, "test": data.test}
        if self.places:
            count = max(map(len, splits.values()))
            check_memory(
                OUTPUTS_HELD * 4 * count * len(data.outputs) * math.prod(data.shape[1:]),
                f"the outputs of teacher and student for {count:,} images of one split",
                "use fewer images (limit) or smaller ones (size)",
            )
            return
        for name, split in splits.items():
            constant = self.by_chance(data, split.targets)
            try:
                if constant is not None and len(split):
                    self.figures(constant, split.targets)
            except LimbeckError as error:
                raise LimbeckError(f"networks cannot be measured on the {name} split: {error}") from error

    def check_output(self, name: str, shape: tuple[int, ...], data: Data) -> None:
        """Raise LimbeckError unless this is the shape of a network's output for one sample."""
        expected = (len(data.outputs), *(data.shape[1:] if self.places else ()))
        if shape != expected:
            raise LimbeckError(
                f"the {name} gives {shape} a sample, but the data has {len(data.classes)} classes"
                if data.task == "classification"
                else f"the {name} gives {shape} a sample; allowed for {data.task} of this data is {expected}"
            )

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """The headline's value."""
        return float(getattr(self.figures(outputs, targets), self.headline.key))

    def by_chance(self, data: Data, targets: Tensor) -> Tensor | None:
        """The best outputs (N, ...) for targets (N, ...) that are the same for all; None for classification."""
        if self.constant is None:
            return None
        outputs = self.constant(targets, len(data.classes))
        return outputs.expand(len(targets), *outputs.shape)


def _frequent_labels(targets: Tensor, _: int) -> Tensor:
    return targets.mean(dim=0).logit(eps=1e-6)


def _mean(targets: Tensor, _: int) -> Tensor:
    return targets.mean(dim=0).flatten()


def _frequent_pixels(targets: Tensor, classes: int) -> Tensor:
    counted = torch.bincount(targets.flatten(), minlength=classes)[:classes]
    return (counted + 0.5).log()[:, None, None].expand(-1, *targets.shape[1:])


def _distance(student: Tensor, *teachers: Tensor, temperature: float, temperature_squared: bool = True) -> Tensor:
    """`task_losses.output_distance`, which has no temperature."""
    return task_losses.output_distance(student, *teachers)


class Classification(Task):
    """Its score of an epoch is computed without the other figures."""

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """The accuracy."""
        return (outputs.argmax(dim=1) == targets).double().mean().item()


HARD_LOSSES: Mapping[str, Loss] = {"l2": task_losses.l2, "smooth_l1": task_losses.smooth_l1, "wing": task_losses.wing}
"""The losses of numbers and points that a recipe names as ``task: {hard_loss: ...}``."""

TASKS: Mapping[TaskName, Task] = {
    "classification": Classification(
        metrics,
        Shown("accuracy", "accuracy", percent=True),
        (Shown("errors", "errors of", falls=True, digits=1),),
    ),
    "multi_label": Task(
        multi_label_metrics,
        Shown("mean_average_precision", "mAP", percent=True),
        (Shown("f1_macro", "F1 macro", percent=True), Shown("exact_match", "exact match", percent=True)),
        _frequent_labels,
        hard_loss=task_losses.binary_cross_entropy,
        soft_loss=task_losses.binary_soft_loss,
    ),
    "regression": Task(
        regression_metrics,
        Shown("rmse", "RMSE", falls=True),
        (Shown("mean_absolute_error", "MAE", falls=True), Shown("r2", "R²")),
        _mean,
        hard_loss=task_losses.l2,
        soft_loss=_distance,
    ),
    "landmarks": Task(
        landmark_metrics,
        Shown("nme", "NME", percent=True, falls=True),
        (Shown("failure_rate", "failures", percent=True, falls=True), Shown("auc", "AUC", percent=True)),
        _mean,
        hard_loss=task_losses.l2,
        soft_loss=_distance,
    ),
    "segmentation": Task(
        segmentation_metrics,
        Shown("miou", "mIoU", percent=True),
        (Shown("accuracy", "accuracy", percent=True),),
        _frequent_pixels,
        places=True,
        hard_loss=task_losses.places_cross_entropy,
        soft_loss=task_losses.places_soft_loss,
    ),
}
"""By name."""


def task_of(data: Data) -> Task:
    """The kind of problem that data is of, with the options that the user gave for it."""
    task, options = TASKS[data.task], data.task_options
    if "hard_loss" in options:
        task = replace(task, hard_loss=options["hard_loss"])
    if "eyes" in options:
        task = replace(task, figures=partial(task.figures, eyes=options["eyes"]))
    if "metric" in options:
        task = replace(task, own_metric=options["metric"])
    return task
