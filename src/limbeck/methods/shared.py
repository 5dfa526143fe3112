"""What several methods share: tensors made comparable, the terms on the logits, connectors, checks."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck.core import TARGETS, LimbeckError, Loss, MakeOptimizer, Schedule, Setup, Term, from_student
from limbeck.methods.alone import hard_loss
from limbeck.methods.kd import soft_loss


def unit(vectors: Tensor) -> Tensor:
    """The vectors of the last dimension at length 1; one of length 0 (up to 1e-12) stays, and so does its gradient."""
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.div(vectors, lengths.where(lengths > 1e-12, 1.0))


def pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps (N, C, H, W) at the smaller height and the smaller width, by adaptive average pooling.

    Square maps are treated as in RepDistiller, where the higher of the two is pooled to the other's size.

    Raises:
        LimbeckError: a tensor is no map.
    """
    for one in (student, teacher):
        if one.dim() != 4:
            raise LimbeckError(f"a map (N, C, H, W) is compared here, got {tuple(one.shape)}")
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    pooled = [one if one.shape[2:] == size else F.adaptive_avg_pool2d(one, size) for one in (student, teacher)]
    return pooled[0], pooled[1]


def matched(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """`pooled_alike`, of maps that must agree in batch and channels.

    Raises:
        LimbeckError: they do not.
    """
    if student.shape[:2] != teacher.shape[:2]:
        raise LimbeckError(f"maps of {tuple(student.shape)} and {tuple(teacher.shape)} differ in batch or channels")
    return pooled_alike(student, teacher)


def over_layers(loss: Loss, *features: Tensor) -> Tensor:
    """The loss summed over pairs of layers: first the student's tensors, shallow to deep, then the teacher's."""
    half = len(features) // 2
    pairs = zip(features[:half], features[half:], strict=True)
    return torch.stack([loss(student, teacher) for student, teacher in pairs]).sum()


def label_terms(
    setup: Setup, *, hard: float | Schedule, soft: float | Schedule = 0.0, temperature: float = 1.0
) -> dict[str, Term]:
    """The terms on the logits that stand beside a term on features: labels, and soft targets.

    Raises:
        LimbeckError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise LimbeckError(f"temperature is {temperature}: it must be above 0")
    return {
        "hard": Term(hard_loss, (from_student(), TARGETS), hard),
        "soft": Term(partial(soft_loss, temperature=temperature), (from_student(), *setup.teacher_logits), soft),
    }


def connector(setup: Setup, source: Sequence[int], target: Sequence[int], *, method: str) -> nn.Sequential:
    """A 1x1 convolution without bias and a BatchNorm, (N, C, H, W) to (N, C', H, W), initialised as the authors do.

    Raises:
        LimbeckError: the BatchNorm would see one value a channel.
    """
    check_norm(setup, source, method=method)
    convolution = nn.Conv2d(source[0], target[0], 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(target[0]))


def rated(make: MakeOptimizer, factors: Mapping[nn.Parameter, float]) -> MakeOptimizer:
    """The optimizer with its learning rate multiplied for some parameters; of those not named the factor is 1."""
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
    """Raise LimbeckError unless a batch holds two samples to compare."""
    if setup.batch_size < 2:
        raise LimbeckError(
            f"{method} compares the samples of a batch with each other: batch_size is {setup.batch_size}, "
            "it must be 2 or more"
        )


def check_norm(setup: Setup, shape: Sequence[int], *, method: str) -> None:
    """Raise LimbeckError where a BatchNorm on tensors of this shape would have one value a channel to go by."""
    if setup.batch_size == 1 and all(side == 1 for side in shape[1:]):
        raise LimbeckError(
            f"{method} has a BatchNorm on {tuple(shape)}, which needs 2 samples or more: batch_size is 1"
        )


def check_factor(layer_factor: float) -> None:
    """Raise LimbeckError unless the factor from layer to layer is above 0."""
    if not layer_factor > 0:
        raise LimbeckError(f"layer_factor is {layer_factor}: it must be above 0")


def stage_epochs(setup: Setup, name: str, epochs: int | None) -> int:
    """The epochs of a stage: those given under the name, else the recipe's.

    Raises:
        LimbeckError: they are fewer than 1.
    """
    if epochs is not None and epochs < 1:
        raise LimbeckError(f"{name} is {epochs}: allowed are whole numbers from 1")
    return setup.epochs if epochs is None else epochs
