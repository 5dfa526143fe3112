"""Terms that cannot train anything, found on a batch before training: no gradient, or a loss below 0."""

import math
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from limbeck.core import Batch, Networks, Stage, Term
from limbeck.taps import Taps, evaluation_mode
from limbeck.train.freeze import frozen, frozen_modules, learners

SAMPLES = 16
"""The number of samples that are used."""

_NONE = 1e-10  # relative change of a loss that is only rounding


@torch.inference_mode(mode=False)  # with gradients, whatever is around the call
def meaningless(stages: Sequence[Stage], networks: Networks, batch: Batch) -> tuple[str, ...]:
    """Describe each term that cannot train anything in one sentence; most stages have none.

    A term has no gradient only if it has none after noise is added to the tensors that it reads: a student that equals
    its teacher, or that lies within a margin, lacks a gradient only for now. Losses that a stage prepares before its
    epochs are skipped. Networks, losses and random generators are left unchanged; all are on the device of the batch,
    which has several classes. Its first `SAMPLES` samples are used.
    """
    few = Batch(batch.inputs[:SAMPLES], batch.targets[:SAMPLES], batch.index[:SAMPLES], batch.view)
    losses = [loss for stage in stages for loss in stage.losses]
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        evaluation_mode([*networks.values(), *losses]),
    ):
        return tuple(chain.from_iterable(_of_stage(stage, networks, few) for stage in stages))


def _of_stage(stage: Stage, networks: Networks, batch: Batch) -> Iterator[str]:
    terms = {
        name: term for name, term in stage.terms.items() if not (stage.prepare and isinstance(term.loss, nn.Module))
    }
    reads = [tap for term in terms.values() for tap in term.reads]
    with frozen(frozen_modules(stage, networks)):
        weights = [one for part in learners(stage, networks) for one in part.parameters() if one.requires_grad]
        with Taps(networks, reads, learns=stage.networks) as tapped:
            values = tapped.read(batch)
        for name, term in terms.items():
            said = _of_term(term, [values[tap] for tap in term.reads], weights)
            if said:
                yield f"the term {name!r} of stage {stage.name!r} {said}"


def _of_term(term: Term, reads: Sequence[Tensor], weights: Sequence[Tensor]) -> str:
    own = [one for one in term.loss.parameters() if one.requires_grad] if isinstance(term.loss, nn.Module) else []
    learnt = [one for one in reads if one.requires_grad]
    if not learnt and not own:
        return "does not depend on any trained parameter, so it has no effect"
    found = term.loss(*[one.detach() for one in reads]).item()
    if not math.isfinite(found):
        return f"has a loss of {found} on the first batch"
    noisy = [_noisy(one) if one.requires_grad else one for one in reads]
    leaves = [one for one in noisy if one.requires_grad]
    value = term.loss(*noisy)
    gradients = _gradients(value, [*leaves, *own])
    largest = max(1.0, abs(value.item()))
    if _size(gradients, [*leaves, *own]) <= _NONE * largest:
        loss = f"its loss, {value.item():.3g}, does not depend on any trained parameter"
        return f"has no gradient on the first batch: {loss}"
    if not _size(gradients[len(leaves) :], own) and not _reaches(learnt, gradients[: len(leaves)], weights):
        return "has no gradient for any weight on the first batch: the tensors that it reads do not depend on a weight"
    return f"has a loss below 0 on the first batch, {found:.3g}: a distance cannot be negative" * (found < 0)


def _noisy(tensor: Tensor) -> Tensor:
    """The tensor plus noise of its own scale, as a leaf; the noise is the same in every call."""
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor)
    size = tensor.detach().std(correction=0)
    return (tensor.detach() + noise * torch.where(size > 0, size, 1.0)).requires_grad_()


def _gradients(value: Tensor, of: Sequence[Tensor]) -> list[Tensor]:
    if not value.requires_grad:
        return [torch.zeros_like(one) for one in of]
    return [*torch.autograd.grad(value, of, materialize_grads=True)]


def _size(gradients: Sequence[Tensor], of: Sequence[Tensor]) -> float:
    """Roughly how much the loss changes when each tensor changes by its own scale, or by 1."""
    sizes = [
        gradient.abs().sum().item() * max(1.0, one.abs().max().item())
        for gradient, one in zip(gradients, of, strict=True)
        if one.numel()
    ]
    return max(sizes, default=0.0)


def _reaches(learnt: Sequence[Tensor], gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether gradients of tensors of a network reach any of its weights."""
    if not learnt or not weights:
        return False
    found = torch.autograd.grad(learnt, weights, gradients, allow_unused=True, retain_graph=True)
    return any(gradient is not None and bool(gradient.any()) for gradient in found)
