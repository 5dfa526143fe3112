"""Logit matching: the student regresses the teacher's logits."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from limbeck.core import Schedule, Setup, Stage, Term, weighted
from limbeck.methods.about import OF_OUTPUTS, About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.reading import outputs

PAPER = Paper("Ba, Caruana", "Do Deep Nets Really Need to be Deep?", 2014, "1312.6184")


def logits_loss(
    student: Tensor, *teachers: Tensor, centre: bool = False, average: Literal["batch", "elements"] = "batch"
) -> Tensor:
    """Half the squared distance between the logits. No gradient flows to the teachers.

    Args:
        student: logits (N, K).
        teachers: logits (N, K) of each teacher; the target is their mean.
        centre: first subtract each sample's mean over its K logits, for both networks. This is the limit of
            K * `soft_loss` for T -> infinity (Hinton et al. 2015, section 2.1).
        average: "batch", as published, sums over K, averages over N and divides by 2. "elements" averages over N and
            K without the 1/2, as AberHu/Knowledge-Distillation-Zoo (kd_losses/logits.py, 65470c8): 2/K of the former.
    """
    target = torch.stack(teachers).mean(dim=0).detach()
    if centre:
        student = student - student.mean(dim=1, keepdim=True)
        target = target - target.mean(dim=1, keepdim=True)
    squares = (student - target).square()
    return squares.mean() if average == "elements" else squares.sum() / (2 * len(squares))


def logits(
    setup: Setup,
    *,
    matching: float | Schedule = 1.0,
    hard: float | Schedule = 0.0,
    centre: bool = False,
    average: Literal["batch", "elements"] = "batch",
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """Logit matching: the student regresses the teacher's logits.

    Bucila et al. (2006) introduced the idea; the loss is that of Ba and Caruana.

    Args:
        setup: epochs, optimizer and schedule. For an ensemble teacher the target is the mean of the logits.
        matching: weight of the squared distance.
        hard: weight of the cross-entropy with the labels; 0, as published, removes the term.
        centre: subtract the mean over the classes from the logits of both networks.
        average: "batch" is the published half sum of squares; "elements" is the mean over all elements.
        student_layer: the layer read as the student's logits; the default is the network's output.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: both weights are 0.
    """
    student, *teachers = outputs(setup, student_layer, teacher_layer)
    loss = partial(logits_loss, centre=centre, average=average)
    terms = {
        "hard": hard_term(setup, student, hard),
        "matching": Term(loss, (student, *teachers), matching),
    }
    return (Stage("logits", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


ABOUT = About(logits, PAPER, tasks=OF_OUTPUTS)
