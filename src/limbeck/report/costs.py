"""The headline against the latency and against the number of parameters."""

import math
from collections.abc import Mapping

from matplotlib.axes import Axes

from limbeck.comparison.results import ComparisonResult
from limbeck.evaluate.cost import QUIET
from limbeck.report.drawing import COLOUR, FONT, Look, apart, drawn, looks, plain_ticks
from limbeck.report.numbers import axis_of, capital, scaled, short
from limbeck.report.parts import Figure, Section, Table
from limbeck.tasks import TASKS

LOGARITHMIC = 5
"""The axis is logarithmic if the greatest cost is more than so many times the least."""

BESIDE = 0.45
"""The room for names on both sides, as a part of the range of the costs."""


def costs(result: ComparisonResult) -> Section:
    """Two figures, each with its Pareto front."""
    figure = TASKS[result.task].headline
    sizes = {arm.arm: float(result.of(arm.arm)[0].parameters) for arm in result.arms}
    times = {arm.arm: arm.latency.median_ms for arm in result.arms if arm.latency is not None}
    if result.teacher is not None:
        sizes["teacher"] = float(result.teacher.parameters)
        if result.teacher.latency is not None:
            times["teacher"] = result.teacher.latency.median_ms
    figures = [_cost(result, "latency", times, "latency, ms")] if times else []
    figures.append(_cost(result, "parameters", sizes, "parameters"))
    loads = [one.latency.others_cores or 0.0 for one in (result.teacher, *result.arms) if one and one.latency]
    busy = max(loads, default=0.0)
    text = [f"The latencies are unreliable: other processes used {busy:.1f} cores meanwhile."] if busy > QUIET else []
    missing = [] if times else ["the latencies, which were not measured"]
    return Section("costs", f"{capital(figure.label)} and cost", text, figures, missing=missing)


def _cost(result: ComparisonResult, name: str, costs: Mapping[str, float], label: str) -> Figure:
    figure = TASKS[result.task].headline
    spreads = {arm.arm: arm.headline for arm in result.arms if arm.arm in costs}
    if result.teachers is not None and "teacher" in costs:
        spreads["teacher"] = result.teachers
    quality = {arm: scaled(spread.mean, figure) for arm, spread in spreads.items()}
    front = _front(costs, {arm: figure.score(value) for arm, value in quality.items()})

    def draw(axes: Axes) -> None:
        of = looks(result)
        axes.plot([costs[arm] for arm in front], [quality[arm] for arm in front], color=COLOUR["muted"], linewidth=0.8)
        for arm, value in quality.items():
            bar = scaled(spreads[arm].deviation or 0.0, figure)
            axes.plot([costs[arm]] * 2, [value - bar, value + bar], color=of[arm].colour, linewidth=1.2, alpha=0.4)
            axes.plot([costs[arm]], [value], color=of[arm].colour, marker=of[arm].marker, markersize=8)
        _set_range(axes, min(costs.values()), max(costs.values()))
        axes.set(xlabel=label, title=axis_of(figure))
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        _write_names(axes, costs, quality, of)

    alt = "; ".join(f"{arm}: {quality[arm]:.2f} at {costs[arm]:,.4g} {label}" for arm in quality)
    digits = 3 if name == "latency" else 0
    rows = [
        [arm, f"{quality[arm]:.4g}", f"{costs[arm]:,.{digits}f}", "yes" if arm in front else "no"] for arm in quality
    ]
    caption = (
        f"{'Lower' if figure.falls else 'Higher'} and further left is better. The line joins the networks that no "
        "other beats in both (the Pareto front). Bars are one standard deviation over the seeds."
    )
    numbers = Table(["network", axis_of(figure), label, "on the front"], rows)
    panel = drawn(f"cost-{name}", alt, (400, 300), draw)
    return Figure(f"cost-{name}", f"Against {name}", caption, [panel], numbers)


def _front(costs: Mapping[str, float], scores: Mapping[str, float]) -> list[str]:
    """The networks that no other beats, by ascending cost."""
    best, front = -math.inf, []
    for arm in sorted(scores, key=lambda arm: (costs[arm], -scores[arm])):
        if scores[arm] > best:
            best = scores[arm]
            front.append(arm)
    return front


def _set_range(axes: Axes, low: float, high: float) -> None:
    """Show all costs, with room for names beside them."""
    if low > 0 and high / low > LOGARITHMIC:
        axes.set_xscale("log")
        factor = (high / low) ** BESIDE
        axes.set_xlim(low / factor, high * factor)
    else:
        room = BESIDE * ((high - low) or high or 1.0)
        axes.set_xlim(max(0.0, low - room), high + room)


def _write_names(axes: Axes, costs: Mapping[str, float], quality: Mapping[str, float], of: Mapping[str, Look]) -> None:
    """Write the names beside the points, those of close points below each other."""
    low, high = axes.get_ylim()
    axes.set_ylim(low - (high - low) * 0.08, high + (high - low) * 0.08)
    points = {arm: tuple(axes.transData.transform((costs[arm], quality[arm])).tolist()) for arm in quality}
    middle = axes.bbox.x0 + axes.bbox.width / 2
    for right, toward in ((True, max), (False, min)):
        arms = [arm for arm, (x, _) in points.items() if (x < middle) == right]
        for arm, y in zip(arms, apart([points[arm][1] for arm in arms], FONT + 3), strict=True):
            beside = [points[other][0] for other in arms if abs(points[other][1] - y) < FONT]
            x = toward([points[arm][0], *beside]) + (12 if right else -12)
            line = {"arrowstyle": "-", "color": of[arm].colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4}
            line["relpos"] = (0 if right else 1, 0.5)
            axes.annotate(
                short(arm),
                points[arm],
                (x, y),
                xycoords="figure pixels",
                textcoords="figure pixels",
                ha="left" if right else "right",
                va="center",
                arrowprops=line if abs(y - points[arm][1]) > 4 else None,
            )
