"""Contrastive distillation with the negatives of the batch: a variant of `crd` without a memory."""

import math

import torch
from torch import Tensor, nn

from limbeck.core import TARGETS, Schedule, Setup, Stage, Term
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.crd import Embedding, check, stages


class BatchContrast(nn.Module):
    """Each sample's student embedding against the teacher's of the batch, and the other way round (InfoNCE).

    -log of the softmax, at its own sample, of <student_i, teacher_j> / temperature over its own and the samples j of
    other classes: mean over the batch, summed over both directions. Where a batch holds one class alone, as one sample
    does, there is nothing to tell apart: the value and the gradient are 0. Both embeddings learn; the teacher's
    feature is detached.

    Args:
        student: the number of values of the student's feature.
        teacher: the same of the teacher.
        embedding: the length of the embeddings.
        temperature: divides the scores.
    """

    def __init__(self, student: int, teacher: int, *, embedding: int = 128, temperature: float = 0.07) -> None:
        super().__init__()
        self.student = Embedding(student, embedding)
        self.teacher = Embedding(teacher, embedding)
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """The loss of features (N, ...), (N, ...) and class indices (N,), a scalar."""
        scores: Tensor = self.student(student) @ self.teacher(teacher.detach()).T / self.temperature
        alike = (targets[:, None] == targets) & ~torch.eye(len(targets), dtype=torch.bool, device=targets.device)
        scores = scores.masked_fill(alike, -math.inf)
        both = scores.log_softmax(dim=1).diagonal() + scores.log_softmax(dim=0).diagonal()
        return -both.mean()


def crd_in_batch(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    contrast: float | Schedule = 0.8,
    soft: float | Schedule = 0.0,
    temperature: float = 4.0,
    embedding: int = 128,
    contrast_temperature: float = 0.07,
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """A variant of `crd` without memories: the negatives are the samples of other classes in the batch.

    Its loss is InfoNCE, not the paper's: no published figure is of it, and its best weight is another.

    Args:
        setup: epochs, optimizer, schedule and shapes.
        hard: weight of the cross-entropy with the labels.
        contrast: weight of the contrastive term; a number or a schedule.
        soft: weight of the soft targets of `kd`; a number or a schedule.
        temperature: T of the soft targets.
        embedding: the length of the vectors that are compared.
        contrast_temperature: tau, divides the scores.
        student_layer: the feature; the default is what enters the classifier. A map is flattened.
        teacher_layer: the same of the teacher.

    Raises:
        LimbeckError: a temperature is not above 0, the embedding not at least 1, or all weights are 0.
    """
    check(embedding, contrast_temperature)
    student, teacher = reading.features(setup, student_layer, teacher_layer)
    loss = BatchContrast(
        math.prod(setup.shape(student)),
        math.prod(setup.shape(teacher)),
        embedding=embedding,
        temperature=contrast_temperature,
    )
    term = Term(loss, (student, teacher, TARGETS), contrast)
    return stages(setup, "crd_in_batch", hard, term, soft, temperature)


ABOUT = About(
    crd_in_batch, paper=Paper("Tian, Krishnan, Isola", "Contrastive Representation Distillation", 2020, "1910.10699")
)
