"""Multi-level logit distillation: instances, batch and classes."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from limbeck.core import TARGETS, LimbeckError, Loss, Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_loss
from limbeck.methods.distributions import divergence, like, wide

Masks = Literal["select", "scale", "none"]

TEMPERATURES = (4.0, 3.0, 5.0, 2.0, 6.0)
"""Those of the authors' code, in its order."""


def instance_loss(
    student: Tensor, teacher: Tensor, *, temperatures: tuple[float, ...] = TEMPERATURES, masks: Masks = "select"
) -> Tensor:
    """The sum over temperatures of T² * KL of each sample's softened distributions, mean over the batch.

    The paper masks the samples that the teacher is surest of: the half whose greatest probability at T = 1 is above
    the median of the batch. The authors' code (Jin-Ying/Multi-Level-Logit-Distillation,
    mdistiller/distillers/KD_ours.py, 5ee473f) multiplies a mean that is taken over all samples by the mask, which only
    scales it by the share of samples kept. None of the gradient reaches the teacher.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        temperatures: each above 0.
        masks: "select", as published: a masked sample counts 0 in the mean over N. "scale", as in the code: all
            samples count, times the share that is not masked. "none": all samples count.
    """
    return _averaged(_instances, student, teacher, temperatures, _samples(teacher, masks))


def batch_loss(
    student: Tensor, teacher: Tensor, *, temperatures: tuple[float, ...] = TEMPERATURES, masks: Masks = "select"
) -> Tensor:
    """The sum over temperatures of 1/N * ||p pᵀ - q qᵀ||², p and q the softened distributions (N, K) of both.

    The relations (N, N) of the samples, summed over all pairs, without T². A masked sample's row counts 0; the samples
    masked, the source and the arguments are those of `instance_loss`.
    """
    return _averaged(_between_samples, student, teacher, temperatures, _samples(teacher, masks))


def category_loss(
    student: Tensor, teacher: Tensor, *, temperatures: tuple[float, ...] = TEMPERATURES, masks: Masks = "select"
) -> Tensor:
    """The sum over temperatures of 1/K * ||pᵀ p - qᵀ q||², p and q the softened distributions (N, K) of both.

    The relations (K, K) of the classes, summed over all pairs, without T². Masked are the classes whose probability at
    T = 1, summed over the batch, is above the median of the classes: a masked class's row counts 0. The source and
    the arguments are those of `instance_loss`.
    """
    return _averaged(_between_classes, student, teacher, temperatures, _classes(teacher, masks))


def two_views_loss(
    student: Tensor,
    student_strong: Tensor,
    teacher: Tensor,
    teacher_strong: Tensor,
    *,
    temperatures: tuple[float, ...] = TEMPERATURES,
    form: Literal["published", "code"] = "published",
) -> Tensor:
    """The three levels on a weakly and a strongly augmented view of each sample: logits (N, K), four times.

    Args:
        student: of the weak view.
        student_strong: of the strong view.
        teacher: of the weak view.
        teacher_strong: of the strong view.
        temperatures: each above 0.
        form: "published" is the sum of all three losses, with their masks, over both views. "code" is what
            `KD_ours.forward_train` of the authors' repository (see `instance_loss`) returns: masks that scale; of the
            strong view the instances' loss alone, not masked, at the first three temperatures; and once more that of
            the weak view, not masked, at the others.
    """
    weak = partial(instance_loss, student, teacher)
    if form == "code":
        strong = instance_loss(student_strong, teacher_strong, temperatures=temperatures[:3], masks="none")
        again = weak(temperatures=temperatures[3:], masks="none") if temperatures[3:] else torch.zeros_like(strong)
        relations = [level(student, teacher, temperatures=temperatures, masks="scale") for level in RELATIONS]
        return weak(temperatures=temperatures, masks="scale") + strong + again + sum(relations)
    levels = (instance_loss, *RELATIONS)
    views = ((student, teacher), (student_strong, teacher_strong))
    return torch.stack([level(*view, temperatures=temperatures) for level in levels for view in views]).sum()


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
    """Soft targets at several temperatures, on three levels: each sample, the samples' and the classes' relations.

    This reads ONE view of each sample, the one that the training loop gives. The authors train on two views a step, a
    weakly and a strongly augmented one: `two_views_loss` has that objective, but no recipe reaches it, and the results
    published for two views are not to be expected of one. The default weights are those of the authors' code.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        instance: weight of the samples' distributions; a number or a schedule.
        batch: weight of the relations of the samples; a number or a schedule.
        category: weight of the relations of the classes; a number or a schedule.
        temperatures: the three losses are summed over these.
        masks: "select" leaves out the samples and classes that the teacher is surest of, as published; "scale" is the
            authors' code, which leaves out none but scales; "none" is neither.
        student_layer: the layer read as the student's logits; the default is the network's output.
        teacher_layer: the same of the teacher.

    Raises:
        LimbeckError: there is no temperature or one is not above 0, all weights are 0, or the teacher is an ensemble
            of distributions.
    """
    if not temperatures or not all(temperature > 0 for temperature in temperatures):
        raise LimbeckError(f"temperatures is {tuple(temperatures)}: it needs one at least, and each above 0")
    student, teacher = reading.logits(setup, student_layer, teacher_layer)

    def of(level: Loss) -> Loss:
        return partial(level, temperatures=tuple(temperatures), masks=masks)

    terms = {
        "hard": Term(hard_loss, (student, TARGETS), hard),
        "instance": Term(of(instance_loss), (student, teacher), instance),
        "batch": Term(of(batch_loss), (student, teacher), batch),
        "category": Term(of(category_loss), (student, teacher), category),
    }
    return (Stage("mlkd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


Level = Callable[[Tensor, Tensor, float], Tensor]
"""Logits (N, K) of student and teacher and a temperature to one value a sample (N,), or one a class (K,)."""

RELATIONS = (batch_loss, category_loss)


def _averaged(
    level: Level, student: Tensor, teacher: Tensor, temperatures: tuple[float, ...], counts: Tensor
) -> Tensor:
    teacher = teacher.detach()
    values = torch.stack([level(student, teacher, temperature) for temperature in temperatures]).sum(dim=0)
    return like((counts * values).mean(), student)


def _instances(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return temperature**2 * divergence(student, teacher, temperature=temperature)


def _between_samples(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    ours, theirs = ((wide(logits) / temperature).softmax(1) for logits in (student, teacher))
    return (ours @ ours.T - theirs @ theirs.T).square().sum(dim=1)


def _between_classes(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    ours, theirs = ((wide(logits) / temperature).softmax(1) for logits in (student, teacher))
    return (ours.T @ ours - theirs.T @ theirs).square().sum(dim=1)


def _samples(teacher: Tensor, masks: Masks) -> Tensor:
    """How much each sample counts, (N,) or one number for all."""
    return _counts(wide(teacher.detach()).softmax(1).amax(dim=1), masks)


def _classes(teacher: Tensor, masks: Masks) -> Tensor:
    """How much each class counts, (K,) or one number for all."""
    return _counts(wide(teacher.detach()).softmax(1).sum(dim=0), masks)


def _counts(confidence: Tensor, masks: Masks) -> Tensor:
    kept = (confidence <= confidence.quantile(0.5)).to(confidence.dtype)
    if masks == "select":
        return kept
    return kept.mean() if masks == "scale" else torch.ones_like(kept)


ABOUT = About(
    mlkd, paper=Paper("Jin, Wang, Lin", "Multi-Level Logit Distillation", 2023, venue="CVPR, pages 24276-24285")
)
