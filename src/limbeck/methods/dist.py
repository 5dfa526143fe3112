"""DIST: the student's predictions correlate with the teacher's."""

from functools import partial

from torch import Tensor
from torch.linalg import vector_norm

from limbeck.core import TARGETS, LimbeckError, Loss, Schedule, Setup, Stage, Term, weighted
from limbeck.methods import reading
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_loss
from limbeck.methods.distributions import like, wide


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation of the rows of two tensors (N, K), as (N,); 0 for a row that does not vary.

    The product of the norms is raised by 1e-8, as in the authors' code; the paper has nothing there.
    """
    one, other = one - one.mean(dim=1, keepdim=True), other - other.mean(dim=1, keepdim=True)
    norms: Tensor = vector_norm(one, dim=1) * vector_norm(other, dim=1)
    return (one * other).sum(dim=1) / (norms + 1e-8)


def inter_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, temperature_squared: bool = True
) -> Tensor:
    """1 less the correlation of a sample's two softened distributions, mean over the samples.

    As `DIST` of hunto/image_classification_sota (lib/models/losses/dist_kd.py, 6f7a70a). Of 2 classes a correlation is
    1 or -1, and the gradient next to 0. None of the gradient reaches the teacher.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        temperature: T > 0 of both softmaxes.
        temperature_squared: the factor T² of the authors' code. The paper's formula has none; at T = 1 they agree.
    """
    ours, theirs = _softened(student, teacher, temperature)
    value = like(1 - correlation(ours, theirs).mean(), student)
    return value * temperature**2 if temperature_squared else value


def intra_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, temperature_squared: bool = True
) -> Tensor:
    """1 less the correlation over the batch of a class's probabilities, mean over the classes.

    Of one sample no class varies: the value is 1 (times T²) and the gradient 0. Arguments and source are those of
    `inter_loss`.
    """
    ours, theirs = _softened(student, teacher, temperature)
    value = like(1 - correlation(ours.T, theirs.T).mean(), student)
    return value * temperature**2 if temperature_squared else value


def _softened(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both distributions; 1 less a correlation near 1 takes 64 bits."""
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
    """Correlations instead of values: of each sample's classes, and of each class's samples in the batch.

    The defaults are those for ImageNet; for CIFAR-100 the temperature is 4. That the default has the factor T² follows
    the authors' code, which all their results at T = 4 come from; at the default T it changes nothing. With 2 classes
    the term ``inter`` teaches nothing, which the plan says.

    Args:
        setup: epochs, optimizer and schedule.
        hard: alpha, weight of the cross-entropy with the labels.
        inter: beta, weight of the correlation over the classes; a number or a schedule.
        intra: gamma, weight of the correlation over the samples; a number or a schedule.
        temperature: T of both networks.
        temperature_squared: multiply both by T², as the authors' code does; the paper does not.
        student_layer: the layer read as the student's logits; the default is the network's output.
        teacher_layer: the same of the teacher.

    Raises:
        LimbeckError: the temperature is not above 0, all weights are 0, or the teacher is an ensemble of
            distributions.
    """
    if not temperature > 0:
        raise LimbeckError(f"temperature is {temperature}: it must be above 0")
    student, teacher = reading.logits(setup, student_layer, teacher_layer)

    def of(loss: Loss) -> Loss:
        return partial(loss, temperature=temperature, temperature_squared=temperature_squared)

    terms = weighted(
        {
            "hard": Term(hard_loss, (student, TARGETS), hard),
            "inter": Term(of(inter_loss), (student, teacher), inter),
            "intra": Term(of(intra_loss), (student, teacher), intra),
        }
    )
    notes: tuple[str, ...] = ()
    if setup.classes == 2 and "inter" in terms:
        notes = ("dist: two probabilities correlate by 1 or -1, so with 2 classes the term 'inter' teaches nothing",)
    return (Stage("dist", terms, setup.epochs, setup.optimizer, setup.schedule, notes=notes),)


ABOUT = About(dist, paper=Paper("Huang et al.", "Knowledge Distillation from A Stronger Teacher", 2022, "2205.10536"))
