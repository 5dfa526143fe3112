"""What a comparison came to, in sentences."""

from collections.abc import Sequence

from limbeck.comparison.results import ArmResult, ComparisonResult, Versus
from limbeck.comparison.statistics import LEVEL
from limbeck.report.numbers import amount, between, capital, counted, interval, listed, over_seeds
from limbeck.tasks import TASKS, Shown

ADJUSTED = {"holm": "Holm", "fdr": "Benjamini and Hochberg"}

MOST_NAMES = 3
"""The most names that a sentence of the verdict lists."""


def judged(result: ComparisonResult) -> list[tuple[ArmResult, Versus]]:
    """The arms that are compared with the student alone, the greatest mean difference first."""
    found = [(arm, arm.alone) for arm in result.arms if arm.alone is not None]
    return sorted(found, key=lambda one: -one[1].judged.paired.mean)


def best_arm(result: ComparisonResult) -> str:
    """The method with the greatest mean difference to the student alone; if none is compared, the last arm."""
    found = judged(result)
    return found[0][0].arm if found else result.arms[-1].arm


def verdict(result: ComparisonResult) -> list[str]:
    """What the comparison came to, in one to three sentences. Each difference has its interval."""
    found, figure = judged(result), TASKS[result.task].headline
    if not found:
        return ["Nothing is compared: there is no student alone of the same seeds."]
    helping, hurting, rest = (
        [one for one in found if one[1].judged.verdict == kind] for kind in ("helps", "hurts", "no evidence")
    )
    lines = []
    if helping:
        lines.append(_verdicts("help", helping, figure) + (f"; {_no_evidence(rest)}" if rest else ""))
    if hurting:
        lines.append(_verdicts("hurt", hurting[::-1], figure))
    if rest and not helping:
        lines.append(_undecided(rest, figure))
    lines += _best_alone(result, figure)
    return [f"{line}." for line in lines]


def _verdicts(verb: str, which: Sequence[tuple[ArmResult, Versus]], figure: Shown) -> str:
    """The difference of the first arm, and the names of the others with the same verdict."""
    (first, versus), others = which[0], [arm.arm for arm, _ in which[1:]]
    also = f"; {_some_of(others)} {verb}{'s' * (len(others) == 1)} too" if others else ""
    return f"{first.arm} {verb}s: {_gained(versus, figure)} ({counted(versus.judged.paired.n, 'seed')}){also}"


def _no_evidence(which: Sequence[tuple[ArmResult, Versus]]) -> str:
    any_of = "any of " if len(which) > 1 else ""
    return f"no evidence that {any_of}{_some_of([arm.arm for arm, _ in which])} helps or hurts"


def _undecided(which: Sequence[tuple[ArmResult, Versus]], figure: Shown) -> str:
    """That there is no evidence for these arms, with the difference of the first."""
    best, versus = which[0]
    seeds = counted(versus.judged.paired.n, "seed")
    few = f"No verdict, because {seeds} cannot show whether a method helps"
    if versus.judged.paired.interval is None:
        return few
    said = few if versus.judged.smallest_p > LEVEL else f"{capital(_no_evidence(which))} ({seeds})"
    greatest = "the greatest mean difference is that of " if len(which) > 1 else ""
    return f"{said}: {greatest}{best.arm}, {_gained(versus, figure)}"


def _best_alone(result: ComparisonResult, figure: Shown) -> list[str]:
    """That a student alone of more epochs is better than all methods; empty if it is not."""
    best, teacher = max(result.arms, key=lambda arm: figure.score(arm.headline.mean)), result.teachers
    if not best.arm.startswith("alone@"):
        return []
    above = teacher is None or figure.score(best.headline.mean) > figure.score(teacher.mean)
    mean = f"{figure.label} {over_seeds(best.headline, figure)}{' %' * figure.percent}"
    kind = "network" if above else "student"
    return [f"The best {kind} of the table is the student alone with more epochs ({best.arm}): {mean}"]


def _some_of(names: Sequence[str]) -> str:
    """The first names, and how many others there are."""
    shown = names if len(names) <= MOST_NAMES else [*names[: MOST_NAMES - 1], f"{len(names) - MOST_NAMES + 1} others"]
    return listed(shown)


def said(arm: ArmResult, versus: Versus, figure: Shown) -> str:
    """The difference of one arm and its verdict."""
    return f"{arm.arm}: {_gained(versus, figure)}, {versus.judged.verdict}"


def evidence(result: ComparisonResult) -> list[str]:
    """What the number of seeds can show."""
    found, figure = judged(result), TASKS[result.task].headline
    smallest = max(versus.judged.smallest_p for _, versus in found)
    n = min(versus.judged.paired.n for _, versus in found)
    consequence = "so there can be no verdict: use at least 6 seeds" if smallest > LEVEL else "which is enough"
    lines = [
        "A verdict takes two tests at the level 5 %: the t-test, adjusted over the methods "
        f"({ADJUSTED[result.adjusted]}), and the exact sign-flip test. With {counted(n, 'seed')} the smallest p-value "
        f"of the latter is {smallest:.3g}, {consequence}."
    ]
    unseen = [
        f"{figure.number(versus.judged.detectable)}{' points' * figure.percent} for {arm.arm}"
        for arm, versus in found
        if versus.judged.detectable is not None and versus.judged.verdict == "no evidence"
    ]
    if unseen:
        lines.append(f"With these deviations, a difference below {listed(unseen)} could not be seen.")
    lines += [
        f"For {arm.arm} the interval over seeds and test samples contains 0 "
        f"({between(versus.samples_interval, figure)}): other test samples may show no difference."
        for arm, versus in found
        if versus.depends_on_samples
    ]
    return lines


def _gained(versus: Versus, figure: Shown) -> str:
    found = versus.judged.paired
    ends = f", 95 % interval {interval(versus, figure)}" if found.interval is not None else ""
    than = "the student alone" + (f" of as many epochs ({versus.arm})" if versus.arm != "alone" else "")
    if found.mean == 0:
        return f"no better than {than}{ends}"
    return f"{amount(found.mean, figure)} {'better' if found.mean > 0 else 'worse'} than {than}{ends}"
