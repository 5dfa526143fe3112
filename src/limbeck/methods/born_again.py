"""Born-again networks: each generation of one architecture teaches the next."""

from limbeck.core import LimbeckError, Schedule, Setup, Stage
from limbeck.methods.about import About, Paper
from limbeck.methods.assistants import chain

PAPER = Paper("Furlanello et al.", "Born Again Neural Networks", 2018, "1805.04770")


def born_again(
    setup: Setup, *, temperature: float = 1.0, hard: float | Schedule = 1.0, soft: float | Schedule = 1.0
) -> tuple[Stage, ...]:
    """Generations of one architecture: each learns from the labels and the previous generation.

    The teacher is the first generation, the networks under ``networks:`` are the next ones, and the student is the
    last.

    Args:
        setup: epochs, optimizer and schedule of every generation.
        temperature: T; 1 in the paper.
        hard: weight of the cross-entropy with the labels.
        soft: weight of the soft targets.

    Raises:
        LimbeckError: a generation has another architecture than the student; the temperature is not above 0.
    """

    def layout(name: str) -> list[tuple[int, ...]]:
        return [tuple(tensor.shape) for tensor in setup.module(name, "").state_dict().values()]

    for name in setup.networks:
        if layout(name) != layout("student"):
            raise LimbeckError(
                f"the {name} is another network than the student: all generations have one architecture (for networks "
                "of several sizes use the method assistants)"
            )
    return chain(setup, temperature=temperature, hard=hard, soft=soft)


ABOUT = About(born_again, PAPER, networks={"student": "resnet8", "teacher": "resnet8", "second": "resnet8"})
