"""Contrastive distillation with the negatives of the batch: a variant of `crd` without a memory."""

import math

import torch
from torch import Tensor, nn

from limbeck.core import TARGETS, Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import About
from limbeck.methods.crd import PAPER, Embedding
from limbeck.methods.kd import label_terms
from limbeck.methods.shared import check_above_zero, check_at_least, class_indices


class BatchContrast(nn.Module):
    """Each sample's embedding against the other network's embeddings of the batch, in both directions (InfoNCE).

    -log softmax of <student_i, teacher_j> / temperature at j = i, over j = i and the samples j of other classes,
    averaged over the batch and summed over both directions. If the batch has only one class, the value and the
    gradient are 0. Both embeddings learn; no gradient flows to the teacher's feature.

    Args:
        student: the number of elements of the student's feature.
        teacher: the number of elements of the teacher's feature.
        embedding, temperature: the options ``embedding`` and ``contrast_temperature`` of `crd_in_batch`.
    """

    def __init__(self, student: int, teacher: int, *, embedding: int = 128, temperature: float = 0.07) -> None:
        super().__init__()
        self.student = Embedding(student, embedding)
        self.teacher = Embedding(teacher, embedding)
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar, of features (N, ...) and (N, ...) and class indices (N,)."""
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
    """A variant of `crd` without a memory: the negatives are the samples of other classes in the batch.

    The loss is InfoNCE, not that of the paper. The published results do not apply to it, and it needs another weight.

    Args:
        setup: epochs, optimizer, schedule and shapes.
        hard: weight of the cross-entropy with the labels.
        contrast: weight of the contrastive term; a number or a schedule.
        soft: weight of the soft targets of `kd`; a number or a schedule.
        temperature: T of the soft targets.
        embedding: the length of the embeddings.
        contrast_temperature: tau, divides the scores.
        student_layer: the layer that gives the feature; the default is the input of the classifier. A map is flattened.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: a temperature is not above 0, ``embedding`` is below 1, the targets are not class indices, or all
            weights are 0.
    """
    class_indices(setup, "crd_in_batch")
    check_at_least(1, "embedding", embedding)
    check_above_zero("contrast_temperature", contrast_temperature)
    student, teacher = reading.features(setup, student_layer, teacher_layer)
    loss = BatchContrast(
        math.prod(setup.shape(student)),
        math.prod(setup.shape(teacher)),
        embedding=embedding,
        temperature=contrast_temperature,
    )
    terms = label_terms(setup, hard=hard, soft=soft, temperature=temperature)
    terms["contrast"] = Term(loss, (student, teacher, TARGETS), contrast)
    return (Stage("crd_in_batch", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


ABOUT = About(crd_in_batch, PAPER)
