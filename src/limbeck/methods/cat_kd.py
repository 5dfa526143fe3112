"""Class attention transfer: the student matches the teacher's class activation maps."""

from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import LimbeckError, Loss, Schedule, Setup, Stage, Tap, Term, from_student, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.shared import check_at_least, unit

PAPER = Paper("Guo, Yan, Li, Lin", "Class Attention Transfer Based Knowledge Distillation", 2023, "2304.12777")


def class_attention_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    resolution: int = 2,
    normalise: bool = True,
    binarise: bool = False,
    average: Literal["classes", "elements"] = "classes",
) -> Tensor:
    """The squared distance between the pooled class activation maps, averaged over classes and batch.

    The maps of both networks are average-pooled to R x R, so their sizes may differ. Source: `CAT_loss` of
    GzyAftermath/CAT-KD (mdistiller/distillers/CAT_KD.py, 4467073). No gradient flows to the teacher.

    Args:
        student: class activation maps (N, K, H, W).
        teacher: class activation maps (N, K, H', W').
        resolution: R, the height and width after pooling.
        normalise: divide each pooled map by its L2 norm over the positions, as published; a map of zeros stays 0.
        binarise: replace the teacher's map by 1 where it is above the mean of its absolute values, and 0 elsewhere.
        average: "classes", as published, sums over the R² positions. "elements", as in the authors' code, averages
            over them, which is the former divided by R².
    """
    teacher = teacher.detach()
    if binarise:
        teacher = (teacher > teacher.abs().mean(dim=(2, 3), keepdim=True)).to(student.dtype)
    pooled = [F.adaptive_avg_pool2d(maps, resolution) for maps in (student, teacher)]
    student, teacher = [unit(maps.flatten(2)).view_as(maps) for maps in pooled] if normalise else pooled
    squares = (student - teacher).square()
    return squares.mean() if average == "elements" else squares.sum(dim=(2, 3)).mean()


class ClassMaps(nn.Module):
    """`class_attention_loss` of the last maps (N, C, H, W), with each classifier applied at every position.

    A class activation map is the sum over the channels of the classifier's weight times the channel; its mean over the
    positions, plus the bias, is the logit. The student's classifier is trained by this loss; the teacher's is frozen.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.loss = loss

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a scalar."""
        return self.loss(_class_maps(self.student, student), _class_maps(self.teacher, teacher))


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
    """Class attention transfer: the student's class activation maps match the teacher's.

    The default weight corresponds to the default of 400 in the authors' code, which also averages over the R² = 4
    positions (``average: elements``). The authors use weights from 0.7 to 400 for different pairs of networks, often
    with ``normalise: false``, so the weight needs tuning.

    Args:
        setup: epochs, optimizer, schedule, shapes and the networks' outlines.
        hard: weight of the cross-entropy with the labels; with 0 the authors call the method CAT.
        attention: beta, weight of the distance between the maps; a number or a schedule.
        resolution: height and width to which the maps are pooled.
        normalise: divide each map by its L2 norm.
        binarise: threshold the teacher's maps to 0 and 1.
        average: "classes" sums over the positions, as published; "elements" averages, as in the authors' code.
        student_layer: the layer to whose map the student's classifier is applied; the default is the last map.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: the resolution is below 1; a classifier does not read the mean of a map, or the output of the
            named layer is not a map with as many channels as it reads; both weights are 0.
    """
    check_at_least(1, "resolution", resolution)
    student, teacher = _map(setup, "student", student_layer), _map(setup, "teacher", teacher_layer)
    loss = ClassMaps(
        setup.module("student", setup.outline("student").classifier),
        setup.module("teacher", setup.outline("teacher").classifier),
        partial(class_attention_loss, resolution=resolution, normalise=normalise, binarise=binarise, average=average),
    )
    terms = {
        "hard": hard_term(setup, from_student(), hard),
        "attention": Term(loss, (student, teacher), attention),
    }
    return (Stage("cat_kd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


def _map(setup: Setup, network: str, layer: str) -> Tap:
    outline = reading.with_classifier(setup, network, method="cat_kd")
    if not layer and not (outline.pools and outline.sections):
        raise LimbeckError(
            f"cat_kd applies the classifier at every position of the last map. That of the {network} does not "
            f"read the mean of that map over its positions: name such a map as {network}_layer, or use another method"
        )
    found = reading.last_map(setup, network, layer, method="cat_kd")
    shape, channels = setup.shape(found), setup.shape(outline.feature)[-1]
    if len(shape) != 3 or shape[0] != channels:
        raise LimbeckError(
            f"cat_kd needs a map of {channels} channels, as many as the classifier of the {network} reads, "
            f"but {found} gives {shape}"
        )
    return found


def _class_maps(classifier: nn.Module, maps: Tensor) -> Tensor:
    """The class activation maps (N, K, H, W) of maps (N, C, H, W)."""
    return F.conv2d(maps, classifier.get_parameter("weight")[:, :, None, None])


ABOUT = About(cat_kd, PAPER)
