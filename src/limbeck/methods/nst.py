"""Neuron selectivity transfer: the student's channels match the teacher's in distribution."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.core import Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import EVERY_TASK, About, Paper
from limbeck.methods.distributions import like, wide
from limbeck.methods.kd import label_terms
from limbeck.methods.shared import over_layers, pooled_alike, unit

PAPER = Paper(
    "Huang, Wang", "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, "1707.01219"
)

Kernel = Literal["polynomial", "linear", "gaussian"]


def selectivity_loss(student: Tensor, teacher: Tensor, *, kernel: Kernel = "polynomial") -> Tensor:
    """Squared maximum mean discrepancy between the channels of both networks, each scaled to length 1.

    mean k(t, t') + mean k(s, s') - 2 mean k(s, t), where the means are over the pairs of channels of a sample and over
    N. The authors' code omits the first mean, which is constant. RepDistiller (distiller_zoo/NST.py, b84f547) is the
    same as "polynomial". If the sizes differ, the larger map is average-pooled first. No gradient flows to the teacher.

    Args:
        student: maps (N, C, H, W).
        teacher: maps (N, C', H', W').
        kernel: "polynomial" is (x . y)²; "linear" is x . y; "gaussian" is exp(-||x - y||² / (2 sigma²)), sigma² the
            mean squared distance over the pairs of a student's and a teacher's channel of the sample, as a constant.
    """
    student, teacher = pooled_alike(student, teacher.detach())
    s, t = unit(student.flatten(2)), unit(teacher.flatten(2))
    width = 2 * _squared_distances(s, t).detach().mean(dim=(1, 2), keepdim=True)
    # the value is a small difference of large means, which are therefore computed in 64 bits
    k_tt, k_ss, k_st = (wide(_KERNELS[kernel](*pair, width)).mean(dim=(1, 2)) for pair in ((t, t), (s, s), (s, t)))
    return like((k_tt + k_ss - 2 * k_st).mean().clamp_min(0), student)


def _products(left: Tensor, right: Tensor) -> Tensor:
    return left @ right.transpose(1, 2)


def _squared_distances(left: Tensor, right: Tensor) -> Tensor:
    lengths = [vectors.square().sum(dim=2) for vectors in (left, right)]
    return lengths[0].unsqueeze(2) + lengths[1].unsqueeze(1) - 2 * _products(left, right)


_KERNELS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "polynomial": lambda left, right, width: _products(left, right).square(),
    "linear": lambda left, right, width: _products(left, right),
    "gaussian": lambda left, right, width: torch.exp(-_squared_distances(left, right) / width.clamp_min(1e-12)),
}


def nst(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    selectivity: float | Schedule = 50.0,
    soft: float | Schedule = 0.0,
    temperature: float = 4.0,
    kernel: Kernel = "polynomial",
    sections: Literal["last", "all"] = "last",
    student_layers: tuple[str, ...] = (),
    teacher_layers: tuple[str, ...] = (),
) -> tuple[Stage, ...]:
    """Neuron selectivity transfer: the distribution of the student's channels matches that of the teacher's.

    The defaults are those of the authors' code (TuSimple/neuron-selectivity-transfer, config/cfgs.py, aed2b30):
    polynomial kernel, weight 50, last maps. The weight is not multiplied by 1/2.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        selectivity: weight of the selectivity term, lambda.
        soft: weight of the soft targets, with the factor T².
        temperature: T of the soft targets.
        kernel: "polynomial" (degree 2, no offset), "linear" or "gaussian".
        sections: the default layers: the "last" section, or the sum over "all" sections, as in RepDistiller.
        student_layers: the layers whose maps are compared, shallow to deep.
        teacher_layers: the same for the teacher.

    Raises:
        LimbeckError: a network has no maps, the temperature is not above 0, or all weights are 0.
    """
    pairs = reading.maps(setup, student_layers, teacher_layers, method="nst")
    if sections == "last" and not student_layers and not teacher_layers:
        pairs = pairs[-1:]
    loss = partial(over_layers, partial(selectivity_loss, kernel=kernel))
    terms = label_terms(setup, hard=hard, soft=soft, temperature=temperature)
    terms["selectivity"] = Term(loss, reading.in_order(pairs), selectivity)
    return (Stage("nst", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The authors' kt_type kd+mmd: their weight 16 is T² for T = 4.
    "authors_kd": {"soft": 1.0, "temperature": 4.0},
    # HobbitLong/RepDistiller, scripts/run_cifar_distill.sh.
    "repdistiller": {"sections": "all", "selectivity": 50.0},
}


ABOUT = About(nst, PAPER, presets=PRESETS, tasks=EVERY_TASK)
