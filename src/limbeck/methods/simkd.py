"""SimKD: the student's projected map regresses the teacher's, and the student reuses the teacher's classifier."""

import copy
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Tap, Term, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.reading import with_classifier
from limbeck.methods.shared import check_at_least, check_norm, pooled_alike
from limbeck.models.reuse import Reuse, apply_reuse, find_reuse, projected_classifier, projector

PAPER = Paper("Chen et al.", "Knowledge Distillation with the Reused Teacher Classifier", 2022, "2203.14001")

Average = Literal["elements", "batch"]


class Projection(nn.Module):
    """The squared distance between the student's projected map, or vector, and the teacher's.

    ``average="elements"`` averages over batch and elements, as in the authors' code (DefangChen/SimKD,
    helper/loops.py, 2b389c3). ``average="batch"`` sums over the elements and averages over N, as in the paper:
    C' * H * W times as much. If the sizes differ, the larger map is average-pooled before the projector. No gradient
    flows to the teacher.
    """

    def __init__(self, transfer: nn.Module, *, average: Average = "elements") -> None:
        super().__init__()
        self.projector = transfer
        self.average: Average = average

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a scalar, of maps (N, C, H, W) and (N, C', H', W') or of vectors (N, D) and (N, D')."""
        target = teacher.detach()
        if student.dim() != 2:
            student, target = pooled_alike(student, target)
        projected = self.projector(student)
        if self.average == "elements":
            return F.mse_loss(projected, target)
        return F.mse_loss(projected, target, reduction="sum") / len(student)


def simkd(
    setup: Setup,
    *,
    feature: float | Schedule = 1.0,
    factor: int = 2,
    average: Average = "elements",
    final_relu: bool | None = None,
) -> tuple[Stage, ...]:
    """SimKD: the student's projected last map regresses the teacher's, and the student reuses the teacher's classifier.

    Neither labels nor logits are read. After the last epoch the student receives the projector and a copy of the
    teacher's classifier, and average pooling if its map is larger than the teacher's. That is the deployed network: its
    parameters and multiply-accumulates include them. Before that, the student's logits are meaningless.

    If the feature of a network is not the mean of its last map (an MLP, a vision transformer, a network that flattens),
    a projector of linear layers maps the student's feature to the teacher's. This form is limbeck's.

    Args:
        setup: epochs, optimizer and schedule.
        feature: beta, the weight of the distance.
        factor: the channels of the teacher's map divided by those inside the projector.
        average: "elements" is the mean over all elements, as in the authors' code; "batch" is the paper's sum over the
            elements of a sample.
        final_relu: whether the projector ends with a ReLU. The default is True for maps, as in the authors' code, and
            False for features, which may be negative.

    Raises:
        LimbeckError: the factor is below 1; the student cannot be changed in this way or already is; the batch size is
            1 and the BatchNorms would see one value per channel.
    """
    check_at_least(1, "factor", factor)
    classifier = _classifier(setup)
    taps, reuse = _plan(setup, classifier, factor, final_relu)
    _try(setup, reuse)
    loss = Projection(projector(reuse), average=average)
    terms = weighted({"feature": Term(loss, taps, feature)})
    finish = partial(_take_over, setup, reuse, loss.projector, classifier)
    return (Stage("simkd", terms, setup.epochs, setup.optimizer, setup.schedule, finish=finish),)


def _classifier(setup: Setup) -> nn.Linear:
    """The teacher's classifier.

    Raises:
        LimbeckError: it is not a plain linear layer.
    """
    name = with_classifier(setup, "teacher", method="simkd").classifier
    found = setup.module("teacher", name)
    if not isinstance(found, nn.Linear) or not _is_plain(found):
        raise LimbeckError(
            f"simkd needs a teacher with a plain linear classifier, but the teacher's {name} is a "
            f"{type(found).__name__}"
        )
    return found


@torch.no_grad()
def _is_plain(layer: nn.Linear) -> bool:
    """Whether the layer computes nothing but its weight and bias."""
    sample = torch.ones(1, layer.in_features, device=layer.weight.device, dtype=layer.weight.dtype)
    return torch.allclose(layer(sample), F.linear(sample, layer.weight, layer.bias), rtol=1e-4, atol=1e-6)


def _plan(setup: Setup, classifier: nn.Linear, factor: int, final_relu: bool | None) -> tuple[tuple[Tap, Tap], Reuse]:
    """The taps to read, and how the student is changed at the end."""
    student, teacher = (with_classifier(setup, name, method="simkd") for name in ("student", "teacher"))
    places = student.pools and teacher.pools
    taps = (student.sections[-1].last, teacher.sections[-1].last) if places else (student.feature, teacher.feature)
    shape, target = setup.shape(taps[0]), setup.shape(taps[1])
    if taps[0].run is not None:
        raise LimbeckError(f"simkd puts a projector after the student's last map, but {taps[0]} runs more than once")
    smaller = [min(pair) for pair in zip(shape[1:], target[1:], strict=True)]
    check_norm(setup, (target[0], *smaller), method="simkd")
    return taps, Reuse(
        layer=taps[0].layer,
        side=taps[0].side,
        channels=shape[0],
        outside=target[0],
        classifier=student.classifier,
        classes=setup.classes,
        factor=factor,
        places=places,
        size=smaller if places and smaller != list(shape[1:]) else None,
        final_relu=places if final_relu is None else final_relu,
        bias=classifier.bias is not None,
    )


def _try(setup: Setup, reuse: Reuse) -> None:
    """Raise LimbeckError unless a changed copy of the student runs."""
    changed = copy.deepcopy(setup.module("student", "")).eval()
    held = apply_reuse(changed, reuse)
    like = next(held.projector.parameters())
    samples = torch.zeros(1, *setup.shape(Tap("batch", "inputs")), device=like.device, dtype=like.dtype)
    try:
        with torch.no_grad():
            changed(samples)
    except Exception as error:  # a user's network may raise any error
        raise LimbeckError(
            f"simkd puts a projector at the student's layer {reuse.layer}, with which it does not run: "
            f"{type(error).__name__}: {error}"
        ) from error


@torch.no_grad()
def _take_over(setup: Setup, reuse: Reuse, trained: nn.Module, classifier: nn.Linear) -> None:
    """Put the trained projector and the teacher's classifier into the student, once."""
    student = setup.module("student", "")
    if find_reuse(student) is not None:  # called again
        return
    apply_reuse(student, reuse).projector.load_state_dict(trained.state_dict())
    copied = projected_classifier(student, reuse)
    copied.weight.copy_(classifier.weight)
    if classifier.bias is not None:
        copied.bias.copy_(classifier.bias)


ABOUT = About(simkd, PAPER)
