"""Checks of a training on one batch: large gradients, constant tensors, and buffers of frozen networks that change."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from limbeck.core import TARGETS, Batch, Networks, Stage, Tap, Term
from limbeck.experiment.verdicts import Note, skipped
from limbeck.taps import Taps, evaluation_mode
from limbeck.train.freeze import frozen, frozen_modules, learners

STEEP = 100.0
"""A term whose gradient is more than this many times that of the labels gets a note."""


@torch.inference_mode(mode=False)
def first_batch(stages: Sequence[Stage], networks: Networks, batch: Batch) -> list[Note]:
    """Return notes on gradients, on tensors that do not differ between samples, and on buffers of frozen networks.

    Networks, losses and random generators are left unchanged.

    Args:
        stages: of the training.
        networks: at least those that the stages name, on the device of the losses and the batch.
        batch: a few training samples of several classes, (N, ...).
    """
    losses = [loss for stage in stages for loss in stage.losses]
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        evaluation_mode([*networks.values(), *losses]),
    ):
        return list(dict.fromkeys(chain.from_iterable(_of_stage(stage, networks, batch) for stage in stages)))


def _of_stage(stage: Stage, networks: Networks, batch: Batch) -> Iterator[Note]:
    fixed = [(name, network) for name, network in networks.items() if name not in stage.networks]
    before = {name: {key: one.clone() for key, one in network.named_buffers()} for name, network in fixed}
    with frozen(frozen_modules(stage, networks)):
        with Taps(networks, stage.reads, learns=stage.networks) as tapped:
            values = tapped.read(batch)
        if stage.prepare is None:
            yield from _steep(stage, values, networks)
        else:
            yield from skipped(f"stage {stage.name!r} computes what its losses need before each epoch", "gradients")
    for name, network in fixed:
        changed = _restored(network, before[name])
        if changed:
            yield Note(
                f"the {name} is frozen, but running it in eval mode changes its buffers: {', '.join(changed[:4])}; its "
                "outputs may change during the training",
                "buffers",
            )
    if len(batch.index) == 1:
        yield from skipped("the batch size is 1", "constant")
        return
    for tap, value in values.items():
        if tap.source != "batch" and torch.equal(value, value[:1].expand_as(value)):
            yield Note(f"{tap} is the same for all {len(value)} samples of the first batch", "constant")


@torch.no_grad()
def _restored(network: nn.Module, before: Mapping[str, Tensor]) -> list[str]:
    """Restore the buffers that changed; return their names."""
    both = [(name, one, before[name]) for name, one in network.named_buffers() if name in before]
    changed = [(name, one, old) for name, one, old in both if not one.equal(old)]
    for _, one, old in changed:
        one.resize_as_(old).copy_(old)
    return [name for name, _, _ in changed]


def _steep(stage: Stage, values: Mapping[Tap, Tensor], networks: Networks) -> Iterator[Note]:
    """Notes on the terms whose gradient is more than `STEEP` times that of the terms that read only the labels."""
    weights = [one for part in learners(stage, networks) for one in part.parameters() if one.requires_grad]
    own = {*stage.networks, "batch"}
    sizes = {name: _size(term, [values[tap] for tap in term.reads], weights) for name, term in stage.terms.items()}
    of_labels = {
        name
        for name, term in stage.terms.items()
        if TARGETS in term.reads and own.issuperset(tap.source for tap in term.reads)
    }
    task = sum(sizes[name] for name in of_labels)
    if not task:
        why = "a gradient of the labels on the first batch" if of_labels else "a term of the labels"
        yield from skipped(f"stage {stage.name!r} does not have {why}", "gradients")
        return
    for name in stage.terms:
        if name not in of_labels and sizes[name] > STEEP * task:
            yield Note(
                f"the gradient of the term {name!r} of stage {stage.name!r} has the norm {sizes[name]:.3g} on the "
                f"first batch, more than {STEEP:g} times that of the labels, {task:.3g}: lower its weight",
                "gradients",
            )


def _size(term: Term, reads: Sequence[Tensor], weights: Sequence[nn.Parameter]) -> float:
    """The norm of the gradient of a term, with its weight at the start, in the weights that learn."""
    value = term.loss(*reads)
    factor = term.weight(0.0) if callable(term.weight) else term.weight
    if not value.requires_grad or not weights:
        return 0.0
    found = torch.autograd.grad(value, weights, allow_unused=True, retain_graph=True)
    return abs(factor) * math.hypot(*(one.norm().item() for one in found if one is not None))
