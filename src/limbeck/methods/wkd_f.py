"""WKD-F: the Wasserstein distance between Gaussians that describe the channels of two maps."""

from functools import partial

import torch
from torch import Tensor, nn

from limbeck.connectors import Through
from limbeck.core import LimbeckError, Schedule, Setup, Stage, Tap, Term, weighted
from limbeck.methods.about import OF_OUTPUTS, About, Paper
from limbeck.methods.kd import label_terms
from limbeck.methods.reading import last_map
from limbeck.methods.shared import as_schedule, check_at_least, connector
from limbeck.schedules import cosine

PAPER = Paper(
    "Lv, Yang, Li",
    "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation",
    2024,
    "2412.08139",
)


def gaussian_loss(student: Tensor, teacher: Tensor, *, mean: float = 4.0, grid: int = 1, floor: float = 1e-5) -> Tensor:
    """Mean * ||mu_S - mu_T||² + ||sigma_S - sigma_T||², summed over channels, averaged over samples and cells.

    The maps are cut into grid x grid cells, those of adaptive pooling. mu and sigma are the mean and the deviation of a
    channel over the positions of a cell, so the maps may differ in size. sigma is sqrt(v + floor) with the unbiased
    variance v, as in the authors' code (`wkd_feature_loss`, read in its copy hainn2803/WKD,
    mdistiller/distillers/WKD.py, 635a710). For ``mean: 1`` and diagonal covariances it is the squared 2-Wasserstein
    distance of the Gaussians. No gradient flows to the teacher.

    Args:
        student: maps (N, C, H, W).
        teacher: maps (N, C, H', W').
        mean: the weight of the means.
        grid: the number of cells in each direction. Every cell needs two positions.
        floor: added to the variance, above 0, so that the gradient is finite where a channel is constant.
    """
    values = []
    for one, other in zip(_cells(student, grid), _cells(teacher.detach(), grid), strict=True):
        means = (one.mean(dim=2) - other.mean(dim=2)).square()
        deviations = ((one.var(dim=2) + floor).sqrt() - (other.var(dim=2) + floor).sqrt()).square()
        values.append((mean * means + deviations).sum(dim=1).mean())
    return torch.stack(values).mean()


def wkd_f(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    gaussian: float | Schedule = 0.006,
    mean: float = 4.0,
    grid: int = 1,
    decay: float = 150 / 240,
    soft: float | Schedule = 0.0,
    temperature: float = 4.0,
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """WKD-F: mean and deviation of each channel of the student's last map match those of the teacher's.

    The defaults are the authors' for ResNet-32x4 to ResNet-8x4 on CIFAR-100; for ResNet-34 to ResNet-18 on ImageNet
    they use ``gaussian: 0.02`` and ``mean: 2``. The student's map goes through a 1x1 convolution, a BatchNorm and a
    ReLU. If the maps differ in size, the authors use a larger convolution or a transposed one; here they keep their
    sizes, because only the statistics are compared.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        gaussian: weight of the distance between the Gaussians; a number or a schedule.
        mean: weight of the means relative to the deviations.
        grid: cells in each direction; the authors use 1 and compare other numbers.
        decay: the fraction of the stage after which the weight of the distance falls to 0 along a cosine; 1 means that
            it stays.
        soft: weight of the soft targets, see `kd`; the published objective has none.
        temperature: T of the soft targets.
        student_layer: the layer that gives the map; the default is the map that global pooling turns into the feature.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: a layer gives no map, or one with too few positions; an option is out of range; the batch size is
            1 and the student's map has one position; all weights are 0.
    """
    check_at_least(1, "grid", grid)
    if not 0 <= decay <= 1:
        raise LimbeckError(f"decay is {decay}: it is a fraction of the stage, at least 0 and at most 1")
    student = _map(setup, last_map(setup, "student", student_layer, method="wkd_f"), grid)
    teacher = _map(setup, last_map(setup, "teacher", teacher_layer, method="wkd_f"), grid)
    mapped = nn.Sequential(*connector(setup, setup.shape(student), setup.shape(teacher), method="wkd_f"), nn.ReLU())
    loss = Through(mapped, partial(gaussian_loss, mean=mean, grid=grid))
    terms = {
        **label_terms(setup, hard=hard, soft=soft, temperature=temperature),
        "gaussian": Term(loss, (student, teacher), _falling(gaussian, decay)),
    }
    return (Stage("wkd_f", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


def _map(setup: Setup, found: Tap, grid: int) -> Tap:
    shape = setup.shape(found)
    if len(shape) != 3:
        raise LimbeckError(f"wkd_f compares maps (C, H, W), but {found} gives {shape}: name a layer that gives a map")
    smallest = min(cell.shape[2] for cell in _cells(torch.empty(1, *shape), grid))
    if smallest < 2:
        raise LimbeckError(
            f"wkd_f needs cells of at least 2 positions for a deviation, but with grid: {grid} a cell of {found}, "
            f"which gives {shape}, has {smallest}: use a smaller grid or a layer with a larger map"
        )
    return found


def _cells(maps: Tensor, grid: int) -> list[Tensor]:
    """The cells of maps (N, C, H, W), each (N, C, positions)."""
    rows, columns = (_slices(size, grid) for size in maps.shape[2:])
    return [maps[:, :, row, column].flatten(2) for row in rows for column in columns]


def _slices(size: int, grid: int) -> list[slice]:
    return [slice(size * cell // grid, -(-size * (cell + 1) // grid)) for cell in range(grid)]


def _falling(weight: float | Schedule, start: float) -> float | Schedule:
    """The weight times a factor that is 1 until ``start`` and then falls to 0 along a cosine."""
    if start == 1 or weight == 0:
        return weight
    full, fall = as_schedule(weight), cosine()
    return lambda progress: full(progress) * fall(max(progress - start, 0.0) / (1 - start))


ABOUT = About(wkd_f, PAPER, tasks=OF_OUTPUTS)
