"""Mimic learning on features: the student regresses the teacher's penultimate feature."""

from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from limbeck.connectors import Through, linear
from limbeck.core import LimbeckError, Setup, Stage, Tap, Term
from limbeck.methods.about import About, Paper
from limbeck.methods.reading import with_classifier


def mimic_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the features, summed over D, mean over N; no 1/2 (Kim, Kim 2017, Eq. 1).

    Args:
        student: features (N, D).
        teacher: features (N, D).
    """
    return (student - teacher.detach()).square().flatten(1).sum(dim=1).mean()


def mimic(setup: Setup, *, adapter: Literal["none", "linear"] = "none") -> tuple[Stage, ...]:
    """The student regresses the vector that enters the teacher's classifier, and then takes that classifier over.

    No label and no logit is used. It is the second stage of ``class_distance``, and with a teacher that was trained by
    cross-entropy alone the baseline of that method.

    Args:
        setup: epochs, optimizer and schedule.
        adapter: ``linear`` puts a learnable linear map on the student's feature, so that its width may differ (an
            extension: the paper has none). It ends up folded into the student's classifier, which stays one layer.

    Raises:
        LimbeckError: the widths differ and there is no adapter; the student's classifier has no bias to take over.
    """
    student, teacher = (with_classifier(setup, name, method="mimic").feature for name in ("student", "teacher"))
    widths = setup.shape(student), setup.shape(teacher)
    module = linear(*widths) if adapter == "linear" else nn.Identity()
    if adapter == "none" and widths[0] != widths[1]:
        raise LimbeckError(
            f"the student's feature {student} has {widths[0]}, the teacher's {teacher} has {widths[1]}: the widths "
            "must be equal, or set adapter: linear"
        )
    heads = _classifier(setup, student), _classifier(setup, teacher)
    if heads[0].bias is None and (heads[1].bias is not None or adapter == "linear"):
        raise LimbeckError(f"the student's classifier {student.layer} has no bias, which the teacher's would need")
    take_over = partial(_take_over, *heads, module)
    loss = Through(module, mimic_loss) if isinstance(module, nn.Linear) else mimic_loss
    stage = Stage(
        "mimic",
        {"mimic": Term(loss, (student, teacher))},
        setup.epochs,
        setup.optimizer,
        setup.schedule,
        prepare=lambda sweep: take_over(),  # for what is measured between epochs; an adapter is then an epoch old
        finish=take_over,
    )
    return (stage,)


def _classifier(setup: Setup, feature: Tap) -> nn.Linear:
    return cast("nn.Linear", setup.module(feature.source, feature.layer))  # an outline's classifier is linear


@torch.no_grad()
def _take_over(student: nn.Linear, teacher: nn.Linear, adapter: nn.Module) -> None:
    """W (A g + a) + b = (W A) g + (W a + b)."""
    weight: Tensor = teacher.weight
    bias: Tensor | None = teacher.bias
    if isinstance(adapter, nn.Linear):
        shifted = weight @ adapter.bias
        weight, bias = weight @ adapter.weight, shifted if bias is None else shifted + bias
    student.weight.copy_(weight)
    own: Tensor | None = student.bias
    if own is not None:
        own.copy_(torch.zeros_like(own) if bias is None else bias)


ABOUT = About(mimic, paper=Paper("Ba, Caruana", "Do Deep Nets Really Need to be Deep?", 2014, "1312.6184"))
