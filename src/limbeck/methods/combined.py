"""Several methods at once: the sum of their objectives."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from limbeck.core import LimbeckError, Setup, Stage, Term


def combined(setup: Setup, parts: Sequence[Callable[[Setup], tuple[Stage, ...]]]) -> tuple[Stage, ...]:
    """The methods' stages as those of one method: first all stages before the last ones, in order, then one of all.

    The last stages become one, whose objective is the sum of theirs. Where two have the same term on the same tensors
    (the cross-entropy with the labels, most often) it stays one term, with the sum of the weights; other terms of one
    name are told apart by their method's.

    Args:
        setup: what every method is given.
        parts: the methods, ``setup -> stages``.

    Raises:
        LimbeckError: the last stages differ in what learns, in epochs, or both end by changing the student.
    """
    made = [part(setup) for part in parts]
    lasts = [stages[-1] for stages in made]
    names = " and ".join(stage.name for stage in lasts)
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
        lasts[0], name="+".join(stage.name for stage in lasts), terms=_united(lasts), prepare=(*preparing, None)[0]
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
                terms[f"{stage.name}_{name}"] = term
    return terms


def _sum(one: object, other: object) -> float:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one + other
    raise LimbeckError("a weight that is a schedule cannot be added to another: give one of the methods a number")
