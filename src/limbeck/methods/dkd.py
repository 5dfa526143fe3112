"""Decoupled distillation: separate terms for the target class and for the other classes."""

import math
from functools import partial

import torch
from torch import Tensor

from limbeck.core import TARGETS, LimbeckError, Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_loss
from limbeck.methods.distributions import divergence, like, wide


def target_loss(student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """T² * KL of (p_y, 1 - p_y), teacher to student: how sure both are of the label (the paper's TCKD).

    Sum over the two, mean over the batch; no gradient reaches the teacher. Both logarithms come from the logits
    themselves, so that no probability of 0 is ever logged. With `nontarget_loss` this is `dkd_loss` of
    megvii-research/mdistiller (mdistiller/distillers/DKD.py, a08d46f) as long as no gap of the scaled logits nears
    1000, from where on that code gives NaN.

    Args:
        student: logits (N, K), K of at least 2.
        teacher: logits (N, K).
        targets: class indices (N,), int64.
        temperature: T > 0.
    """
    pair, wanted = (_label_and_rest(wide(logits) / temperature, targets) for logits in (student, teacher.detach()))
    return like(divergence(pair, wanted, factor=temperature**2 / len(student)), student)


def nontarget_loss(student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """T² * KL of the distributions over the classes that are not the label, teacher to student (NCKD).

    Sum over the K - 1 classes, mean over the batch; no gradient reaches the teacher. Of 2 classes it is 0. The shapes
    and the source are those of `target_loss`.
    """
    rest, wanted = (_rest(logits, targets) for logits in (student, teacher.detach()))
    return divergence(rest, wanted, temperature=temperature, factor=temperature**2 / len(student))


def dkd(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    target: float | Schedule = 1.0,
    nontarget: float | Schedule = 8.0,
    temperature: float = 4.0,
    warmup: float = 1 / 12,
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """Decoupled soft targets: how sure the teacher is of the label, and its distribution over the other classes.

    The defaults are the paper's for ResNet-32x4 to ResNet-8x4 on CIFAR-100. ``target: 1`` and ``nontarget: 1 - p_y``
    of the teacher, sample by sample, would be `kd`. With 2 classes there is one other class, and its term has no
    gradient.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        target: alpha, weight of the term on the label; a number or a schedule.
        nontarget: beta, weight of the term on the other classes; a number or a schedule.
        temperature: T of both terms.
        warmup: the share of the training in which both weights rise to their values, in equal steps an epoch. The
            authors' is 20 of 240 epochs; 0 is none.
        student_layer: the layer read as the student's logits; the default is the network's output.
        teacher_layer: the same of the teacher.

    Raises:
        LimbeckError: the temperature is not above 0, the warm-up is no share, all weights are 0, or the teacher is an
            ensemble of distributions.
    """
    if not temperature > 0:
        raise LimbeckError(f"temperature is {temperature}: it must be above 0")
    if not 0 <= warmup <= 1:
        raise LimbeckError(f"warmup is {warmup}: it is a share of the training, at least 0 and at most 1")
    student, teacher = reading.logits(setup, student_layer, teacher_layer)
    reads = (student, teacher, TARGETS)
    rising = partial(_rising, share=warmup, epochs=setup.epochs)
    terms = {
        "hard": Term(hard_loss, (student, TARGETS), hard),
        "target": Term(partial(target_loss, temperature=temperature), reads, rising(target)),
        "nontarget": Term(partial(nontarget_loss, temperature=temperature), reads, rising(nontarget)),
    }
    return (Stage("dkd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


def _rising(weight: float | Schedule, *, share: float, epochs: int) -> float | Schedule:
    """The weight, times the number of the epoch (from 1) over the epochs of the warm-up, 1 at most."""
    if share * epochs <= 1 or weight == 0:
        return weight

    def risen(progress: float) -> float:
        epoch = math.floor(progress * epochs + 1e-6) + 1  # the progress at an epoch's start may be rounded down
        value = weight if isinstance(weight, int | float) else weight(progress)
        return value * min(epoch / (share * epochs), 1.0)

    return risen


def _label_and_rest(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (N, 2) whose softmax is (p_y, 1 - p_y)."""
    label = logits.gather(1, targets[:, None])
    return torch.cat([label, _rest(logits, targets).logsumexp(dim=1, keepdim=True)], dim=1)


def _rest(logits: Tensor, targets: Tensor) -> Tensor:
    """The logits (N, K - 1) of the classes that are not the label."""
    places = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    return logits.gather(1, places + (places >= targets[:, None]))


ABOUT = About(dkd, paper=Paper("Zhao, Cui, Song et al.", "Decoupled Knowledge Distillation", 2022, "2203.08679"))
