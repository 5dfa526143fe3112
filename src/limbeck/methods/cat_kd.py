"""Class attention transfer: the student matches the teacher's class activation maps."""

from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import TARGETS, LimbeckError, Loss, Schedule, Setup, Stage, Tap, Term, from_student, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_loss
from limbeck.methods.shared import unit


def class_attention_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    resolution: int = 2,
    normalise: bool = True,
    binarise: bool = False,
    average: Literal["classes", "elements"] = "classes",
) -> Tensor:
    """The squared distance of the class activation maps after pooling, mean over classes and batch.

    Both sides are average-pooled to R x R places, so that their sizes may differ. Source: `CAT_loss` of
    GzyAftermath/CAT-KD (mdistiller/distillers/CAT_KD.py, 4467073). None of the gradient reaches the teacher.

    Args:
        student: class activation maps (N, K, H, W).
        teacher: class activation maps (N, K, H', W').
        resolution: R, the height and width after pooling.
        normalise: divide each pooled map by its L2 norm over the places, as published; a map that is 0 stays so.
        binarise: compare with the places where the teacher's map is above the mean of its absolute values, as 0 and 1.
        average: "classes", as published, sums over the R² places; "elements", as the authors' code, takes their mean
            too and so weighs R² times less.
    """
    teacher = teacher.detach()
    if binarise:
        teacher = (teacher > teacher.abs().mean(dim=(2, 3), keepdim=True)).to(student.dtype)
    pooled = [F.adaptive_avg_pool2d(maps, resolution) for maps in (student, teacher)]
    ours, theirs = [unit(maps.flatten(2)).view_as(maps) for maps in pooled] if normalise else pooled
    squares = (ours - theirs).square()
    return squares.mean() if average == "elements" else squares.sum(dim=(2, 3)).mean()


class ClassMaps(nn.Module):
    """`class_attention_loss` of last maps (N, C, H, W): each network's classifier is applied at every place.

    A class's map is the sum over channels of the classifier's weight times the channel; its mean over the places, plus
    the bias, is the logit. The student's classifier learns through it, the teacher's is the frozen one.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.loss = loss

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a scalar."""
        value: Tensor = self.loss(_at_every_place(self.student, student), _at_every_place(self.teacher, teacher))
        return value


def cat_kd(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    attention: float | Schedule = 100.0,
    resolution: int = 2,
    normalise: bool = True,
    binarise: bool = False,
    average: Literal["classes", "elements"] = "classes",
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """Class attention transfer: where in the image each class is seen, by the classifier's own weights.

    The default weight is the 400 that the authors' code starts from, which takes the mean over the R² = 4 places too
    (``average: elements``). Their settings for the single pairs lie between 0.7 and 400, many of them with
    ``normalise: false``: tune it.

    Args:
        setup: epochs, optimizer, schedule, shapes and the networks' outlines.
        hard: weight of the cross-entropy with the labels; the authors call it CAT where it is 0.
        attention: beta, weight of the maps' distance; a number or a schedule.
        resolution: height and width to which the maps are pooled.
        normalise: divide each map by its L2 norm.
        binarise: make the teacher's maps 0 and 1.
        average: "classes" sums over places as published, "elements" takes their mean as the authors' code.
        student_layer: the map that the student's classifier is applied to; the default is the last one.
        teacher_layer: the same of the teacher.

    Raises:
        LimbeckError: the resolution is not at least 1; a network's classifier does not read the mean of a map, or the
            layer named gives no map of the channels that it reads; both weights are 0.
    """
    if resolution < 1:
        raise LimbeckError(f"resolution is {resolution}: it must be at least 1")
    student, teacher = _map(setup, "student", student_layer), _map(setup, "teacher", teacher_layer)
    loss = ClassMaps(
        setup.module("student", setup.outline("student").classifier),
        setup.module("teacher", setup.outline("teacher").classifier),
        partial(class_attention_loss, resolution=resolution, normalise=normalise, binarise=binarise, average=average),
    )
    terms = {
        "hard": Term(hard_loss, (from_student(), TARGETS), hard),
        "attention": Term(loss, (student, teacher), attention),
    }
    return (Stage("cat_kd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


def _map(setup: Setup, network: str, layer: str) -> Tap:
    outline = reading.with_classifier(setup, network, method="cat_kd")
    if not layer and not (outline.pools and outline.sections):
        raise LimbeckError(
            f"cat_kd applies the classifier at every place of the last map, which needs a {network} whose classifier "
            "reads the mean of that map over its places, and this one's does not: name such a map as "
            f"{network}_layer, or take another method"
        )
    found = reading.last_map(setup, network, layer)
    shape, channels = setup.shape(found), setup.shape(outline.feature)[-1]
    if len(shape) != 3 or shape[0] != channels:
        raise LimbeckError(
            f"cat_kd needs a map of {channels} channels, as many as the {network}'s classifier reads, "
            f"but {found} gives {shape}"
        )
    return found


def _at_every_place(classifier: nn.Module, maps: Tensor) -> Tensor:
    """The class activation maps (N, K, H, W) of maps (N, C, H, W)."""
    return F.conv2d(maps, classifier.get_parameter("weight")[:, :, None, None])


ABOUT = About(
    cat_kd,
    paper=Paper("Guo, Yan, Li, Lin", "Class Attention Transfer Based Knowledge Distillation", 2023, "2304.12777"),
)
