"""SimKD: the student's projected map regresses the teacher's, and the student takes over its classifier."""

import copy
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Tap, Term, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.reading import with_classifier
from limbeck.methods.shared import check_norm, pooled_alike
from limbeck.models.reuse import Reuse, apply_reuse, find_reuse, projected_classifier, projector

Average = Literal["elements", "batch"]


class Projection(nn.Module):
    """The squared distance of the student's projected map, or vector, from the teacher's.

    The mean over batch and elements, as in the authors' code (DefangChen/SimKD, helper/loops.py, 2b389c3); or, with
    ``average="batch"``, the paper's sum over a sample's elements, mean over N: C' * H * W times as much. Of two sizes
    the larger map is averaged down before the projector. No gradient reaches the teacher.
    """

    def __init__(self, transfer: nn.Module, *, average: Average = "elements") -> None:
        super().__init__()
        self.projector = transfer
        self.average: Average = average

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Maps (N, C, H, W) and (N, C', H', W'), or vectors (N, D) and (N, D'), to a scalar."""
        target = teacher.detach()
        mine, its = (student, target) if student.dim() == 2 else pooled_alike(student, target)
        projected = self.projector(mine)
        if self.average == "elements":
            return F.mse_loss(projected, its)
        return F.mse_loss(projected, its, reduction="sum") / len(student)


def simkd(
    setup: Setup,
    *,
    feature: float | Schedule = 1.0,
    factor: int = 2,
    average: Average = "elements",
    final_relu: bool | None = None,
) -> tuple[Stage, ...]:
    """The student's last map, projected, regresses the teacher's, and the teacher's classifier is taken over.

    No label and no logit is read. After the last epoch the projector, with what the student's map is averaged down to
    where it is larger than the teacher's, and a copy of the teacher's classifier are put into the student, which then
    is the deployed network: they count in its parameters and multiply-accumulates. Until then its logits mean nothing.

    Where the feature of one of the networks is not the mean of a last map (an MLP, a vision transformer, a network
    that flattens), the projector, of linear layers, maps the student's feature to the teacher's: this form is ours.

    Args:
        setup: epochs, optimizer and schedule.
        feature: beta, the weight of the distance.
        factor: the projector has so many times fewer channels inside than the teacher's map.
        average: "elements" is the mean over all, as in the authors' code; "batch" the paper's sum over elements.
        final_relu: end the projector with a ReLU. By default so for maps, as in the authors' code, and not for
            features, which may be negative.

    Raises:
        LimbeckError: the factor is below 1; the student cannot be changed so, or is already; the batch size is 1 and
            the BatchNorms would have one value a channel to go by.
    """
    if factor < 1:
        raise LimbeckError(f"factor is {factor}: allowed are whole numbers from 1")
    classifier = _classifier(setup)
    taps, reuse = _plan(setup, classifier, factor, final_relu)
    _try(setup, reuse)
    loss = Projection(projector(reuse), average=average)
    return (
        Stage(
            "simkd",
            weighted({"feature": Term(loss, taps, feature)}),
            setup.epochs,
            setup.optimizer,
            setup.schedule,
            finish=_take_over(setup, reuse, loss.projector, classifier),
        ),
    )


def _classifier(setup: Setup) -> nn.Linear:
    """The teacher's.

    Raises:
        LimbeckError: it is more than a linear layer.
    """
    name = with_classifier(setup, "teacher", method="simkd").classifier
    found = setup.module("teacher", name)
    if not isinstance(found, nn.Linear) or not _is_plain(found):
        raise LimbeckError(
            f"simkd takes over a linear classifier and no more: the teacher's {name} is a {type(found).__name__}"
        )
    return found


@torch.no_grad()
def _is_plain(layer: nn.Linear) -> bool:
    """Whether the layer's weight and bias are all there is to it."""
    sample = torch.ones(1, layer.in_features, device=layer.weight.device, dtype=layer.weight.dtype)
    return torch.allclose(layer(sample), F.linear(sample, layer.weight, layer.bias), rtol=1e-4, atol=1e-6)


def _plan(setup: Setup, classifier: nn.Linear, factor: int, final_relu: bool | None) -> tuple[tuple[Tap, Tap], Reuse]:
    """What is read, and how the student is to be changed."""
    student, teacher = (with_classifier(setup, name, method="simkd") for name in ("student", "teacher"))
    places = student.pools and teacher.pools
    taps = (student.sections[-1].last, teacher.sections[-1].last) if places else (student.feature, teacher.feature)
    mine, its = setup.shape(taps[0]), setup.shape(taps[1])
    if taps[0].run is not None:
        raise LimbeckError(f"simkd puts a projector behind the student's last map, but {taps[0]} runs more than once")
    smaller = [min(pair) for pair in zip(mine[1:], its[1:], strict=True)]
    check_norm(setup, (its[0], *smaller), method="simkd")
    return taps, Reuse(
        layer=taps[0].layer,
        side=taps[0].side,
        channels=mine[0],
        outside=its[0],
        classifier=student.classifier,
        classes=setup.classes,
        factor=factor,
        places=places,
        size=smaller if places and smaller != list(mine[1:]) else None,
        final_relu=places if final_relu is None else final_relu,
        bias=classifier.bias is not None,
    )


def _try(setup: Setup, reuse: Reuse) -> None:
    """Raise LimbeckError unless a copy of the student, changed, still runs."""
    changed = copy.deepcopy(setup.module("student", "")).eval()
    held = apply_reuse(changed, reuse)
    like = next(held.projector.parameters())
    samples = torch.zeros(1, *setup.shape(Tap("batch", "inputs")), device=like.device, dtype=like.dtype)
    try:
        with torch.no_grad():
            changed(samples)
    except Exception as error:  # the network may be the user's, and raise anything
        raise LimbeckError(
            f"simkd puts a projector at the student's layer {reuse.layer}, with which it does not run: "
            f"{type(error).__name__}: {error}"
        ) from error


def _take_over(setup: Setup, reuse: Reuse, trained: nn.Module, classifier: nn.Linear) -> Callable[[], None]:
    """What puts the trained projector and the teacher's classifier into the student, once."""

    def finish() -> None:
        student = setup.module("student", "")
        if find_reuse(student) is not None:  # called again
            return
        held = apply_reuse(student, reuse)
        held.projector.load_state_dict(trained.state_dict())
        own = projected_classifier(student, reuse)
        with torch.no_grad():
            own.weight.copy_(classifier.weight)
            if classifier.bias is not None:
                own.bias.copy_(classifier.bias)

    return finish


ABOUT = About(
    simkd, paper=Paper("Chen et al.", "Knowledge Distillation with the Reused Teacher Classifier", 2022, "2203.14001")
)
