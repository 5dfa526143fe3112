"""Knowledge review: fused levels of the student match the teacher's levels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Tap, Term, tap, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.reading import sections
from limbeck.methods.shared import check_norm, label_terms
from limbeck.schedules import linear

_POOLED_SIDES = (4, 2, 1)
_WIDEST = 512


def context_loss(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """The hierarchical context loss: mean squared differences of the maps as they are and pooled to 4x4, 2x2 and 1x1.

    Of each pair the mean over everything of the squared differences counts 1, then those of the pooled maps 1/2, 1/4
    and 1/8 in the order used, over the sum of these weights; a size is used where it is below both of the map's. The
    sum over the pairs. The weights are the authors' code's (dvlab-research/ReviewKD, CIFAR-100/model/reviewkd.py,
    cede6ea); the paper gives none. None of the gradient reaches the teacher.

    Args:
        students: maps (N, C, H, W).
        teachers: maps of the same shapes.

    Raises:
        LimbeckError: two maps of a pair differ in shape.
    """
    total = students[0].new_zeros(())
    for student, teacher in zip(students, teachers, strict=True):
        if student.shape != teacher.shape:
            raise LimbeckError(f"maps of {tuple(student.shape)} and {tuple(teacher.shape)} differ in shape")
        target = teacher.detach()
        level, weight, weights = F.mse_loss(student, target), 1.0, 1.0
        for side in _POOLED_SIDES:
            if side < min(student.shape[2:]):
                weight /= 2
                weights += weight
                pooled = [F.adaptive_avg_pool2d(one, side) for one in (student, target)]
                level = level + weight * F.mse_loss(pooled[0], pooled[1])
        total = total + level / weights
    return total


class Fusion(nn.Module):
    """Attention-based fusion: a level's map with what came up from the deeper ones, to the teacher's width.

    Args:
        channels: C of the student's map.
        middle: M, the channels of what is passed on.
        outside: C' of the teacher's map.
        fuses: whether there is a deeper level.
    """

    def __init__(self, channels: int, middle: int, outside: int, *, fuses: bool) -> None:
        super().__init__()
        entering = nn.Conv2d(channels, middle, 1, bias=False)
        leaving = nn.Conv2d(middle, outside, 3, padding=1, bias=False)
        for convolution in (entering, leaving):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.conv1 = nn.Sequential(entering, nn.BatchNorm2d(middle))
        self.conv2 = nn.Sequential(leaving, nn.BatchNorm2d(outside))
        self.attention = nn.Conv2d(2 * middle, 2, 1) if fuses else None

    def forward(self, student: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The map (N, C, H, W) and the deeper (N, M, ...) to (N, C', *size) and what is passed on, (N, M, *size)."""
        passed: Tensor = self.conv1(student)
        if self.attention is not None and deeper is not None:
            above = F.interpolate(deeper, passed.shape[2:], mode="nearest")
            shares = torch.sigmoid(self.attention(torch.cat([passed, above], dim=1)))
            passed = passed * shares[:, :1] + above * shares[:, 1:]
        if passed.shape[2:] != torch.Size(size):
            passed = F.interpolate(passed, tuple(size), mode="nearest")
        return self.conv2(passed), passed


class Review(nn.Module):
    """The student's levels, fused from the deepest up, against the teacher's by `context_loss`.

    Args:
        students: C of each of the student's maps, shallow to deep.
        teachers: C' of each of the teacher's.
        middle: the channels of what is passed from level to level.
    """

    def __init__(self, students: Sequence[int], teachers: Sequence[int], *, middle: int) -> None:
        super().__init__()
        deepest = len(students) - 1
        self.fusions = nn.ModuleList(
            Fusion(mine, middle, its, fuses=level < deepest)
            for level, (mine, its) in enumerate(zip(students, teachers, strict=True))
        )

    def forward(self, *tensors: Tensor) -> Tensor:
        """All of the student's maps, then all of the teacher's, to a scalar; a vector is a map of one place."""
        maps = [one[:, :, None, None] if one.dim() == 2 else one for one in tensors]
        students, teachers = maps[: len(self.fusions)], maps[len(self.fusions) :]
        fused: list[Tensor] = []
        passed = None
        for fusion, student, teacher in reversed(list(zip(self.fusions, students, teachers, strict=True))):
            one, passed = fusion(student, passed, teacher.shape[2:])
            fused.insert(0, one)
        return context_loss(fused, teachers)


def reviewkd(
    setup: Setup,
    *,
    review: float | Schedule = 1.0,
    warmup: float = 20 / 240,
    hard: float | Schedule = 1.0,
    soft: float | Schedule = 0.0,
    temperature: float = 4.0,
    middle_channels: int | None = None,
    student_layers: tuple[str, ...] = (),
    teacher_layers: tuple[str, ...] = (),
) -> tuple[Stage, ...]:
    """Knowledge review: deep and shallow levels of the student, fused, match the teacher's levels.

    By default the levels are the sections and, as the deepest, the feature that enters the classifier. As in the
    authors' code for CIFAR, the student's maps are read after the activation and the teacher's before it. Their weight
    rises over 20 of 240 epochs in steps of one epoch; ours over the same share of the stage, at every step.

    Args:
        setup: epochs, optimizer and schedule.
        review: weight of the context loss after the warm-up; the authors set it for each pair of networks.
        warmup: the share of the stage over which that weight rises from 0, in a straight line; 0 for none.
        hard: weight of the cross-entropy with the labels.
        soft: weight of soft targets, see `kd`; an option of the authors' code, off by default.
        temperature: T of the soft targets.
        middle_channels: of what is passed from level to level; by default those of the student's deepest level, at
            most 512.
        student_layers: what gives the student's levels, shallow to deep; vectors are maps of one place.
        teacher_layers: the same of the teacher.

    Raises:
        LimbeckError: a network has no maps; the layers do not come in pairs; an option is out of range; the batch
            size is 1 and a level has one place, for which BatchNorm has no statistics.
    """
    if not 0 <= warmup < 1:
        raise LimbeckError(f"warmup is {warmup}: it is a share of the stage, at least 0 and below 1")
    if middle_channels is not None and middle_channels < 1:
        raise LimbeckError(f"middle_channels is {middle_channels}: allowed are whole numbers from 1")
    students, teachers = _levels(setup, student_layers, teacher_layers)
    for one in (*students, *teachers):
        check_norm(setup, setup.shape(one), method="reviewkd")
    widths = [[setup.shape(one)[0] for one in side] for side in (students, teachers)]
    loss = Review(*widths, middle=middle_channels or min(_WIDEST, widths[0][-1]))
    terms = {
        **label_terms(setup, hard=hard, soft=soft, temperature=temperature),
        "review": Term(loss, (*students, *teachers), _rising(review, warmup)),
    }
    return (Stage("reviewkd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


def _levels(
    setup: Setup, student_layers: tuple[str, ...], teacher_layers: tuple[str, ...]
) -> tuple[list[Tap], list[Tap]]:
    students = [tap("student", layer) for layer in student_layers] or [
        *(section.last for section in sections(setup, "student", method="reviewkd")),
        setup.outline("student").feature,
    ]
    teachers = [tap("teacher", layer) for layer in teacher_layers] or [
        *(section.pre_activation for section in sections(setup, "teacher", method="reviewkd")),
        setup.outline("teacher").feature,
    ]
    if (student_layers or teacher_layers) and len(students) != len(teachers):
        raise LimbeckError(
            f"student_layers has {len(students)} layers and teacher_layers {len(teachers)}: name them in pairs"
        )
    for one in (*students, *teachers):
        if len(setup.shape(one)) not in (1, 3):
            raise LimbeckError(f"reviewkd reads maps (C, H, W) and vectors (D,), but {one} gives {setup.shape(one)}")
    count = min(len(students), len(teachers))
    return students[-count:], teachers[-count:]


def _rising(weight: float | Schedule, warmup: float) -> float | Schedule:
    """The weight, times a straight line from 0 to 1 over the first share of the stage."""
    if warmup == 0 or weight == 0:
        return weight
    rise = linear(start=0.0, end=1.0, until=warmup)
    if isinstance(weight, int | float):
        return lambda progress: weight * rise(progress)
    return lambda progress: weight(progress) * rise(progress)


ABOUT = About(
    reviewkd, paper=Paper("Chen, Liu, Zhao, Jia", "Distilling Knowledge via Knowledge Review", 2021, "2104.09044")
)
