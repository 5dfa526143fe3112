"""Normalised distillation: the probability of the label, and the normalised distribution over the other classes."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from limbeck.core import TARGETS, Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.dkd import nontarget_loss
from limbeck.methods.shared import check_above_zero, class_indices

PAPER = Paper(
    "Yang, Zeng, Li et al.",
    "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and "
    "Customized Soft Labels",
    2023,
    "2303.13005",
)


def label_loss(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """-p_T[y] log p_S[y] at T = 1, averaged over the batch: the cross-entropy times the teacher's trust in the label.

    The first term of `NKDLoss` of yzd-v/cls_KD (mmcls/distillation/losses/nkd.py, 1c2c0ff). No gradient flows to the
    teacher.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        targets: class indices (N,), int64.
    """
    trust = teacher.detach().softmax(dim=1).gather(1, targets[:, None])[:, 0]
    return (trust * F.cross_entropy(student, targets, reduction="none")).mean()


def nkd(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    target: float | Schedule = 1.0,
    nontarget: float | Schedule = 1.5,
    temperature: float = 1.0,
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """Normalised distillation: the probability of the label, and the distribution over the other classes.

    The defaults are the authors' for ImageNet; for CIFAR-100 they use ``nontarget: 3.5`` and ``temperature: 3``. The
    term ``nontarget`` is that of `dkd`, a KL divergence. The authors' cross-entropy is larger by the entropy of the
    teacher's distribution times T² and has the same gradient. With 2 classes this term has no gradient.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        target: weight of the term on the label; 1 in the paper. A number or a schedule.
        nontarget: gamma, weight of the term on the other classes; a number or a schedule.
        temperature: T of the term on the other classes, which is multiplied by T². The term on the label uses T = 1.
        student_layer: the layer read as the student's logits; the default is the network's output.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: the temperature is not above 0, all weights are 0, the targets are not class indices, or the
            teacher is an ensemble averaged as distributions.
    """
    class_indices(setup, "nkd")
    check_above_zero("temperature", temperature)
    student, teacher = reading.logits(setup, student_layer, teacher_layer)
    reads = (student, teacher, TARGETS)
    terms = {
        "hard": hard_term(setup, student, hard),
        "target": Term(label_loss, reads, target),
        "nontarget": Term(partial(nontarget_loss, temperature=temperature), reads, nontarget),
    }
    return (Stage("nkd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


ABOUT = About(nkd, PAPER)
