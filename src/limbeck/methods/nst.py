"""Neuron selectivity transfer: the student's channels match the teacher's in distribution."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.core import Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.distributions import like, wide
from limbeck.methods.reading import in_order
from limbeck.methods.shared import label_terms, over_layers, pooled_alike, unit

Kernel = Literal["polynomial", "linear", "gaussian"]


def selectivity_loss(student: Tensor, teacher: Tensor, *, kernel: Kernel = "polynomial") -> Tensor:
    """Squared maximum mean discrepancy of the channels' patterns, each a unit vector over the places.

    mean k(t, t') + mean k(s, s') - 2 mean k(s, t), means over pairs of channels of one sample and over N. The authors'
    code leaves the constant first part out; RepDistiller (distiller_zoo/NST.py, b84f547) is the same as "polynomial".
    Where the sizes differ, the larger map is pooled first. None of the gradient reaches the teacher.

    Args:
        student: maps (N, C, H, W).
        teacher: maps (N, C', H', W').
        kernel: "polynomial" is (x . y)²; "linear" is x . y; "gaussian" is exp(-||x - y||² / (2 sigma²)), sigma² the
            mean squared distance of the sample's pairs of a student's and a teacher's channel, taken as constant.
    """
    student, teacher = pooled_alike(student, teacher.detach())
    mine, wanted = unit(student.flatten(2)), unit(teacher.flatten(2))
    width = 2 * _squared_distances(mine, wanted).detach().mean(dim=(1, 2), keepdim=True)
    pairs = ((wanted, wanted), (mine, mine), (mine, wanted))
    # a small difference of large means: what is summed is in 64 bits
    theirs, own, between = (wide(_KERNELS[kernel](*pair, width)).mean(dim=(1, 2)) for pair in pairs)
    return like((theirs + own - 2 * between).mean().clamp_min(0), student)


def _products(left: Tensor, right: Tensor) -> Tensor:
    return left @ right.transpose(1, 2)


def _squared_distances(left: Tensor, right: Tensor) -> Tensor:
    lengths = [one.square().sum(dim=2) for one in (left, right)]
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
    """Neuron selectivity transfer: the student's channels respond to the places that the teacher's respond to.

    The defaults are those of the authors' code (TuSimple/neuron-selectivity-transfer, config/cfgs.py, aed2b30): the
    polynomial kernel, weight 50, the last maps. There is no factor 1/2 on the weight.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        selectivity: weight of the selectivity term, lambda.
        soft: weight of the soft targets, with the factor T².
        temperature: T of the soft targets.
        kernel: "polynomial" (degree 2, no offset), "linear" or "gaussian".
        sections: where no layers are named, the "last" section's map, or the sum over "all" as in RepDistiller.
        student_layers: the layers whose maps are compared, shallow to deep.
        teacher_layers: the same of the teacher.

    Raises:
        LimbeckError: a network has no maps, the temperature is not above 0, or all weights are 0.
    """
    pairs = reading.maps(setup, student_layers, teacher_layers, method="nst")
    if sections == "last" and not student_layers and not teacher_layers:
        pairs = pairs[-1:]
    loss = partial(over_layers, partial(selectivity_loss, kernel=kernel))
    terms = label_terms(setup, hard=hard, soft=soft, temperature=temperature)
    terms["selectivity"] = Term(loss, in_order(pairs), selectivity)
    return (Stage("nst", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The authors' kt_type kd+mmd: their weight 16 is T² for T = 4.
    "authors_kd": {"soft": 1.0, "temperature": 4.0},
    # HobbitLong/RepDistiller, scripts/run_cifar_distill.sh.
    "repdistiller": {"sections": "all", "selectivity": 50.0},
}


ABOUT = About(
    nst,
    paper=Paper(
        "Huang, Wang", "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, "1707.01219"
    ),
    presets=PRESETS,
)
