"""Fine-tuning a network from another task: the baseline of transfer learning."""

from typing import Literal

from limbeck.core import Setup, Stage, from_student
from limbeck.methods.about import EVERY_TASK, About, Paper
from limbeck.methods.alone import hard_term

PAPER = Paper("Yosinski et al.", "How transferable are features in deep neural networks?", 2014, "1411.1792")


def fine_tune(setup: Setup, *, backbone: Literal["all", "frozen"] = "all") -> tuple[Stage, ...]:
    """Fine-tuning without a teacher: a network trained on another task is trained on this one.

    In a recipe, ``student: {model: ..., weights: FILE, init: fine_tune}`` loads all weights except the classifier's.

    Args:
        setup: epochs, optimizer and schedule.
        backbone: "all" trains all layers. "frozen" trains only the classifier and keeps the BatchNorm statistics.

    Raises:
        LimbeckError: the backbone is frozen and the student has no linear classifier.
    """
    terms = {"hard": hard_term(setup, from_student())}
    learns = "student" if backbone == "all" else f"student.{setup.outline('student').classifier}"
    return (Stage("fine_tune", terms, setup.epochs, setup.optimizer, setup.schedule, learns=(learns,)),)


ABOUT = About(fine_tune, PAPER, networks={"student": "resnet8"}, tasks=EVERY_TASK)
