"""Several methods at once: the sum of their objectives."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Term


def combined(setup: Setup, parts: Sequence[Callable[[Setup], tuple[Stage, ...]]]) -> tuple[Stage, ...]:
    """The methods' stages as those of one method: first all stages before the last ones, in order, then one of all.

    The last stages become one, whose objective is the sum of theirs. Where two have the same term on the same tensors
    (the cross-entropy with the labels, most often) it stays one term, with the sum of the weights; other terms of one
    name are told apart by their method's.

    Args:
        setup: what every method is given.
        parts: the methods, ``setup -> stages``.

    Raises:
        LimbeckError: the last stages differ in what learns, in epochs or learning rates, or one ends by changing the
            student; there is no method.
    """
    if not parts:
        raise LimbeckError("got an empty list of methods")
    made = [part(setup) for part in parts]
    lasts = [stages[-1] for stages in made]
    names = " and ".join(stage.name for stage in lasts)
    if len({stage.optimizer for stage in lasts}) > 1 or len({stage.schedule for stage in lasts}) > 1:
        raise LimbeckError(f"{names} cannot be one stage: one of them has learning rates of its own")
    for what in ("learns", "epochs"):
        values = [getattr(stage, what) for stage in lasts]
        if len(set(values)) > 1:
            listed = ", ".join(f"{stage.name}: {value}" for stage, value in zip(lasts, values, strict=True))
            raise LimbeckError(f"{names} cannot be one stage: their {what} differ ({listed})")
    ending = [stage.name for stage in lasts if stage.finish is not None]
    if ending and len(lasts) > 1:
        raise LimbeckError(
            f"{names} cannot be one stage: {' and '.join(ending)} ends by giving the student another classifier, which "
            "the other would have trained for nothing"
        )
    preparing = [stage.prepare for stage in lasts if stage.prepare is not None]
    if len(preparing) > 1:
        raise LimbeckError(f"{names} cannot be one stage: both prepare something before each epoch")
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
                terms[next(free for free in _numbered(other) if free not in terms)] = term
    return terms


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(2))


def _sum(one: float | Schedule, other: float | Schedule) -> float | Schedule:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one + other
    first, second = (_as_schedule(weight) for weight in (one, other))
    return lambda progress: first(progress) + second(progress)


def _as_schedule(weight: float | Schedule) -> Schedule:
    return (lambda progress: weight) if isinstance(weight, int | float) else weight
