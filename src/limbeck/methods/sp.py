"""Similarity preservation: the student matches the teacher's similarities between samples."""

from functools import partial
from typing import Literal

from torch import Tensor

from limbeck.core import Schedule, Setup, Stage, Term, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.reading import feature_pairs, in_order
from limbeck.methods.shared import label_terms, over_layers, several_samples, unit


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """(1/N²) ||G_T - G_S||_F², G the N x N inner products of the samples with rows of length 1.

    The features may be of any shapes, two different ones too: each sample's is a vector. A batch of one sample gives
    0. RepDistiller (distiller_zoo/SP.py, b84f547) has the same. None of the gradient reaches the teacher.

    Args:
        student: features (N, ...).
        teacher: features (N, ...).
    """
    mine, wanted = (unit(one @ one.T) for one in (student.flatten(1), teacher.detach().flatten(1)))
    return (mine - wanted).square().mean()


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
    """Similarity preservation: samples that are alike for the teacher are alike for the student.

    Args:
        setup: epochs, optimizer and schedule; the batch size is part of the method.
        hard: weight of the cross-entropy with the labels.
        similarity: weight of the similarity term, the paper's gamma.
        soft: weight of the soft targets, with the factor T²; the published total has none.
        temperature: T of the soft targets.
        sections: where no layers are named, the "last" section's map, as in the paper's experiments and RepDistiller,
            or the sum over "all" sections. A network without maps gives its hidden layers.
        student_layers: the layers to compare, shallow to deep.
        teacher_layers: the same of the teacher.

    Raises:
        LimbeckError: the batch size is 1, the temperature is not above 0, or all weights are 0.
    """
    several_samples(setup, "sp")
    pairs = feature_pairs(setup, student_layers, teacher_layers, sections)
    terms = label_terms(setup, hard=hard, soft=soft, temperature=temperature)
    terms["similarity"] = Term(partial(over_layers, similarity_loss), in_order(pairs), similarity)
    return (Stage("sp", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


ABOUT = About(sp, paper=Paper("Tung, Mori", "Similarity-Preserving Knowledge Distillation", 2019, "1907.09682"))
