"""PHI-S: the student regresses the features of several teachers, rotated and scaled so that none of them dominates."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from limbeck.connectors import linear
from limbeck.core import LimbeckError, Schedule, Setup, Stage, Sweep, Tap, Term, tap, weighted
from limbeck.methods.about import OF_OUTPUTS, About, Paper
from limbeck.methods.distributions import wide
from limbeck.methods.kd import label_terms

PAPER = Paper(
    "Ranzinger, Barker, Heinrich et al.",
    "PHI-S: Distribution Balancing for Label-Free Multi-Teacher Distillation",
    2024,
    "2410.01680",
)


def hadamard(size: int) -> Tensor:
    """An orthogonal matrix (D, D) in 64 bits, whose entries are all 1/sqrt(D) or -1/sqrt(D) if such a matrix is known.

    It is known for D = 2^k and D = 2^k (q + 1) with a prime q that leaves the remainder 3 when divided by 4 (Sylvester,
    Paley), such as 192, 320, 384, 768, 1280 and 2048. For other D it is the orthogonal factor of a random matrix of 1
    and -1, always the same, as in the authors' code, which also knows Paley's second construction.
    """
    signs = _signs(size)
    if signs is not None:
        return signs / math.sqrt(size)
    drawn = torch.randint(0, 2, (size, size), generator=torch.Generator().manual_seed(0))
    factor: Tensor = torch.linalg.qr(2.0 * drawn.double() - 1).Q
    return factor


def _signs(size: int) -> Tensor | None:
    """A Hadamard matrix (D, D), or None."""
    prime = size - 1
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if prime % 4 == 3 and all(prime % number for number in range(2, math.isqrt(prime) + 1)):
        squares = torch.zeros(prime).index_fill_(0, torch.arange(1, prime).square() % prime, 2.0) - 1
        squares[0] = 0
        places = torch.arange(prime)
        matrix = torch.eye(size, dtype=torch.float64)
        matrix[0, 1:], matrix[1:, 0] = 1, -1
        matrix[1:, 1:] += squares[(places[:, None] - places) % prime]
        return matrix
    half = _signs(size // 2) if size % 2 == 0 else None
    return None if half is None else torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), half)


def standardisation(covariance: Tensor) -> Tensor:
    """A H U^T (D, D), where U diag(e) U^T is the covariance (D, D), H `hadamard`, and a = 1 / sqrt(mean of e).

    The rotated features have the same variance 1 in every dimension, if H has entries of one size, and distances are
    only scaled. Features that do not vary give a = 1. Source: `get_phi_s_matrix` of NVlabs/RADIO
    (examples/common/phi_s.py, 2fe5f72).
    """
    values, vectors = torch.linalg.eigh(covariance.cpu())
    mean = values.clamp_min(0).mean()
    matrix: Tensor = hadamard(len(covariance)).to(values) @ vectors.T / torch.where(mean > 0, mean, 1.0).sqrt()
    return matrix


class Standardised(nn.Module):
    """The mean squared error, over N and D', of a linear map of the student's feature to one teacher's feature.

    The teacher's feature is standardised: z = `standardisation` times (t - mean). No gradient flows to the teacher.

    Args:
        student: D, the width of the student's feature.
        teacher: D', the width of the teacher's feature.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.connector = linear((student,), (teacher,))
        self.mean: Tensor
        self.matrix: Tensor
        self.register_buffer("mean", torch.zeros(teacher))
        self.register_buffer("matrix", torch.eye(teacher))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a scalar; features (N, D) and (N, D')."""
        target = (teacher.detach() - self.mean) @ self.matrix.T
        value: Tensor = (self.connector(student) - target).square().mean()
        return value

    def fit(self, count: int, total: Tensor, squares: Tensor) -> None:
        """Set mean and matrix from the sums of t (D',) and of t t^T (D', D') over ``count`` samples, in 64 bits."""
        mean = total / count
        self.mean.copy_(mean)
        self.matrix.copy_(standardisation((squares - count * mean.outer(mean)) / max(count - 1, 1)))


def phi_s(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    features: float | Schedule = 1.0,
    soft: float | Schedule = 0.0,
    temperature: float = 4.0,
    student_layer: str = "",
    teacher_layers: tuple[str, ...] = (),
) -> tuple[Stage, ...]:
    """PHI-S: the student regresses the features of one or more teachers, scaled so that none of them dominates.

    Mean and covariance of each teacher's features are those of the training set, not augmented. With one scale for all
    dimensions of a teacher, every teacher has the same weight, whatever the size of its features. The paper trains a
    backbone without labels (``hard: 0``) through an MLP for each teacher; here the student also learns its classifier
    from the labels, and the map to each teacher is linear.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        features: weight of the error of each teacher's features; a number or a schedule.
        soft: weight of the soft targets, see `kd`; the published objective has none.
        temperature: T of the soft targets.
        student_layer: the layer that gives the student's feature; the default is the input of the classifier.
        teacher_layers: the layers that give the teachers' features. For an ensemble, name one layer of each member,
            such as ``members.0.head:input``; for a single network, the default is the input of the classifier.

    Raises:
        LimbeckError: a network has no linear classifier, as an ensemble has none, and its layers are not named; a
            feature is not a vector; the temperature is not above 0, or all weights are 0.
    """
    student = tap("student", student_layer) if student_layer else setup.outline("student").feature
    teachers = [tap("teacher", layer) for layer in teacher_layers] or [setup.outline("teacher").feature]
    for one in (student, *teachers):
        if len(setup.shape(one)) != 1:
            raise LimbeckError(f"phi_s reads vectors (D,), but {one} gives {setup.shape(one)}: name another layer")
    width = setup.shape(student)[0]
    losses = [Standardised(width, setup.shape(teacher)[0]) for teacher in teachers]
    terms = label_terms(setup, hard=hard, soft=soft, temperature=temperature)
    for number, (teacher, loss) in enumerate(zip(teachers, losses, strict=True)):
        terms[f"features{number}" if len(teachers) > 1 else "features"] = Term(loss, (student, teacher), features)
    stage = Stage("phi_s", weighted(terms), setup.epochs, setup.optimizer, setup.schedule)
    return (replace(stage, prepare=lambda sweep: _fit(sweep, teachers, losses)) if features else stage,)


def _fit(sweep: Sweep, teachers: Sequence[Tap], losses: Sequence[Standardised]) -> None:
    """Compute the statistics of all teachers in one pass over the training set, before the first epoch."""
    if sweep.epoch > 0:
        return
    count, sums = 0, [(torch.zeros(()), torch.zeros(()))] * len(teachers)
    for values in sweep(*teachers):
        count += len(values[0])
        found = [wide(value) for value in values]
        sums = [
            (total.to(value) + value.sum(dim=0), squares.to(value) + value.T @ value)
            for (total, squares), value in zip(sums, found, strict=True)
        ]
    for loss, (total, squares) in zip(losses, sums, strict=True):
        loss.fit(count, total, squares)


ABOUT = About(phi_s, PAPER, tasks=OF_OUTPUTS)
