"""Teacher assistants: a chain of networks, each a teacher of the next smaller one."""

from functools import partial

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Tap, Term, weighted
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_term
from limbeck.methods.kd import soft_loss
from limbeck.methods.shared import check_above_zero

PAPER = Paper("Mirzadeh et al.", "Improved Knowledge Distillation via Teacher Assistant", 2019, "1902.03393")


def chain(setup: Setup, *, temperature: float, hard: float | Schedule, soft: float | Schedule) -> tuple[Stage, ...]:
    """Each network learns from the previous one by soft targets: teacher, other networks in order, student.

    Raises:
        LimbeckError: the temperature is not above 0, or both weights are 0.
    """
    check_above_zero("temperature", temperature)
    learners = (*(name for name in setup.networks if name not in ("teacher", "student")), "student")
    stages, sources = [], setup.teacher_logits
    for name in learners:
        terms = {
            "hard": hard_term(setup, Tap(name), hard),
            "soft": Term(partial(soft_loss, temperature=temperature), (Tap(name), *sources), soft),
        }
        stages.append(Stage(name, weighted(terms), setup.epochs, setup.optimizer, setup.schedule, learns=(name,)))
        sources = (Tap(name),)
    return tuple(stages)


def assistants(
    setup: Setup, *, temperature: float = 4.0, hard: float | Schedule = 0.1, soft: float | Schedule = 0.9
) -> tuple[Stage, ...]:
    """Soft targets through networks of intermediate size, one stage for each network.

    The assistants are the networks under ``networks:``, the largest first. The paper tunes temperature and weights
    for each pair; the defaults are those of `kd`.

    Args:
        setup: epochs, optimizer and schedule of every stage.
        temperature: T of the soft targets, in every stage.
        hard: weight of the cross-entropy with the labels.
        soft: weight of the soft targets.

    Raises:
        LimbeckError: there is no assistant; the temperature is not above 0.
    """
    if not set(setup.networks) - {"teacher", "student"}:
        raise LimbeckError("there is no assistant: name one or more under networks:, the largest first")
    return chain(setup, temperature=temperature, hard=hard, soft=soft)


ABOUT = About(assistants, PAPER, networks={"student": "resnet8", "teacher": "resnet20", "assistant": "resnet14"})
