"""Fine-tuning a network from another task: the baseline of transfer learning."""

from typing import Literal

from limbeck.core import TARGETS, Setup, Stage, Term, from_student
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_loss


def fine_tune(setup: Setup, *, backbone: Literal["all", "frozen"] = "all") -> tuple[Stage, ...]:
    """A network from another task goes on to learn this one: the baseline of transfer, without a teacher.

    In a recipe: ``student: {model: ..., weights: FILE, init: fine_tune}`` takes all weights but the classifier's.

    Args:
        setup: epochs, optimizer and schedule.
        backbone: ``all`` layers learn; or all but the classifier are ``frozen``, BatchNorm statistics too.

    Raises:
        LimbeckError: the backbone is frozen and no linear layer gives the student's logits.
    """
    terms = {"hard": Term(hard_loss, (from_student(), TARGETS))}
    learns = "student" if backbone == "all" else f"student.{setup.outline('student').classifier}"
    return (Stage("fine_tune", terms, setup.epochs, setup.optimizer, setup.schedule, learns=(learns,)),)


ABOUT = About(
    fine_tune,
    paper=Paper("Yosinski et al.", "How transferable are features in deep neural networks?", 2014, "1411.1792"),
    networks={"student": "resnet8"},
)
