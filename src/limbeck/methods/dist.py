"""DIST: the student's predictions correlate with the teacher's."""

from functools import partial

from torch import Tensor
from torch.linalg import vector_norm

from limbeck.core import Loss, Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.distributions import like, wide
from limbeck.methods.shared import check_above_zero

PAPER = Paper("Huang et al.", "Knowledge Distillation from A Stronger Teacher", 2022, "2205.10536")


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson correlation (N,) of the rows of two tensors (N, K); 0 for a constant row.

    1e-8 is added to the product of the norms, as in the authors' code; the paper adds nothing.
    """
    one, other = one - one.mean(dim=1, keepdim=True), other - other.mean(dim=1, keepdim=True)
    norms: Tensor = vector_norm(one, dim=1) * vector_norm(other, dim=1)
    return (one * other).sum(dim=1) / (norms + 1e-8)


def inter_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, temperature_squared: bool = True
) -> Tensor:
    """1 - correlation of the two softened distributions of a sample, averaged over the samples.

    Source: `DIST` of hunto/image_classification_sota (lib/models/losses/dist_kd.py, 6f7a70a). With 2 classes the
    correlation is 1 or -1 and the gradient is almost 0. No gradient flows to the teacher.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        temperature: T > 0 of both softmaxes.
        temperature_squared: multiply by T², as the authors' code does. The paper's formula has no such factor.
    """
    value = like(1 - correlation(*_softened(student, teacher, temperature)).mean(), student)
    return value * temperature**2 if temperature_squared else value


def intra_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, temperature_squared: bool = True
) -> Tensor:
    """1 - correlation over the batch of the two networks' probabilities of a class, averaged over the classes.

    For one sample the value is 1 (times T²) and the gradient is 0. Arguments and source are those of `inter_loss`.
    """
    p_student, p_teacher = _softened(student, teacher, temperature)
    value = like(1 - correlation(p_student.T, p_teacher.T).mean(), student)
    return value * temperature**2 if temperature_squared else value


def _softened(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both softened distributions, in 64 bits because 1 - correlation is a small difference."""
    return (wide(student) / temperature).softmax(1), (wide(teacher.detach()) / temperature).softmax(1)


def dist(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    inter: float | Schedule = 2.0,
    intra: float | Schedule = 2.0,
    temperature: float = 1.0,
    temperature_squared: bool = True,
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """DIST: the probabilities of both networks correlate, over the classes of a sample and over the samples of a class.

    The defaults are the authors' for ImageNet; for CIFAR-100 they use temperature 4. The factor T² is that of the
    authors' code, which gave their results at T = 4. With 2 classes the term ``inter`` has almost no gradient, and a
    note before training says so.

    Args:
        setup: epochs, optimizer and schedule.
        hard: alpha, weight of the cross-entropy with the labels.
        inter: beta, weight of the correlation over the classes; a number or a schedule.
        intra: gamma, weight of the correlation over the samples; a number or a schedule.
        temperature: T of both networks.
        temperature_squared: multiply both terms by T², as the authors' code does; the paper does not.
        student_layer: the layer read as the student's logits; the default is the network's output.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: the temperature is not above 0, all weights are 0, or the teacher is an ensemble
            averaged as distributions.
    """
    check_above_zero("temperature", temperature)
    student, teacher = reading.logits(setup, student_layer, teacher_layer)

    def of(loss: Loss) -> Loss:
        return partial(loss, temperature=temperature, temperature_squared=temperature_squared)

    terms = weighted(
        {
            "hard": hard_term(setup, student, hard),
            "inter": Term(of(inter_loss), (student, teacher), inter),
            "intra": Term(of(intra_loss), (student, teacher), intra),
        }
    )
    notes: tuple[str, ...] = ()
    if setup.classes == 2 and "inter" in terms:
        notes = ("dist: with 2 classes every correlation is 1 or -1, so the term 'inter' has no effect",)
    return (Stage("dist", terms, setup.epochs, setup.optimizer, setup.schedule, notes=notes),)


ABOUT = About(dist, PAPER)
