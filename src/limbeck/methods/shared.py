"""Helpers of several methods: tensors brought to one size or length, connectors, learning rates, checks."""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck.core import LimbeckError, Loss, MakeOptimizer, Schedule, Setup
from limbeck.schedules import linear


def unit(vectors: Tensor) -> Tensor:
    """The vectors of the last dimension, scaled to length 1. Vectors no longer than 1e-12 are left as they are."""
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.div(vectors, lengths.where(lengths > 1e-12, 1.0))


def pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps (N, C, H, W) at the smaller height and the smaller width, by adaptive average pooling.

    For square maps this is what RepDistiller does: the larger map is pooled to the size of the smaller.

    Raises:
        LimbeckError: a tensor is not a map.
    """
    for maps in (student, teacher):
        if maps.dim() != 4:
            raise LimbeckError(f"expected a map (N, C, H, W), got a tensor of shape {tuple(maps.shape)}")
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    pooled = [maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size) for maps in (student, teacher)]
    return pooled[0], pooled[1]


def matched(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """`pooled_alike` for maps of equal batch size and channels.

    Raises:
        LimbeckError: the maps differ in batch or channels.
    """
    if student.shape[:2] != teacher.shape[:2]:
        raise LimbeckError(f"maps of {tuple(student.shape)} and {tuple(teacher.shape)} differ in batch or channels")
    return pooled_alike(student, teacher)


def over_layers(loss: Loss, *features: Tensor) -> Tensor:
    """The sum of the loss over pairs of layers. `features` are the student's tensors, then the teacher's."""
    half = len(features) // 2
    pairs = zip(features[:half], features[half:], strict=True)
    return torch.stack([loss(student, teacher) for student, teacher in pairs]).sum()


class OverLayers(nn.Module):
    """The sum of losses with parameters, one for each pair of layers."""

    def __init__(self, losses: Sequence[nn.Module]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)

    def forward(self, *features: Tensor) -> Tensor:
        """The sum, a scalar, for the student's tensors and then the teacher's."""
        half = len(self.losses)
        values = [loss(features[index], features[half + index]) for index, loss in enumerate(self.losses)]
        return torch.stack(values).sum()


def connector(setup: Setup, source: Sequence[int], target: Sequence[int], *, method: str) -> nn.Sequential:
    """A 1x1 convolution without bias and a BatchNorm, (N, C, H, W) to (N, C', H, W), with the authors' initialisation.

    Raises:
        LimbeckError: the BatchNorm would see one value per channel.
    """
    check_norm(setup, source, method=method)
    convolution = nn.Conv2d(source[0], target[0], 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(target[0]))


def rated(make: MakeOptimizer, factors: Mapping[nn.Parameter, float]) -> MakeOptimizer:
    """The optimizer with its learning rate multiplied by a factor for each of these parameters, and by 1 for others."""
    if all(factor == 1 for factor in factors.values()):
        return make

    def made(parameters: Iterable[nn.Parameter]) -> Optimizer:
        optimizer = make(parameters)
        groups = []
        for options in optimizer.param_groups:
            parts: dict[float, list[nn.Parameter]] = {}
            for parameter in options["params"]:
                parts.setdefault(factors.get(parameter, 1.0), []).append(parameter)
            groups += [
                {**options, "params": part, "lr": factor * options["lr"]} for factor, part in sorted(parts.items())
            ]
        optimizer.param_groups = groups
        return optimizer

    return made


def several_samples(setup: Setup, method: str) -> None:
    """Raise LimbeckError unless a batch has at least two samples."""
    if setup.batch_size < 2:
        raise LimbeckError(
            f"{method} compares the samples of a batch with each other: batch_size is {setup.batch_size}, "
            "it must be 2 or more"
        )


def class_indices(setup: Setup, method: str) -> None:
    """Raise LimbeckError unless the target of every training sample is one class index."""
    if setup.soft_targets:
        raise LimbeckError(
            f"{method} needs the class index of each training sample, so it does not work with "
            f"{' and '.join(setup.soft_targets)}: choose a method that reads labels only in its hard term, such as kd"
        )


def check_norm(setup: Setup, shape: Sequence[int], *, method: str) -> None:
    """Raise LimbeckError if a BatchNorm on tensors of this shape (without N) would see one value per channel."""
    if setup.batch_size == 1 and all(side == 1 for side in shape[1:]):
        raise LimbeckError(
            f"{method} applies a BatchNorm to {tuple(shape)}, which needs at least 2 samples: batch_size is 1"
        )


def check_above_zero(name: str, value: float) -> None:
    """Raise LimbeckError unless the value is above 0."""
    if not value > 0:
        raise LimbeckError(f"{name} is {value}: it must be above 0")


def check_at_least(least: int, name: str, value: float) -> None:
    """Raise LimbeckError if the value is below the least one that is allowed."""
    if not value >= least:
        raise LimbeckError(f"{name} is {value}: it must be at least {least}")


def as_schedule(weight: float | Schedule) -> Schedule:
    """A weight as a function of the stage's progress."""
    return (lambda progress: weight) if isinstance(weight, int | float) else weight


def rising(weight: float | Schedule, warmup: float) -> float | Schedule:
    """The weight times a factor that rises linearly from 0 to 1 over a fraction ``warmup`` of the stage.

    Raises:
        LimbeckError: the fraction is not at least 0 and below 1.
    """
    if not 0 <= warmup < 1:
        raise LimbeckError(f"warmup is {warmup}: it is a fraction of the stage, at least 0 and below 1")
    if warmup == 0 or weight == 0:
        return weight
    full, rise = as_schedule(weight), linear(start=0.0, end=1.0, until=warmup)
    return lambda progress: full(progress) * rise(progress)


def stage_epochs(setup: Setup, name: str, epochs: int | None, *, least: int = 1) -> int:
    """The epochs of a stage: the value of the option of this name, or the recipe's epochs if it is None.

    Raises:
        LimbeckError: the value is below ``least``.
    """
    if epochs is None:
        return setup.epochs
    check_at_least(least, name, epochs)
    return epochs
