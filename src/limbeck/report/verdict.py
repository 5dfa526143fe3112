"""What a comparison came to, in sentences."""

from limbeck.comparison.results import ArmResult, ComparisonResult, Versus
from limbeck.comparison.statistics import LEVEL
from limbeck.report.numbers import amount, between, counted, interval, listed
from limbeck.tasks import TASKS, Shown

ADJUSTED = {"holm": "Holm", "fdr": "Benjamini and Hochberg"}


def judged(result: ComparisonResult) -> list[tuple[ArmResult, Versus]]:
    """The arms that are compared with the student alone, the greatest mean difference first."""
    found = [(arm, arm.alone) for arm in result.arms if arm.alone is not None]
    return sorted(found, key=lambda one: -one[1].judged.paired.mean)


def best_arm(result: ComparisonResult) -> str:
    """The method with the greatest mean difference to the student alone; if none is compared, the last arm."""
    found = judged(result)
    return found[0][0].arm if found else result.arms[-1].arm


def verdict(result: ComparisonResult) -> str:
    """What the comparison came to, in one sentence."""
    found, figure = judged(result), TASKS[result.task].headline
    if not found:
        return "Nothing is compared: there is no student alone of the same seeds."
    helping = [one for one in found if one[1].judged.verdict == "helps"]
    hurting = [arm.arm for arm, versus in found if versus.judged.verdict == "hurts"]
    best, versus = helping[0] if helping else found[0]
    seeds, gained = counted(versus.judged.paired.n, "seed"), _gained(versus, figure)
    harm = f"; {listed(hurting)} {_verb('hurt', hurting)}" if hurting else ""
    if helping:
        others = [arm.arm for arm, _ in helping[1:]]
        also = f"; {listed(others)} {_verb('help', others)} too" if others else ""
        return f"{best.arm} helps: {gained} ({seeds}){also}{harm}."
    if versus.judged.smallest_p > LEVEL:
        which = "the greatest mean difference is that of " if len(found) > 1 else ""
        return f"No verdict, because {seeds} cannot show whether a method helps: {which}{best.arm}, {gained}."
    which = f"any of {len(found)} methods" if len(found) > 1 else best.arm
    return f"No evidence that {which} helps ({seeds}): on these seeds {best.arm} was {gained}{harm}."


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


def _verb(verb: str, who: list[str]) -> str:
    return verb + "s" * (len(who) == 1)


def _gained(versus: Versus, figure: Shown) -> str:
    found = versus.judged.paired
    ends = f", 95 % interval {interval(versus, figure)}" if found.interval is not None else ""
    than = "the student alone" + (f" of as many epochs ({versus.arm})" if versus.arm != "alone" else "")
    if found.mean == 0:
        return f"no better than {than}{ends}"
    return f"{amount(found.mean, figure)} {'better' if found.mean > 0 else 'worse'} than {than}{ends}"
