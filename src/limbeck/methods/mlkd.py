"""Multi-level logit distillation: instances, batch and classes."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from limbeck.core import LimbeckError, Loss, Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.distributions import divergence, like, wide

PAPER = Paper("Jin, Wang, Lin", "Multi-Level Logit Distillation", 2023, venue="CVPR, pages 24276-24285")

Masks = Literal["select", "scale", "none"]

TEMPERATURES = (4.0, 3.0, 5.0, 2.0, 6.0)
"""The temperatures of the authors' code, in its order."""


def instance_loss(
    student: Tensor, teacher: Tensor, *, temperatures: tuple[float, ...] = TEMPERATURES, masks: Masks = "select"
) -> Tensor:
    """The sum over the temperatures of T² * KL of a sample's softened distributions, averaged over the batch.

    The paper masks the samples on which the teacher is most confident: those whose largest probability at T = 1 is
    above the median of the batch. The authors' code (Jin-Ying/Multi-Level-Logit-Distillation,
    mdistiller/distillers/KD_ours.py, 5ee473f) multiplies a mean over all samples by the mask, so the mask only scales
    the mean by the fraction of samples that are kept. No gradient flows to the teacher.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        temperatures: each above 0.
        masks: "select", as published, counts a masked sample as 0 in the mean over N. "scale", as in the code, counts
            all samples and multiplies by the fraction that is not masked. "none" counts all samples.
    """
    values = [one**2 * divergence(student, teacher, temperature=one) for one in temperatures]
    return _mean(values, wide(teacher.detach()).softmax(1).amax(dim=1), masks, student)


def batch_loss(
    student: Tensor, teacher: Tensor, *, temperatures: tuple[float, ...] = TEMPERATURES, masks: Masks = "select"
) -> Tensor:
    """The sum over the temperatures of 1/N * ||p pᵀ - q qᵀ||², where p and q are the softened distributions (N, K).

    The relations (N, N) between the samples are summed over all pairs, without T². The row of a masked sample counts
    as 0. The masks, the source and the arguments are those of `instance_loss`.
    """
    values = [(q @ q.T - p @ p.T).square().sum(dim=1) for q, p in _softened(student, teacher, temperatures)]
    return _mean(values, wide(teacher.detach()).softmax(1).amax(dim=1), masks, student)


def category_loss(
    student: Tensor, teacher: Tensor, *, temperatures: tuple[float, ...] = TEMPERATURES, masks: Masks = "select"
) -> Tensor:
    """The sum over the temperatures of 1/K * ||pᵀ p - qᵀ q||², where p and q are the softened distributions (N, K).

    The relations (K, K) between the classes are summed over all pairs, without T². The mask covers the classes whose
    probability at T = 1, summed over the batch, is above the median of the classes; the row of a masked class counts
    as 0. The source and the arguments are those of `instance_loss`.
    """
    values = [(q.T @ q - p.T @ p).square().sum(dim=1) for q, p in _softened(student, teacher, temperatures)]
    return _mean(values, wide(teacher.detach()).softmax(1).sum(dim=0), masks, student)


def mlkd(
    setup: Setup,
    *,
    hard: float | Schedule = 0.1,
    instance: float | Schedule = 0.9,
    batch: float | Schedule = 0.9,
    category: float | Schedule = 0.9,
    temperatures: tuple[float, ...] = TEMPERATURES,
    masks: Masks = "select",
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """Soft targets at several temperatures on three levels: samples, relations of samples, relations of classes.

    This method reads one view of each sample, that of the training loop. The authors train on two views in each step, a
    weakly and a strongly augmented one, so their published results do not apply. The default weights are those of the
    authors' code.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        instance: weight of the samples' distributions; a number or a schedule.
        batch: weight of the relations between samples; a number or a schedule.
        category: weight of the relations between classes; a number or a schedule.
        temperatures: the three losses are summed over these.
        masks: "select" leaves out the samples and classes on which the teacher is most confident, as published; "scale"
            only scales the losses, as in the authors' code; "none" uses no masks.
        student_layer: the layer read as the student's logits; the default is the network's output.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: there is no temperature or one is not above 0, all weights are 0, or the teacher is an ensemble
            averaged as distributions.
    """
    if not temperatures or not all(temperature > 0 for temperature in temperatures):
        raise LimbeckError(f"temperatures is {tuple(temperatures)}: at least one is needed, and each must be above 0")
    student, teacher = reading.logits(setup, student_layer, teacher_layer)

    def of(level: Loss) -> Loss:
        return partial(level, temperatures=tuple(temperatures), masks=masks)

    terms = {
        "hard": hard_term(setup, student, hard),
        "instance": Term(of(instance_loss), (student, teacher), instance),
        "batch": Term(of(batch_loss), (student, teacher), batch),
        "category": Term(of(category_loss), (student, teacher), category),
    }
    return (Stage("mlkd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


def _softened(student: Tensor, teacher: Tensor, temperatures: Iterable[float]) -> Iterator[tuple[Tensor, Tensor]]:
    """The distributions q of the student and p of the teacher, (N, K), at each temperature."""
    for temperature in temperatures:
        yield (wide(student) / temperature).softmax(1), (wide(teacher.detach()) / temperature).softmax(1)


def _mean(values: list[Tensor], confidence: Tensor, masks: Masks, student: Tensor) -> Tensor:
    """The sum of the values (N,) of samples or (K,) of classes, averaged without those of high confidence."""
    kept = (confidence <= confidence.quantile(0.5)).to(confidence.dtype)
    counts = {"select": kept, "scale": kept.mean(), "none": torch.ones_like(kept)}[masks]
    return like((counts * torch.stack(values).sum(dim=0)).mean(), student)


ABOUT = About(mlkd, PAPER)
