"""The table of a comparison, and what it shows in sentences."""

from collections.abc import Iterator

from rich import box
from rich.table import Table

from limbeck.cli.tables import spread_text
from limbeck.comparison.results import ArmResult, ComparisonResult, Versus
from limbeck.comparison.statistics import LEVEL
from limbeck.evaluate.cost import QUIET
from limbeck.tasks import TASKS, Shown


def comparison_table(result: ComparisonResult) -> Table:
    """One row for each arm: the headline, and the difference to the student alone of as many epochs."""
    figure = TASKS[result.task].headline
    seeds = len(result.seeds)
    table = Table(
        title=f"{result.name}: test split, {seeds} seed{'s, mean ± deviation' if seeds > 1 else ''}",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    table.add_column("", overflow="fold")
    unit = " %" * figure.percent
    for heading in ("epochs", f"{figure.label}{unit}", "better than alone\n[95 % interval]", "p adjusted", "verdict"):
        table.add_column(heading, justify="right", overflow="fold")
    if result.teachers is not None:
        table.add_row("teacher", "", spread_text(result.teachers, figure), "", "", "")
    for arm in result.arms:
        table.add_row(arm.arm, str(arm.epochs), spread_text(arm.headline, figure), *_versus(arm.alone, figure))
    return table


def _versus(versus: Versus | None, figure: Shown) -> tuple[str, str, str]:
    if versus is None:
        return "", "", ""
    judged = versus.judged
    found, interval = judged.paired, judged.paired.interval
    between = "" if interval is None else f" [{_signed(interval.low, figure)}, {_signed(interval.high, figure)}]"
    return f"{_signed(found.mean, figure)}{between}", f"{judged.p_adjusted:.3f}", judged.verdict


def _signed(value: float, figure: Shown) -> str:
    return ("-" if value < 0 else "+") + figure.number(abs(value))


def evidence(result: ComparisonResult) -> Iterator[str]:
    """The verdicts in sentences, and what the number of seeds can show."""
    compared = [(arm, arm.alone) for arm in result.arms if arm.alone is not None]
    for arm, versus in compared:
        yield _sentence(arm, versus, TASKS[result.task].headline)
    for arm in result.arms:
        if arm.kd is not None and arm.kd.judged.verdict != "no evidence":
            better = "better" if arm.kd.judged.verdict == "helps" else "worse"
            yield f"{arm.arm} is {better} than kd (p {arm.kd.judged.p_adjusted:.3f})"
    smallest = max((versus.judged.smallest_p for _, versus in compared), default=0.0)
    if smallest > LEVEL:
        yield (
            f"with {len(result.seeds)} seed{'s' * (len(result.seeds) > 1)} the smallest p of an exact test is "
            f"{smallest:.3g}, so there can be no verdict: use at least 6 seeds"
        )
    times = [one.latency for one in (result.teacher, *result.arms) if one is not None and one.latency is not None]
    busy = max((latency.others_cores or 0.0 for latency in times), default=0.0)
    if busy > QUIET:
        yield f"the latencies are unreliable: other processes used {busy:.1f} cores meanwhile"


def _sentence(arm: ArmResult, versus: Versus, figure: Shown) -> str:
    judged, points = versus.judged, " points" * figure.percent
    said = {"helps": "helps", "hurts": "hurts", "no evidence": "no evidence that it helps or hurts"}[judged.verdict]
    text = f"{arm.arm}: {said} (compared with {versus.arm}, n = {judged.paired.n}"
    if judged.detectable is not None and judged.verdict == "no evidence":
        text += f"; a difference below {figure.number(judged.detectable)}{points} cannot be seen"
    if versus.depends_on_samples and versus.samples_interval is not None:
        low, high = (_signed(end, figure) for end in (versus.samples_interval.low, versus.samples_interval.high))
        text += (
            f"; over seeds and test samples the interval is [{low}, {high}]: other test samples may show no difference"
        )
    return f"{text})"
