"""Contrastive representation distillation, with a memory of negatives."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Tap, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.kd import label_terms
from limbeck.methods.shared import check_above_zero, check_at_least, class_indices

PAPER = Paper("Tian, Krishnan, Isola", "Contrastive Representation Distillation", 2020, "1910.10699")

Normaliser = Literal["first_batch", "none"]


class Embedding(nn.Module):
    """Features (N, ...), flattened, to vectors of length 1: a linear layer, then division by the norm."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, size)

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings (N, size)."""
        return F.normalize(self.linear(features.flatten(1)), dim=1)


class MemoryContrast(nn.Module):
    """Each sample's embedding against the other network's memory: the row of the sample and the rows of negatives.

    For an anchor with the scores s_k = exp(<anchor, row_k> / temperature) / Z, where k = 0 is its own row, the loss is
    -log(s_0 / (s_0 + m/n)) - sum over k of log((m/n) / (s_k + m/n)), with m negatives and n samples. It is summed over
    the negatives, averaged over the batch, and summed over both directions: student against the teacher's memory, and
    teacher against the student's. No gradient flows to the rows or to the teacher's feature; both embeddings learn.
    After the loss is computed, each anchor is mixed into its row, which is then scaled to length 1. If a sample occurs
    more than once in the batch, its first anchor is used.

    The source is HobbitLong/RepDistiller (crd/criterion.py and crd/memory.py, b84f547), in its "exact" mode: negatives
    are samples of other classes. The code has two additions to the paper's formula: Z, which is the mean of exp over
    the first batch times n and stays constant, and 1e-7 added to m/n. They are the default, because all published
    results come from that code.

    The memories and Z are buffers. They change only in training mode with gradients enabled. Each process of a
    distributed training keeps its own memories.

    Args:
        student: the number of elements of the student's feature.
        teacher: the number of elements of the teacher's feature.
        targets: (n,) int64, the classes of the training samples by index.
        negatives: m. They are drawn uniformly from the samples of other classes, without replacement, from a
            permutation that all samples of the batch share. If a class has fewer than m samples outside it, they are
            drawn with replacement and independently.
        normaliser: "first_batch" is the authors' code. "none" sets Z = 1 and adds no 1e-7, as in the paper's formula.
        embedding, temperature, momentum: the options ``embedding``, ``contrast_temperature`` and ``momentum`` of `crd`.
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
        bound = math.sqrt(3 / embedding)  # rows have length 1 on average
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, torch.empty(len(targets), embedding).uniform_(-bound, bound))
        self.register_buffer("log_normalisers", torch.full((2,), -math.inf))  # not computed yet
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
            index: (N,) int64, the indices of the samples in the training set.
            negatives: (N, m) int64, the indices of the negatives; by default they are drawn.
        """
        if negatives is None:
            negatives = self.draw(index)
        places = torch.cat([index[:, None], negatives], dim=1)
        anchors = self.student(student), self.teacher(teacher.detach())
        memories = self.teacher_memory, self.student_memory
        # One matrix product gives all n scores and moves less memory than gathering the (N, m, embedding) rows.
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
        # A slice of a permutation, long enough to hold m samples outside any class.
        start = torch.randint(samples, (len(index), 1), device=device)
        stretch = torch.arange(self.negatives + self._greatest, device=device)
        places = torch.randperm(samples, device=device)[(start + stretch) % samples]
        others = self.targets[places] != own
        return places[others & (others.cumsum(dim=1) <= self.negatives)].view(len(index), self.negatives)

    def _log_normalisers(self, scores: list[Tensor]) -> Tensor:
        """The logarithms of Z for both directions: the stored ones, or those of these scores in the first batch."""
        if self.normaliser == "none":
            return torch.zeros_like(self.log_normalisers)
        means = [score.detach().flatten().logsumexp(0) - math.log(score.numel()) for score in scores]
        found = torch.stack(means) + math.log(len(self.targets))
        return torch.where(self.log_normalisers.isinf(), found, self.log_normalisers)

    def _contrast(self, logs: Tensor) -> Tensor:
        """One direction of the loss; ``logs`` (N, 1 + m) are the logarithms of s, starting with the sample's own."""
        rate = (logs.shape[1] - 1) / len(self.targets)
        noise = rate + (1e-7 if self.normaliser == "first_batch" else 0.0)
        against = logs - math.log(noise)
        own = -F.logsigmoid(against[:, 0])
        others = -F.logsigmoid(-against[:, 1:]) + math.log(noise / rate)
        return (own + others.sum(dim=1)).mean()

    def _mixed(self, memory: Tensor, index: Tensor, anchors: Tensor) -> Tensor:
        """The memory with updated rows for these samples; a new tensor, because the backward pass reads the old one."""
        rows = self.momentum * memory[index] + (1 - self.momentum) * anchors.detach()
        first = (index[:, None] == index).int().argmax(dim=1)  # of the same sample: the order of writing is not defined
        return memory.index_copy(0, index, F.normalize(rows, dim=1)[first])


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
    """Contrastive representation distillation: the embeddings of a sample in both networks are similar.

    The embeddings of different samples are different. The defaults are the paper's for CIFAR-100; its
    "CRD + KD" is ``soft: 1``. The loss keeps two memories with ``embedding`` numbers for each training sample;
    `crd_in_batch` needs no memory.

    Args:
        setup: epochs, optimizer, schedule, shapes and the training set's labels.
        hard: weight of the cross-entropy with the labels.
        contrast: weight of the contrastive term; a number or a schedule.
        soft: weight of the soft targets of `kd`; a number or a schedule.
        temperature: T of the soft targets.
        negatives: the number of samples of other classes that each sample is contrasted with. If there are fewer,
            they are drawn with replacement.
        embedding: the length of the embeddings.
        contrast_temperature: tau, divides the scores.
        momentum: the weight of the old row of the memory in the new one.
        normaliser: "first_batch" divides the scores by a constant computed from the first batch, as in the authors'
            code; "none" is the paper's formula.
        student_layer: the layer that gives the feature; the default is the input of the classifier. A map is flattened.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: a temperature is not above 0, ``negatives`` or ``embedding`` is below 1, the momentum is not in
            [0, 1), the training set has only one class, the targets are not class indices, or all weights are 0.
    """
    class_indices(setup, "crd")
    check_at_least(1, "negatives", negatives)
    if not 0 <= momentum < 1:
        raise LimbeckError(f"momentum is {momentum}: it must be at least 0 and below 1")
    if int((setup.targets.bincount() > 0).sum()) < 2:
        raise LimbeckError("crd contrasts with samples of other classes, but the training set has only one class")
    check_at_least(1, "embedding", embedding)
    check_above_zero("contrast_temperature", contrast_temperature)
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
    terms = label_terms(setup, hard=hard, soft=soft, temperature=temperature)
    terms["contrast"] = Term(loss, (student, teacher, Tap("batch", "index")), contrast)
    return (Stage("crd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


ABOUT = About(crd, PAPER)
