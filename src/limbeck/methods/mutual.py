"""Deep mutual learning: several networks learn together, each from the others."""

from functools import partial

import torch
from torch import Tensor

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Tap, Term, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.kd import soft_loss
from limbeck.methods.shared import check_above_zero

PAPER = Paper("Zhang, Xiang, Hospedales, Lu", "Deep Mutual Learning", 2018, "1706.00384")


def mutual_loss(student: Tensor, *others: Tensor, temperature: float = 1.0) -> Tensor:
    """The mean over the other networks of T² KL(p_other || p_student), averaged over N.

    Args:
        student: logits (N, K) of the network that learns.
        others: logits (N, K) of the other networks, which receive no gradient.
        temperature: T; 1 in the paper.
    """
    return torch.stack([soft_loss(student, other, temperature=temperature) for other in others]).mean()


def mutual(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    mutual: float | Schedule = 1.0,
    temperature: float = 1.0,
) -> tuple[Stage, ...]:
    """All networks learn together, from the labels and each other: L_k = CE_k + mean over j of KL(p_j || p_k).

    The peers are all networks of the recipe: those under ``networks:`` and a copy of the teacher, if there is one. The
    copy starts from the teacher's weights, or from random ones with ``untrained: true``. The paper updates the networks
    in turn, with a new forward pass of the others before each update; here all networks are updated in one step.

    Args:
        setup: epochs, optimizer and schedule of every network.
        hard: weight of the cross-entropy with the labels.
        mutual: weight of the divergence from the other networks.
        temperature: T of the divergence.

    Raises:
        LimbeckError: there is no peer; the temperature is not above 0.
    """
    if len(setup.networks) < 2:
        raise LimbeckError("mutual learning needs at least two networks: name the student's peers under networks:")
    check_above_zero("temperature", temperature)
    terms = {}
    for name in setup.networks:
        others = tuple(Tap(other) for other in setup.networks if other != name)
        terms[f"hard_{name}"] = hard_term(setup, Tap(name), hard)
        terms[f"mutual_{name}"] = Term(partial(mutual_loss, temperature=temperature), (Tap(name), *others), mutual)
    return (Stage("mutual", weighted(terms), setup.epochs, setup.optimizer, setup.schedule, learns=setup.networks),)


ABOUT = About(mutual, PAPER, networks={"student": "resnet8", "peer": "resnet14"})
