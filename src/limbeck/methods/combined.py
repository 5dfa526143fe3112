"""Several methods at once: the sum of their objectives."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Term
from limbeck.methods.shared import as_schedule


def combined(setup: Setup, parts: Sequence[Callable[[Setup], tuple[Stage, ...]]]) -> tuple[Stage, ...]:
    """The stages of several methods as those of one: all stages but the last of each, in order, then a common last one.

    The common stage has the sum of the last stages' objectives. If two of them have the same term on the same tensors
    (usually the cross-entropy with the labels), it becomes one term with the sum of the weights. Other terms of equal
    name get the name of their stage as a prefix.

    Args:
        setup: the setup that every method is given.
        parts: the methods, ``setup -> stages``.

    Raises:
        LimbeckError: the last stages differ in the networks that learn, in epochs or in learning rates; one of them
            changes the student's structure or classifier at its end; there are no methods.
    """
    if not parts:
        raise LimbeckError("got an empty list of methods")
    made = [part(setup) for part in parts]
    lasts = [stages[-1] for stages in made]
    names = " and ".join(stage.name for stage in lasts)
    if len({stage.optimizer for stage in lasts}) > 1 or len({stage.schedule for stage in lasts}) > 1:
        raise LimbeckError(f"{names} cannot be combined in one stage: one of them changes the learning rates")
    for what in ("learns", "epochs"):
        values = [getattr(stage, what) for stage in lasts]
        if len(set(values)) > 1:
            listed = ", ".join(f"{stage.name}: {value}" for stage, value in zip(lasts, values, strict=True))
            raise LimbeckError(f"{names} cannot be combined in one stage: their {what} differ ({listed})")
    ending = [stage.name for stage in lasts if stage.finish is not None]
    if ending and len(lasts) > 1:
        raise LimbeckError(
            f"{names} cannot be combined in one stage: {' and '.join(ending)} replaces the student's classifier at "
            "its end, and the other method's training of the classifier would be lost"
        )
    preparing = [stage.prepare for stage in lasts if stage.prepare is not None]
    if len(preparing) > 1:
        raise LimbeckError(
            f"{names} cannot be combined in one stage: both need a pass over the training set before each epoch"
        )
    united = replace(
        lasts[0],
        name="+".join(stage.name for stage in lasts),
        terms=_united(lasts),
        prepare=(*preparing, None)[0],
        notes=tuple(note for stage in lasts for note in stage.notes),
    )
    return (*(stage for stages in made for stage in stages[:-1]), united)


def _united(stages: Sequence[Stage]) -> dict[str, Term]:
    terms: dict[str, Term] = {}
    for stage in stages:
        for name, term in stage.terms.items():
            twin = terms.get(name)
            if twin is None:
                terms[name] = term
            elif twin.loss is term.loss and twin.reads == term.reads:
                terms[name] = replace(twin, weight=_sum(twin.weight, term.weight))
            else:
                other = f"{stage.name}_{name}"
                numbered = itertools.chain([other], (f"{other}_{number}" for number in itertools.count(2)))
                terms[next(free for free in numbered if free not in terms)] = term
    return terms


def _sum(one: float | Schedule, other: float | Schedule) -> float | Schedule:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one + other
    first, second = as_schedule(one), as_schedule(other)
    return lambda progress: first(progress) + second(progress)
