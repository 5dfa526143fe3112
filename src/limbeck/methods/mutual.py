"""Deep mutual learning: several networks learn together, each from the others."""

from functools import partial

import torch
from torch import Tensor

from limbeck.core import TARGETS, LimbeckError, Schedule, Setup, Stage, Tap, Term, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_loss
from limbeck.methods.kd import soft_loss


def mutual_loss(own: Tensor, *others: Tensor, temperature: float = 1.0) -> Tensor:
    """1/(M - 1) * the sum over the M - 1 others of T^2 KL(p_other || p_own), mean over N.

    Args:
        own: logits (N, K) of the network that learns.
        others: logits (N, K) of the others; none of the gradient reaches them.
        temperature: T, 1 as published.
    """
    return torch.stack([soft_loss(own, other, temperature=temperature) for other in others]).mean()


def mutual(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    mutual: float | Schedule = 1.0,
    temperature: float = 1.0,
) -> tuple[Stage, ...]:
    """All networks learn at once, each from the labels and from all others: L_k = CE_k + mean over j of KL(p_j || p_k).

    The peers are all networks of the recipe: those under ``networks:`` and the teacher, if there is one, of which a
    copy learns on; with ``untrained: true`` it starts like the others. The paper steps the networks in turn, each after
    a new forward of the others; here all step at once.

    Args:
        setup: epochs, optimizer and schedule, of every network.
        hard: weight of the cross-entropy with the labels.
        mutual: weight of the divergence from the others.
        temperature: T of the divergence.

    Raises:
        LimbeckError: there is no peer; the temperature is not above 0.
    """
    if len(setup.networks) < 2:
        raise LimbeckError("mutual learning takes two networks or more: name the student's peers under networks:")
    if not temperature > 0:
        raise LimbeckError(f"temperature is {temperature}: it must be above 0")
    terms = {}
    for name in setup.networks:
        others = tuple(Tap(other) for other in setup.networks if other != name)
        terms[f"hard_{name}"] = Term(hard_loss, (Tap(name), TARGETS), hard)
        terms[f"mutual_{name}"] = Term(partial(mutual_loss, temperature=temperature), (Tap(name), *others), mutual)
    return (Stage("mutual", weighted(terms), setup.epochs, setup.optimizer, setup.schedule, learns=setup.networks),)


ABOUT = About(
    mutual,
    paper=Paper("Zhang, Xiang, Hospedales, Lu", "Deep Mutual Learning", 2018, "1706.00384"),
    networks={"student": "resnet8", "peer": "resnet14"},
)
