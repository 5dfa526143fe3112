"""Mimic learning on features: the student regresses the teacher's penultimate feature."""

from dataclasses import replace
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from limbeck.connectors import Through, linear
from limbeck.core import LimbeckError, Setup, Stage, Tap, Term
from limbeck.methods.about import OF_OUTPUTS, About
from limbeck.methods.logits import PAPER
from limbeck.methods.reading import with_classifier


def mimic_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of features (N, D), summed over D and averaged over N, without 1/2 (Kim, Kim 2017, Eq. 1)."""
    return (student - teacher.detach()).square().flatten(1).sum(dim=1).mean()


def mimic(setup: Setup, *, adapter: Literal["none", "linear"] = "none") -> tuple[Stage, ...]:
    """The student regresses the input of the teacher's classifier, and then receives a copy of that classifier.

    Neither labels nor logits are used. This is the second stage of `class_distance`. With a teacher that was trained
    with cross-entropy only, it is the baseline of that method. Ba and Caruana regress logits; the loss on features is
    that of Kim and Kim (2017).

    Args:
        setup: epochs, optimizer and schedule.
        adapter: "linear" adds a learnable linear layer to the student's feature, so that its width may differ from the
            teacher's. This is an extension: the paper has no adapter. At the end it is folded into the student's
            classifier, which stays one layer.

    Raises:
        LimbeckError: the widths differ and there is no adapter; the student's classifier has no bias but needs one.
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
        raise LimbeckError(f"the student's classifier {student.layer} has no bias, but that of the teacher needs one")
    take_over = partial(_take_over, *heads, module)
    loss = Through(module, mimic_loss) if isinstance(module, nn.Linear) else mimic_loss
    stage = Stage("mimic", {"mimic": Term(loss, (student, teacher))}, setup.epochs, setup.optimizer, setup.schedule)
    # also before each epoch, for the evaluation between epochs, where an adapter is one epoch old
    return (replace(stage, prepare=lambda sweep: take_over(), finish=take_over),)


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
    student_bias: Tensor | None = student.bias
    if student_bias is not None:
        student_bias.copy_(torch.zeros_like(student_bias) if bias is None else bias)


ABOUT = About(mimic, PAPER, tasks=OF_OUTPUTS)
