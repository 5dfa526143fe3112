"""Contrastive representation distillation, with a memory of negatives."""

import math
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import TARGETS, LimbeckError, Loss, Schedule, Setup, Stage, Tap, Term, from_student, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_loss
from limbeck.methods.kd import soft_loss

Normaliser = Literal["first_batch", "none"]


class Embedding(nn.Module):
    """Features (N, ...), flattened, to unit vectors: a linear map, then division by the norm."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, size)

    def forward(self, features: Tensor) -> Tensor:
        """(N, size)."""
        return F.normalize(self.linear(features.flatten(1)), dim=1)


class MemoryContrast(nn.Module):
    """Each sample's embedding against the other network's memory: its own row, and the rows of negatives.

    For an anchor with the scores s_k = exp(<anchor, row_k> / temperature) / Z, k = 0 its own row, the loss is
    -log(s_0 / (s_0 + m/n)) - sum over k of log((m/n) / (s_k + m/n)), m the negatives and n the samples: summed over the
    negatives, mean over the batch, summed over both directions (student against the teacher's memory, and teacher
    against the student's). The rows are constants; both embeddings learn; the teacher's feature is detached. After the
    scoring each anchor is mixed into its row, which is brought back to length 1.

    The source is HobbitLong/RepDistiller (crd/criterion.py and crd/memory.py, b84f547), which has two things that the
    paper's formula has not: Z, the mean of exp over the first batch times n, from then on a constant, and 1e-7 beside
    m/n. They are the default, because all published results come from that code. Its mode is the "exact" one: the
    negatives are of other classes.

    The memories and Z are part of the state. They change in training alone: in eval mode, or without gradient, nothing
    is kept. Processes that train together each keep their own memories.

    Args:
        student: the number of values of the student's feature.
        teacher: the same of the teacher.
        targets: (n,) int64, the class of every sample of the training set, by its index.
        negatives: m. Each sample's are a uniform draw without replacement from the samples of other classes, and
            samples of one batch share the permutation that it is cut from; with replacement, and one by one, where a
            class has fewer others than m.
        embedding: the length of the embeddings.
        temperature: divides the scores.
        momentum: the share of the old row in the new one.
        normaliser: "first_batch", or "none" for Z = 1 and without 1e-7, the paper's formula.
    """

    student_memory: Tensor
    teacher_memory: Tensor
    log_normalisers: Tensor
    targets: Tensor
    by_class: Tensor
    counts: Tensor

    def __init__(
        self,
        student: int,
        teacher: int,
        targets: Tensor,
        *,
        negatives: int = 16384,
        embedding: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
        normaliser: Normaliser = "first_batch",
    ) -> None:
        super().__init__()
        self.student = Embedding(student, embedding)
        self.teacher = Embedding(teacher, embedding)
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        self.normaliser = normaliser
        bound = math.sqrt(3 / embedding)  # rows of length 1 in the mean
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, torch.empty(len(targets), embedding).uniform_(-bound, bound))
        self.register_buffer("log_normalisers", torch.full((2,), -math.inf))  # not known yet
        counts = targets.bincount()
        self.register_buffer("targets", targets, persistent=False)
        self.register_buffer("by_class", targets.argsort(stable=True), persistent=False)
        self.register_buffer("counts", counts, persistent=False)
        self._greatest = int(counts.max())

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor, negatives: Tensor | None = None) -> Tensor:
        """The loss, a scalar.

        Args:
            student: features (N, ...).
            teacher: features (N, ...).
            index: (N,) int64, the samples' places in the training set.
            negatives: (N, m) int64, the places of the samples to contrast with; by default they are drawn.
        """
        if negatives is None:
            negatives = self.draw(index)
        places = torch.cat([index[:, None], negatives], dim=1)
        anchors = self.student(student), self.teacher(teacher.detach())
        memories = self.teacher_memory, self.student_memory
        # All n scores by one product of matrices: fewer numbers to move than the (N, m, embedding) rows themselves.
        scores = [
            (anchor @ memory.T / self.temperature).gather(1, places)
            for anchor, memory in zip(anchors, memories, strict=True)
        ]
        normalisers = self._log_normalisers(scores)
        first, second = (self._contrast(score - log) for score, log in zip(scores, normalisers, strict=True))
        if self.training and torch.is_grad_enabled():
            self.log_normalisers = normalisers
            self.student_memory = self._mixed(self.student_memory, index, anchors[0])
            self.teacher_memory = self._mixed(self.teacher_memory, index, anchors[1])
        return first + second

    def draw(self, index: Tensor) -> Tensor:
        """Negatives (N, m) for the samples at ``index`` (N,), with torch's global generator."""
        samples, device = len(self.targets), index.device
        own = self.targets[index][:, None]
        if samples - self._greatest < self.negatives:
            others = samples - self.counts[own]
            rank = torch.randint(2**62, (len(index), self.negatives), device=device) % others
            before = self.counts.cumsum(0)[own] - self.counts[own]
            return self.by_class[torch.where(rank < before, rank, rank + self.counts[own])]
        # A stretch of a random order, long enough for m others whichever class is left out of it.
        start = torch.randint(samples, (len(index), 1), device=device)
        stretch = torch.arange(self.negatives + self._greatest, device=device)
        places = torch.randperm(samples, device=device)[(start + stretch) % samples]
        others = self.targets[places] != own
        return places[others & (others.cumsum(dim=1) <= self.negatives)].view(len(index), self.negatives)

    def _log_normalisers(self, scores: list[Tensor]) -> Tensor:
        """The logarithms of Z, student's and teacher's: those that are known, else of these scores."""
        if self.normaliser == "none":
            return torch.zeros_like(self.log_normalisers)
        means = [score.detach().flatten().logsumexp(0) - math.log(score.numel()) for score in scores]
        found = torch.stack(means) + math.log(len(self.targets))
        return torch.where(self.log_normalisers.isinf(), found, self.log_normalisers)

    def _contrast(self, logs: Tensor) -> Tensor:
        """One direction of the loss; ``logs`` (N, 1 + m) are the logarithms of s, the sample's own first."""
        rate = (logs.shape[1] - 1) / len(self.targets)
        noise = rate + (1e-7 if self.normaliser == "first_batch" else 0.0)
        against = logs - math.log(noise)
        own = -F.logsigmoid(against[:, 0])
        others = -F.logsigmoid(-against[:, 1:]) + math.log(noise / rate)
        return (own + others.sum(dim=1)).mean()

    def _mixed(self, memory: Tensor, index: Tensor, anchors: Tensor) -> Tensor:
        """The memory with these samples' rows renewed; a new tensor, because the backward pass reads the old one."""
        rows = self.momentum * memory[index] + (1 - self.momentum) * anchors.detach()
        return memory.index_copy(0, index, F.normalize(rows, dim=1))


def crd(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    contrast: float | Schedule = 0.8,
    soft: float | Schedule = 0.0,
    temperature: float = 4.0,
    negatives: int = 16384,
    embedding: int = 128,
    contrast_temperature: float = 0.07,
    momentum: float = 0.5,
    normaliser: Normaliser = "first_batch",
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """Contrastive representation distillation: a sample's features in both networks are told from other samples'.

    The defaults are the paper's on CIFAR-100, whose "CRD + KD" is ``soft: 1``. The loss keeps two memories of
    ``embedding`` numbers a training sample: `crd_in_batch` needs none.

    Args:
        setup: epochs, optimizer, schedule, shapes and the training set's labels.
        hard: weight of the cross-entropy with the labels.
        contrast: weight of the contrastive term; a number or a schedule.
        soft: weight of the soft targets of `kd`; a number or a schedule.
        temperature: T of the soft targets.
        negatives: samples of other classes that each sample is contrasted with. Where there are fewer, they are drawn
            with replacement.
        embedding: the length of the vectors that are compared.
        contrast_temperature: tau, divides the scores.
        momentum: the share of the old row of the memory in the new one.
        normaliser: "first_batch" divides the scores by a constant found at the first batch, as the authors' code;
            "none" is the paper's formula.
        student_layer: the feature; the default is what enters the classifier. A map is flattened.
        teacher_layer: the same of the teacher.

    Raises:
        LimbeckError: a temperature is not above 0, the negatives or the embedding not at least 1, the momentum no
            share, the training set has one class alone, or all weights are 0.
    """
    if negatives < 1:
        raise LimbeckError(f"negatives is {negatives}: it must be at least 1")
    if not 0 <= momentum < 1:
        raise LimbeckError(f"momentum is {momentum}: it must be at least 0 and below 1")
    if int((setup.targets.bincount() > 0).sum()) < 2:
        raise LimbeckError("crd contrasts with samples of other classes, but the training set has one class alone")
    check(embedding, contrast_temperature)
    student, teacher = reading.features(setup, student_layer, teacher_layer)
    loss = MemoryContrast(
        math.prod(setup.shape(student)),
        math.prod(setup.shape(teacher)),
        setup.targets,
        negatives=negatives,
        embedding=embedding,
        temperature=contrast_temperature,
        momentum=momentum,
        normaliser=normaliser,
    )
    term = Term(loss, (student, teacher, Tap("batch", "index")), contrast)
    return stages(setup, "crd", hard, term, soft, temperature)


def check(embedding: int, contrast_temperature: float) -> None:
    """Refuse what neither `crd` nor `crd_in_batch` can do."""
    if embedding < 1:
        raise LimbeckError(f"embedding is {embedding}: it must be at least 1")
    if not contrast_temperature > 0:
        raise LimbeckError(f"contrast_temperature is {contrast_temperature}: it must be above 0")


def stages(
    setup: Setup, name: str, hard: float | Schedule, contrast: Term, soft: float | Schedule, temperature: float
) -> tuple[Stage, ...]:
    """The one stage of `crd` and of `crd_in_batch`: labels, contrast, and the soft targets of `kd`."""
    if not temperature > 0:
        raise LimbeckError(f"temperature is {temperature}: it must be above 0")
    targets: Loss = partial(soft_loss, temperature=temperature)
    terms = {
        "hard": Term(hard_loss, (from_student(), TARGETS), hard),
        "contrast": contrast,
        "soft": Term(targets, (from_student(), *setup.teacher_logits), soft),
    }
    return (Stage(name, weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


ABOUT = About(crd, paper=Paper("Tian, Krishnan, Isola", "Contrastive Representation Distillation", 2020, "1910.10699"))
