"""Semantic calibration: every layer of the student learns from all layers of the teacher, by attention."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Tap, Term, tap, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.reading import sections
from limbeck.methods.shared import check_norm, label_terms, pooled_alike, several_samples

_SHARE = 4  # the embedding's size is the batch's over 4


class Embedding(nn.Module):
    """Rows of a batch's similarity matrix to vectors of length 1: linear, ReLU, linear.

    Args:
        batch_size: B, the length of a row; shorter rows are filled up with zeros (ours: the authors' code takes full
            batches only).
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
    """The student's map to the teacher's width, (N, C, H, W) to (N, C', H, W): 1x1, 3x3 and 1x1, 2 C' in between."""
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
    """Every pair of a student's and a teacher's layer, weighted for each sample by attention.

    The loss is 1/(N S) times the sum over samples b, student layers i and teacher layers j of a[b, i, j] times the mean
    of the squared differences of the regressed map i and the map j. a[b, i, :] is the softmax over j of <query, key>:
    embeddings of the b-th rows of the layers' similarity matrices flat(F) flat(F)^T. As in the authors' code
    (DefangChen/SemCKD, distiller_zoo/SemCKD.py and models/util.py, ebe5db1); nothing is divided by sqrt(D). Of two
    sizes the larger map is averaged down, before the regressor. No gradient reaches the teacher.

    Args:
        students: C of each of the student's maps.
        teachers: C' of each of the teacher's.
        batch_size: B, the most samples of a batch.
        embedding: D of queries and keys; by default B / 4, as in the authors' code.
    """

    def __init__(
        self, students: Sequence[int], teachers: Sequence[int], *, batch_size: int, embedding: int | None = None
    ) -> None:
        super().__init__()
        size = embedding or max(batch_size // _SHARE, 1)
        self.batch_size = batch_size
        self.queries = nn.ModuleList(Embedding(batch_size, size) for _ in students)
        self.keys = nn.ModuleList(Embedding(batch_size, size) for _ in teachers)
        self.regressors = nn.ModuleList(nn.ModuleList(regressor(mine, its) for its in teachers) for mine in students)

    def forward(self, *tensors: Tensor) -> Tensor:
        """All of the student's maps (N, C, H, W), then all of the teacher's, to a scalar.

        Raises:
            LimbeckError: the batch is larger than the embeddings are made for.
        """
        count = len(self.queries)
        students, teachers = tensors[:count], [one.detach() for one in tensors[count:]]
        if len(students[0]) > self.batch_size:
            raise LimbeckError(f"got {len(students[0])} samples, the embeddings are made for {self.batch_size} at most")
        queries = torch.stack([embed(one) for embed, one in zip(self.queries, students, strict=True)], dim=1)
        keys = torch.stack([embed(one) for embed, one in zip(self.keys, teachers, strict=True)], dim=1)
        attention = torch.softmax(queries @ keys.transpose(1, 2), dim=2)  # (N, S, T)
        rows = [
            torch.stack([_distance(one, student, teacher) for one, teacher in zip(row, teachers, strict=True)], dim=1)
            for row, student in zip(self._rows(), students, strict=True)
        ]
        distances = torch.stack(rows, dim=1)
        return (attention * distances).sum() / attention[:, :, 0].numel()

    def _rows(self) -> list[list[nn.Module]]:
        return [list(row.children()) for row in self.regressors]


def _distance(regress: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    """Each sample's mean squared difference (N,) of the regressed map and the teacher's."""
    mine, its = pooled_alike(student, teacher)
    distance: Tensor = (regress(mine) - its).square().flatten(1).mean(dim=1)
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
    """Semantic calibration: each of the student's maps learns from all of the teacher's, weighted by attention.

    All weights are the authors' (README, ebe5db1), whose objective has soft targets too; ``soft: 0`` leaves them out.

    Args:
        setup: epochs, optimizer and schedule, and the batch size, which the embeddings are made for: the rows of a
            smaller last batch are filled up with zeros.
        calibration: beta, the weight of the attended distances.
        hard: weight of the cross-entropy with the labels.
        soft: weight of the soft targets, see `kd`.
        temperature: T of the soft targets.
        student_layers: what gives the student's maps; by default each section's last.
        teacher_layers: the same of the teacher; there may be more or fewer than of the student.

    Raises:
        LimbeckError: a network has no maps, a layer gives none, the batches are of one sample, or the temperature is
            not above 0.
    """
    several_samples(setup, "semckd")
    students, teachers = _maps(setup, "student", student_layers), _maps(setup, "teacher", teacher_layers)
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


def _maps(setup: Setup, network: str, layers: tuple[str, ...]) -> list[Tap]:
    found = [tap(network, layer) for layer in layers] or [
        section.last for section in sections(setup, network, method="semckd")
    ]
    for one in found:
        if len(setup.shape(one)) != 3:
            raise LimbeckError(f"semckd reads maps (C, H, W), but {one} gives {setup.shape(one)}")
    return found


ABOUT = About(
    semckd, paper=Paper("Chen et al.", "Cross-Layer Distillation with Semantic Calibration", 2020, "2012.03236")
)
