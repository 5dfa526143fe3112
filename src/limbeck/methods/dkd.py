"""Decoupled distillation: separate terms for the target class and for the other classes."""

import math
from functools import partial

import torch
from torch import Tensor

from limbeck.core import TARGETS, LimbeckError, Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.distributions import divergence, like, wide
from limbeck.methods.shared import as_schedule, check_above_zero, class_indices

PAPER = Paper("Zhao, Cui, Song et al.", "Decoupled Knowledge Distillation", 2022, "2203.08679")


def target_loss(student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """T² * KL(b_T || b_S) of the binary distributions b = (p_y, 1 - p_y) of label and other classes (the paper's TCKD).

    Summed over the two entries, averaged over the batch. No gradient flows to the teacher. The logarithms are computed
    from the logits, so the value is finite where a probability is 0. With `nontarget_loss` this is `dkd_loss` of
    megvii-research/mdistiller (mdistiller/distillers/DKD.py, a08d46f); that code gives NaN where the scaled logits
    differ by about 1000 or more.

    Args:
        student: logits (N, K), K of at least 2.
        teacher: logits (N, K).
        targets: class indices (N,), int64.
        temperature: T > 0.
    """
    binary = [_label_and_rest(wide(logits) / temperature, targets) for logits in (student, teacher.detach())]
    return like(divergence(*binary, factor=temperature**2 / len(student)), student)


def nontarget_loss(student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """T² * KL(p_T || p_S) of the distributions over the classes other than the label (the paper's NCKD).

    Summed over the K - 1 classes, averaged over the batch; 0 with 2 classes. No gradient flows to the teacher.
    Arguments and source are those of `target_loss`.
    """
    others = [_rest(logits, targets) for logits in (student, teacher.detach())]
    return divergence(*others, temperature=temperature, factor=temperature**2 / len(student))


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
    """Decoupled soft targets: the probability of the label, and the distribution over the other classes.

    The defaults are the paper's for ResNet-32x4 to ResNet-8x4 on CIFAR-100. If ``target`` were 1 and ``nontarget`` were
    1 - p_y of the teacher for each sample, the sum would be the soft term of `kd`. With 2 classes the term
    ``nontarget`` has no gradient.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        target: alpha, weight of the term on the label; a number or a schedule.
        nontarget: beta, weight of the term on the other classes; a number or a schedule.
        temperature: T of both terms.
        warmup: the fraction of the training during which both weights rise to their values, in equal steps at each
            epoch. The authors use 20 of 240 epochs; 0 means no warm-up.
        student_layer: the layer read as the student's logits; the default is the network's output.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: the temperature is not above 0, the warm-up is not in [0, 1], all weights are 0, the targets are
            not class indices, or the teacher is an ensemble averaged as distributions.
    """
    class_indices(setup, "dkd")
    check_above_zero("temperature", temperature)
    if not 0 <= warmup <= 1:
        raise LimbeckError(f"warmup is {warmup}: it is a fraction of the training, at least 0 and at most 1")
    student, teacher = reading.logits(setup, student_layer, teacher_layer)
    reads = (student, teacher, TARGETS)
    rising = partial(_rising, share=warmup, epochs=setup.epochs)
    terms = {
        "hard": hard_term(setup, student, hard),
        "target": Term(partial(target_loss, temperature=temperature), reads, rising(target)),
        "nontarget": Term(partial(nontarget_loss, temperature=temperature), reads, rising(nontarget)),
    }
    return (Stage("dkd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


def _rising(weight: float | Schedule, *, share: float, epochs: int) -> float | Schedule:
    """The weight times min(epoch / epochs of the warm-up, 1), where the first epoch is 1."""
    if share * epochs <= 1 or weight == 0:
        return weight

    full = as_schedule(weight)

    def risen(progress: float) -> float:
        epoch = math.floor(progress * epochs + 1e-6) + 1  # the progress at an epoch's start may be rounded down
        return full(progress) * min(epoch / (share * epochs), 1.0)

    return risen


def _label_and_rest(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (N, 2) whose softmax is (p_y, 1 - p_y)."""
    label = logits.gather(1, targets[:, None])
    return torch.cat([label, _rest(logits, targets).logsumexp(dim=1, keepdim=True)], dim=1)


def _rest(logits: Tensor, targets: Tensor) -> Tensor:
    """The logits (N, K - 1) of the classes other than the label."""
    places = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    return logits.gather(1, places + (places >= targets[:, None]))


ABOUT = About(dkd, PAPER)
