"""Knowledge distillation with soft targets."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from torch import Tensor

from limbeck.core import (
    TARGETS,
    LimbeckError,
    Schedule,
    Setup,
    Stage,
    Term,
    tap,
    weighted,
)
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_loss
from limbeck.methods.distributions import divergence


def soft_loss(
    student: Tensor,
    *teachers: Tensor,
    temperature: float,
    temperature_squared: bool = True,
    average: Literal["batch", "elements"] = "batch",
) -> Tensor:
    """T² * KL(p || q), p and q the softened distributions of teacher and student (Eq. 1).

    Of several teachers p is the arithmetic mean of their softened distributions. The gradient is that of the
    paper's cross-entropy with soft targets; the value is lower by T² times the entropy of p, never below 0, and
    computed in 64 bits, because at a high temperature 32 are too few. No gradient reaches the teachers.

    Args:
        student: logits (N, K).
        teachers: logits (N, K), one tensor a teacher.
        temperature: T > 0.
        temperature_squared: the factor T², which keeps the gradient's size when T changes (section 2).
        average: "batch" sums over classes and takes the mean over N; "elements" takes the mean over N and K, as
            ``F.kl_div`` does by default, and so weighs K times less.
    """
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
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """Soft targets: the student matches the teacher's softened distribution, and the labels.

    The paper fixes T, the factor T² and that the hard weight is "considerably lower"; the default weights and
    temperature are those of the CRD benchmark (Tian et al. 2020). `PRESETS` holds the settings of other codes.

    Args:
        setup: epochs, optimizer and schedule; an ensemble teacher gives one distribution a member.
        temperature: T of both networks in the soft term; the hard term and every evaluation are at T = 1.
        hard: weight of the cross-entropy with the labels; a zero leaves the term out.
        soft: weight of the soft term, a number or a schedule.
        temperature_squared: multiply the soft term by T².
        average: mean of the soft term over the "batch", or over all "elements" (batch times classes).
        student_layer: the layer read as the student's logits; the default is the network's output.
        teacher_layer: the same of the teacher.

    Raises:
        LimbeckError: the temperature is not above 0, or both weights are 0.
    """
    if not temperature > 0:
        raise LimbeckError(f"temperature is {temperature}: it must be above 0")
    student = tap("student", student_layer)
    teachers = (tap("teacher", teacher_layer),) if teacher_layer else setup.teacher_logits
    loss = partial(soft_loss, temperature=temperature, temperature_squared=temperature_squared, average=average)
    terms = {
        "hard": Term(hard_loss, (student, TARGETS), hard),
        "soft": Term(loss, (student, *teachers), soft),
    }
    return (Stage("kd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The paper's T and T² on MNIST; it does not give the weights' values.
    "hinton_mnist": {"temperature": 20.0, "hard": 0.1, "soft": 1.0},
    # FitNets (2015), Eq. 2, with lambda annealed over the stage: no T².
    "fitnet_eq2": {
        "temperature": 3.0,
        "hard": 1.0,
        "soft": {"name": "linear", "start": 4.0, "end": 1.0},
        "temperature_squared": False,
    },
    # lsh3163/TF-2.0-Knowledge-Distillation, knowledge_distillation.py.
    "tf2_demo": {"temperature": 10.0, "hard": 0.1, "soft": 0.9},
    # HobbitLong/RepDistiller, scripts/run_cifar_distill.sh.
    "repdistiller": {"temperature": 4.0, "hard": 0.1, "soft": 0.9},
    # szagoruyko/attention-transfer, utils.py in its older form, 2 a T² times the mean over all elements, a = 0.9.
    # At commit 893df54 the mean is over the batch and the factor is a: that is `repdistiller`.
    "at_repo": {"temperature": 4.0, "hard": 0.1, "soft": 1.8, "average": "elements"},
    # sseung0703/KD_methods_with_TF.
    "kd_methods_tf": {"temperature": 4.0, "hard": 0.7, "soft": 0.3, "temperature_squared": False},
}


ABOUT = About(
    kd,
    paper=Paper("Hinton, Vinyals, Dean", "Distilling the Knowledge in a Neural Network", 2015, "1503.02531"),
    presets=PRESETS,
    is_system=True,
)
