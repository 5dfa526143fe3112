"""Knowledge distillation with soft targets."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from torch import Tensor

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Term, from_student, weighted
from limbeck.methods.about import EVERY_TASK, About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.distributions import divergence
from limbeck.methods.reading import outputs
from limbeck.methods.shared import check_above_zero

PAPER = Paper("Hinton, Vinyals, Dean", "Distilling the Knowledge in a Neural Network", 2015, "1503.02531")


def soft_loss(
    student: Tensor,
    *teachers: Tensor,
    temperature: float,
    temperature_squared: bool = True,
    average: Literal["batch", "elements"] = "batch",
    teacher_softmax: bool = False,
) -> Tensor:
    """T² * KL(p || q), where p and q are the softened distributions of teacher and student (Eq. 1).

    With several teachers, p is the arithmetic mean of their softened distributions. The gradient equals that of the
    paper's cross-entropy with soft targets; the value is lower by T² times the entropy of p and is never below 0. It
    is computed in 64 bits, because 32 bits are not enough at a high temperature. No gradient flows to the teachers.

    Args:
        student: logits (N, K).
        teachers: logits (N, K), one tensor for each teacher.
        temperature: T > 0.
        temperature_squared: multiply by T², which keeps the size of the gradient when T changes (section 2).
        average: "batch" sums over the classes and averages over N; "elements", as ``F.kl_div`` by default, also over K.
        teacher_softmax: soften the teachers' probabilities instead of their logits, a mistake of public code.
    """
    teachers = tuple(one.softmax(dim=1) for one in teachers) if teacher_softmax else teachers
    averaged = len(student) if average == "batch" else student.numel()
    factor = (temperature**2 if temperature_squared else 1.0) / averaged
    return divergence(student, *teachers, temperature=temperature, factor=factor)


def kd(
    setup: Setup,
    *,
    temperature: float = 4.0,
    hard: float | Schedule = 0.1,
    soft: float | Schedule = 0.9,
    temperature_squared: bool = True,
    average: Literal["batch", "elements"] = "batch",
    teacher_softmax: bool = False,
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """Soft targets: the student matches the labels and the teacher's softened distribution.

    The paper specifies T, the factor T² and a "considerably lower" weight of the hard term. The default weights and
    temperature are those of the CRD benchmark (Tian et al. 2020). The presets are the settings of other codebases.

    Args:
        setup: epochs, optimizer and schedule. An ensemble teacher gives one distribution for each member.
        temperature: T of both networks in the soft term, unless the outputs are numbers; everything else uses T = 1.
        hard: weight of the cross-entropy with the labels; 0 removes the term.
        soft: weight of the soft term, a number or a schedule.
        temperature_squared: multiply the soft term by T².
        average: mean of the soft term over the "batch", or over all "elements" (batch times classes).
        teacher_softmax: soften the teacher's probabilities, a mistake of the code behind tf2_demo, to measure it.
        student_layer: the layer read as the student's logits; the default is the network's output.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: the temperature is not above 0, both weights are 0, or an option is only for classification.
    """
    check_above_zero("temperature", temperature)
    student, *teachers = outputs(setup, student_layer, teacher_layer)
    loss = partial(setup.soft_loss or soft_loss, temperature=temperature, temperature_squared=temperature_squared)
    if setup.soft_loss is None:
        loss = partial(loss, average=average, teacher_softmax=teacher_softmax)
    elif average != "batch" or teacher_softmax:
        raise LimbeckError("average: elements and teacher_softmax are only for classification")
    terms = {"hard": hard_term(setup, student, hard), "soft": Term(loss, (student, *teachers), soft)}
    return (Stage("kd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


def label_terms(
    setup: Setup, *, hard: float | Schedule, soft: float | Schedule = 0.0, temperature: float = 1.0
) -> dict[str, Term]:
    """The terms on the logits that other methods add to their own: the labels, and soft targets.

    Raises:
        LimbeckError: the temperature is not above 0.
    """
    check_above_zero("temperature", temperature)
    loss = partial(setup.soft_loss or soft_loss, temperature=temperature)
    return {
        "hard": hard_term(setup, from_student(), hard),
        "soft": Term(loss, (from_student(), *setup.teacher_logits), soft),
    }


_ANNEALED = {"name": "linear", "start": 4.0, "end": 1.0}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The paper's T and T² on MNIST; the paper does not give the weights.
    "hinton_mnist": {"temperature": 20.0, "hard": 0.1, "soft": 1.0},
    # FitNets (2015), Eq. 2, with lambda annealed over the stage: no T².
    "fitnet_eq2": {"temperature": 3.0, "hard": 1.0, "soft": _ANNEALED, "temperature_squared": False},
    # lsh3163/TF-2.0-Knowledge-Distillation, knowledge_distillation.py, without its mistake (teacher_softmax).
    "tf2_demo": {"temperature": 10.0, "hard": 0.1, "soft": 0.9},
    # HobbitLong/RepDistiller, scripts/run_cifar_distill.sh.
    "repdistiller": {"temperature": 4.0, "hard": 0.1, "soft": 0.9},
    # szagoruyko/attention-transfer, utils.py in its older form, 2 a T² times the mean over all elements, a = 0.9.
    # At commit 893df54 the mean is over the batch and the factor is a: that is `repdistiller`.
    "at_repo": {"temperature": 4.0, "hard": 0.1, "soft": 1.8, "average": "elements"},
    # sseung0703/KD_methods_with_TF.
    "kd_methods_tf": {"temperature": 4.0, "hard": 0.7, "soft": 0.3, "temperature_squared": False},
}


ABOUT = About(kd, PAPER, presets=PRESETS, is_system=True, tasks=EVERY_TASK)
