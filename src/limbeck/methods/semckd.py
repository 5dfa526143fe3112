"""Semantic calibration: every layer of the student learns from all layers of the teacher, by attention."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Term, weighted
from limbeck.methods.about import OF_OUTPUTS, About, Paper
from limbeck.methods.kd import label_terms
from limbeck.methods.reading import network_maps
from limbeck.methods.shared import check_norm, pooled_alike, several_samples

PAPER = Paper("Chen et al.", "Cross-Layer Distillation with Semantic Calibration", 2020, "2012.03236")


class Embedding(nn.Module):
    """The rows of the similarity matrix of a batch to vectors of length 1: linear, ReLU, linear.

    Args:
        batch_size: B, the length of a row. Shorter rows are padded with zeros; the authors' code needs full batches.
        size: D of the vectors.
    """

    def __init__(self, batch_size: int, size: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(batch_size, 2 * size)
        self.linear2 = nn.Linear(2 * size, size)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, ...), N at most B, to (N, D)."""
        flat = maps.flatten(1)
        similarity = flat @ flat.t()
        rows = F.pad(similarity, (0, self.linear1.in_features - len(maps)))
        return F.normalize(self.linear2(F.relu(self.linear1(rows))), dim=1)


def regressor(channels: int, outside: int) -> nn.Sequential:
    """(N, C, H, W) to (N, C', H, W): convolutions 1x1, 3x3 and 1x1 with 2 C' channels in between."""
    middle = 2 * outside
    return nn.Sequential(
        nn.Conv2d(channels, middle, 1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, outside, 1, bias=False),
    )


class Calibration(nn.Module):
    """Squared distances between all pairs of student and teacher layers, weighted for each sample by attention.

    The loss is 1/(N S) times the sum over samples b, student layers i and teacher layers j of a[b, i, j] times the mean
    squared difference between the regressed map i and the map j. The attention a[b, i, :] is the softmax over j of
    <query, key>, which are embeddings of row b of the layers' similarity matrices flat(F) flat(F)^T. As in the authors'
    code (DefangChen/SemCKD, distiller_zoo/SemCKD.py and models/util.py, ebe5db1), it is not divided by sqrt(D). If the
    sizes differ, the larger map is average-pooled before the regressor. No gradient flows to the teacher.

    Args:
        students: C of each of the student's maps.
        teachers: C' of each of the teacher's maps.
        batch_size: B, the largest number of samples in a batch.
        embedding: D of queries and keys; the default is B / 4, as in the authors' code.
    """

    def __init__(
        self, students: Sequence[int], teachers: Sequence[int], *, batch_size: int, embedding: int | None = None
    ) -> None:
        super().__init__()
        size = embedding or max(batch_size // 4, 1)
        self.batch_size = batch_size
        self.queries = nn.ModuleList(Embedding(batch_size, size) for _ in students)
        self.keys = nn.ModuleList(Embedding(batch_size, size) for _ in teachers)
        self.regressors = nn.ModuleList(
            nn.ModuleList(regressor(student, teacher) for teacher in teachers) for student in students
        )

    def forward(self, *tensors: Tensor) -> Tensor:
        """The loss, a scalar, of the student's maps (N, C, H, W) and then the teacher's.

        Raises:
            LimbeckError: the batch is larger than ``batch_size``.
        """
        count = len(self.queries)
        students, teachers = tensors[:count], [maps.detach() for maps in tensors[count:]]
        if len(students[0]) > self.batch_size:
            raise LimbeckError(f"got {len(students[0])} samples: the embeddings take at most {self.batch_size}")
        queries = torch.stack([embed(maps) for embed, maps in zip(self.queries, students, strict=True)], dim=1)
        keys = torch.stack([embed(maps) for embed, maps in zip(self.keys, teachers, strict=True)], dim=1)
        attention = torch.softmax(queries @ keys.transpose(1, 2), dim=2)  # (N, S, T)
        rows = []
        for row, student in zip(self.regressors, students, strict=True):
            pairs = zip(row.children(), teachers, strict=True)
            rows.append(torch.stack([_distance(regress, student, teacher) for regress, teacher in pairs], dim=1))
        distances = torch.stack(rows, dim=1)
        return (attention * distances).sum() / attention[:, :, 0].numel()


def _distance(regress: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of each sample, (N,), between the regressed map and the teacher's."""
    student, teacher = pooled_alike(student, teacher)
    distance: Tensor = (regress(student) - teacher).square().flatten(1).mean(dim=1)
    return distance


def semckd(
    setup: Setup,
    *,
    calibration: float | Schedule = 400.0,
    hard: float | Schedule = 1.0,
    soft: float | Schedule = 1.0,
    temperature: float = 4.0,
    student_layers: tuple[str, ...] = (),
    teacher_layers: tuple[str, ...] = (),
) -> tuple[Stage, ...]:
    """Semantic calibration: each map of the student learns from all maps of the teacher, weighted by attention.

    All weights are the authors' (README, ebe5db1). Their objective includes soft targets; ``soft: 0`` removes them.

    Args:
        setup: epochs, optimizer and schedule. The batch size is the length of the embeddings' input; a smaller last
            batch is padded with zeros.
        calibration: beta, the weight of the attended distances.
        hard: weight of the cross-entropy with the labels.
        soft: weight of the soft targets, see `kd`.
        temperature: T of the soft targets.
        student_layers: the layers that give the student's maps; the default is each section's last map.
        teacher_layers: the same for the teacher; their number may differ from the student's.

    Raises:
        LimbeckError: a network has no maps, the output of a layer is not a map, the batch size is 1, or the temperature
            is not above 0.
    """
    several_samples(setup, "semckd")
    students = network_maps(setup, "student", student_layers, method="semckd")
    teachers = network_maps(setup, "teacher", teacher_layers, method="semckd")
    for one in (*students, *teachers):
        check_norm(setup, setup.shape(one), method="semckd")
    loss = Calibration(
        [setup.shape(one)[0] for one in students],
        [setup.shape(one)[0] for one in teachers],
        batch_size=setup.batch_size,
    )
    terms = {
        **label_terms(setup, hard=hard, soft=soft, temperature=temperature),
        "calibration": Term(loss, (*students, *teachers), calibration),
    }
    return (Stage("semckd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


ABOUT = About(semckd, PAPER, tasks=OF_OUTPUTS)
