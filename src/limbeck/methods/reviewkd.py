"""Knowledge review: fused levels of the student match the teacher's levels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.connectors import as_map
from limbeck.core import LimbeckError, Schedule, Setup, Stage, Tap, Term, tap, weighted
from limbeck.methods.about import EVERY_TASK, About, Paper
from limbeck.methods.kd import label_terms
from limbeck.methods.reading import check_map_or_vector, in_order, network_maps, paired
from limbeck.methods.shared import check_at_least, check_norm, rising

PAPER = Paper("Chen, Liu, Zhao, Jia", "Distilling Knowledge via Knowledge Review", 2021, "2104.09044")


def context_loss(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """The hierarchical context loss: mean squared differences of the maps, unpooled and pooled to 4x4, 2x2 and 1x1.

    For each pair of maps, the mean squared difference of the unpooled maps has weight 1 and those of the pooled maps
    have weights 1/2, 1/4 and 1/8 in this order; the weighted sum is divided by the sum of the weights. A pooled size is
    left out unless it is smaller than height and width of the map. The loss is summed over the pairs. The weights are
    those of the authors' code (dvlab-research/ReviewKD, CIFAR-100/model/reviewkd.py, cede6ea); the paper gives none.
    No gradient flows to the teacher.

    Args:
        students: maps (N, C, H, W).
        teachers: maps of the same shapes.

    Raises:
        LimbeckError: the maps of a pair differ in shape.
    """
    total = students[0].new_zeros(())
    for student, teacher in zip(students, teachers, strict=True):
        if student.shape != teacher.shape:
            raise LimbeckError(f"maps of {tuple(student.shape)} and {tuple(teacher.shape)} differ in shape")
        target = teacher.detach()
        level, weight, weights = F.mse_loss(student, target), 1.0, 1.0
        for side in (4, 2, 1):
            if side < min(student.shape[2:]):
                weight /= 2
                weights += weight
                pooled = [F.adaptive_avg_pool2d(maps, side) for maps in (student, target)]
                level = level + weight * F.mse_loss(pooled[0], pooled[1])
        total = total + level / weights
    return total


class Fusion(nn.Module):
    """Attention-based fusion of a level's map with the features of the deeper levels, and a map to the teacher's width.

    Args:
        channels: C of the student's map.
        middle: M, the channels of the features that are passed to the next shallower level.
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
        """The map (N, C, H, W) and the deeper features (N, M, ...) to (N, C', *size) and new features (N, M, *size)."""
        passed: Tensor = self.conv1(student)
        if self.attention is not None and deeper is not None:
            above = F.interpolate(deeper, passed.shape[2:], mode="nearest")
            shares = torch.sigmoid(self.attention(torch.cat([passed, above], dim=1)))
            passed = passed * shares[:, :1] + above * shares[:, 1:]
        if passed.shape[2:] != torch.Size(size):
            passed = F.interpolate(passed, tuple(size), mode="nearest")
        return self.conv2(passed), passed


class Review(nn.Module):
    """`context_loss` of the student's levels, fused from the deepest to the shallowest, and the teacher's levels.

    Args:
        students: C of each of the student's maps, shallow to deep.
        teachers: C' of each of the teacher's maps.
        middle: the channels of the features that are passed from level to level.
    """

    def __init__(self, students: Sequence[int], teachers: Sequence[int], *, middle: int) -> None:
        super().__init__()
        deepest = len(students) - 1
        self.fusions = nn.ModuleList(
            Fusion(student, middle, teacher, fuses=level < deepest)
            for level, (student, teacher) in enumerate(zip(students, teachers, strict=True))
        )

    def forward(self, *tensors: Tensor) -> Tensor:
        """The loss, a scalar, of the student's maps, then the teacher's; a vector is a map of one position."""
        maps = [as_map(tensor) for tensor in tensors]
        students, teachers = maps[: len(self.fusions)], maps[len(self.fusions) :]
        fused: list[Tensor] = []
        passed = None
        for fusion, student, teacher in reversed(list(zip(self.fusions, students, teachers, strict=True))):
            level, passed = fusion(student, passed, teacher.shape[2:])
            fused.insert(0, level)
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
    """Knowledge review: the student's levels, each fused with the deeper ones, match the teacher's levels.

    By default the levels are the sections and, as the deepest, the feature that enters the classifier. As in the
    authors' code for CIFAR, the student's maps are read after the activation and the teacher's before it. The authors'
    weight rises during 20 of 240 epochs, once per epoch; here it rises over the same fraction of the stage, at every
    step.

    Args:
        setup: epochs, optimizer and schedule.
        review: weight of the context loss after the warm-up; the authors set it for each pair of networks.
        warmup: the fraction of the stage over which the weight rises linearly from 0; 0 means no warm-up.
        hard: weight of the cross-entropy with the labels.
        soft: weight of the soft targets, see `kd`; an option of the authors' code, off by default.
        temperature: T of the soft targets.
        middle_channels: channels of the features that are passed from level to level; the default is the channels of
            the student's deepest level, at most 512.
        student_layers: the layers that give the student's levels, shallow to deep; a vector is taken as a map of one
            position.
        teacher_layers: the same for the teacher.

    Raises:
        LimbeckError: a network has no maps; the layers do not come in pairs; an option is out of range; the batch size
            is 1 and a level has one position, so BatchNorm would see one value per channel.
    """
    if middle_channels is not None:
        check_at_least(1, "middle_channels", middle_channels)
    student = _levels(setup, "student", student_layers, activated=True)
    teacher = _levels(setup, "teacher", teacher_layers, activated=False)
    pairs = paired(student, teacher, student_layers, teacher_layers)
    for one in in_order(pairs):
        check_norm(setup, setup.shape(one), method="reviewkd")
    students, teachers = ([setup.shape(pair[side])[0] for pair in pairs] for side in (0, 1))
    loss = Review(students, teachers, middle=middle_channels or min(512, students[-1]))
    terms = {
        **label_terms(setup, hard=hard, soft=soft, temperature=temperature),
        "review": Term(loss, in_order(pairs), rising(review, warmup)),
    }
    return (Stage("reviewkd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


def _levels(setup: Setup, network: str, layers: tuple[str, ...], *, activated: bool) -> list[Tap]:
    """The named layers, or by default the sections' last maps and the feature."""
    levels = [tap(network, layer) for layer in layers] or [
        *network_maps(setup, network, (), method="reviewkd", activated=activated),
        setup.outline(network).feature,
    ]
    for one in levels:
        check_map_or_vector(setup, one, method="reviewkd")
    return levels


ABOUT = About(reviewkd, PAPER, tasks=EVERY_TASK)
