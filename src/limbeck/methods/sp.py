"""Similarity preservation: the student matches the teacher's similarities between samples."""

from functools import partial
from typing import Literal

from torch import Tensor

from limbeck.core import Schedule, Setup, Stage, Term, weighted
from limbeck.methods.about import OF_OUTPUTS, About, Paper
from limbeck.methods.kd import label_terms
from limbeck.methods.reading import feature_pairs, in_order
from limbeck.methods.shared import over_layers, several_samples, unit

PAPER = Paper("Tung, Mori", "Similarity-Preserving Knowledge Distillation", 2019, "1907.09682")


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """(1/N²) ||G_T - G_S||_F², where G holds the N x N inner products of the samples, with rows scaled to length 1.

    The features may have any shape, and the two shapes may differ. A batch of one sample gives 0. The same as in
    RepDistiller (distiller_zoo/SP.py, b84f547). No gradient flows to the teacher.

    Args:
        student: features (N, ...), flattened to one vector per sample.
        teacher: features (N, ...).
    """
    student, teacher = (unit(flat @ flat.T) for flat in (student.flatten(1), teacher.detach().flatten(1)))
    return (student - teacher).square().mean()


def sp(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    similarity: float | Schedule = 3000.0,
    soft: float | Schedule = 0.0,
    temperature: float = 4.0,
    sections: Literal["last", "all"] = "last",
    student_layers: tuple[str, ...] = (),
    teacher_layers: tuple[str, ...] = (),
) -> tuple[Stage, ...]:
    """Similarity preservation: samples that are similar in the teacher are similar in the student.

    Args:
        setup: epochs, optimizer and schedule. The batch size affects the method.
        hard: weight of the cross-entropy with the labels.
        similarity: weight of the similarity term, the paper's gamma.
        soft: weight of the soft targets, with the factor T²; the published objective has none.
        temperature: T of the soft targets.
        sections: the default layers: the "last" section, as in the paper's experiments and RepDistiller, or the sum
            over "all" sections. For a network without maps they are its hidden layers.
        student_layers: the layers to compare, shallow to deep.
        teacher_layers: the same for the teacher.

    Raises:
        LimbeckError: the batch size is 1, the temperature is not above 0, or all weights are 0.
    """
    several_samples(setup, "sp")
    pairs = feature_pairs(setup, student_layers, teacher_layers, sections)
    terms = label_terms(setup, hard=hard, soft=soft, temperature=temperature)
    terms["similarity"] = Term(partial(over_layers, similarity_loss), in_order(pairs), similarity)
    return (Stage("sp", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


ABOUT = About(sp, PAPER, tasks=OF_OUTPUTS)
