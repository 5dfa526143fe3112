"""The headline against the latency, the number of parameters and, with exports, the size of the files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from limbeck.comparison.results import ComparisonResult
from limbeck.evaluate.cost import QUIET
from limbeck.report.drawing import COLOUR, FONT, Look, apart, drawn, looks, plain_ticks
from limbeck.report.found import Exported
from limbeck.report.numbers import NONE, axis_of, capital, decimal, scaled, short
from limbeck.report.parts import Figure, Section, Table
from limbeck.tasks import TASKS, Shown

LOGARITHMIC = 5
"""The axis is logarithmic if the greatest cost is more than so many times the least."""

BESIDE = 0.45
"""The room for names on both sides, as a part of the range of the costs."""


MARKERS = ("<", ">", "p", "h", "d", "8", "H")
"""Of exports, which have the colour of their network."""


@dataclass(frozen=True)
class Point:
    """A network or a file in a figure."""

    cost: float
    quality: float  # in the unit of `axis_of`
    deviation: float
    look: Look


def costs(result: ComparisonResult, exports: Sequence[Exported] = (), reasons: Sequence[str] = ()) -> Section:
    """Two figures, each with its Pareto front; with exports, also one against the size, and their table.

    Args:
        result: of the networks.
        exports: of the networks.
        reasons: why other exports are not shown.
    """
    figure = TASKS[result.task].headline
    first = {arm.arm: result.of(arm.arm)[0] for arm in result.arms}
    latencies = {arm.arm: arm.latency for arm in result.arms}
    if result.teacher is not None:
        first["teacher"], latencies["teacher"] = result.teacher, result.teacher.latency
    timed = {one.name: one.card.results.latency.get("file") for one in exports if one.comparable}
    times = {name: one.median_ms for name, one in latencies.items() if one is not None}
    figures, missing = [], list(reasons)
    if times:
        files = {name: one.median_ms for name, one in timed.items() if one is not None}
        figures.append(_cost(result, "latency", _points(result, times, exports, files), "latency, ms"))
        missing += [
            f"the latency of {one.name} in the figure, because it was measured on another processor"
            for one in exports
            if not one.comparable and "file" in one.card.results.latency
        ]
    else:
        missing.append("the latencies, which were not measured")
    sizes = {name: float(one.parameters) for name, one in first.items()}
    figures.append(_cost(result, "parameters", _points(result, sizes), "parameters"))
    if exports:
        sizes = {name: float(one.file_bytes) for name, one in first.items()}
        files = {one.name: float(one.card.results.bytes) for one in exports}
        figures.append(_cost(result, "size", _points(result, sizes, exports, files), "bytes"))
    loads = [one.others_cores or 0.0 for one in (*latencies.values(), *timed.values()) if one is not None]
    busy = max(loads, default=0.0)
    text = [f"The latencies are unreliable: other processes used {busy:.1f} cores meanwhile."] if busy > QUIET else []
    tables = [_table(exports, figure)] if exports else []
    return Section("costs", f"{capital(figure.label)} and cost", text, figures, tables=tables, missing=missing)


def _points(
    result: ComparisonResult,
    costs: Mapping[str, float],
    exports: Sequence[Exported] = (),
    files: Mapping[str, float] | None = None,
) -> dict[str, Point]:
    """The networks with these costs, and the exports of which the scores and these costs are known."""
    figure, of = TASKS[result.task].headline, looks(result)
    spreads = {arm.arm: arm.headline for arm in result.arms if arm.arm in costs}
    if result.teachers is not None and "teacher" in costs:
        spreads["teacher"] = result.teachers
    points = {
        name: Point(costs[name], scaled(one.mean, figure), scaled(one.deviation or 0.0, figure), of[name])
        for name, one in spreads.items()
    }
    for place, one in enumerate(exports):
        score, look = one.card.results.exported, Look(of[one.arm].colour, MARKERS[place % len(MARKERS)])
        if score is not None and files and one.name in files:
            points[one.name] = Point(files[one.name], scaled(score, figure), 0.0, look)
    return points


def _table(exports: Sequence[Exported], figure: Shown) -> Table:
    """The exports, beside the student in PyTorch that was measured in turns with the file."""
    head = [
        "export",
        "network",
        "sample",
        *(f"{axis_of(figure)}, {which}" for which in ("student", "file")),
        *(f"latency, ms, {which}" for which in ("student", "file")),
        *(f"peak memory, MB, {which}" for which in ("student", "file")),
        "bytes",
    ]
    rows = []
    for one in exports:
        results = one.card.results
        scores = [NONE if score is None else figure.number(score) for score in (results.student, results.exported)]
        times = [results.latency.get(which) for which in ("student", "file")]
        peaks = [results.memory.get(which) for which in ("student", "file")]
        rows.append(
            [
                one.name,
                one.card.network,
                "x".join(map(str, one.card.reads.shape[1:])),
                *scores,
                *(decimal(None if time is None else time.median_ms, 3) for time in times),
                *(decimal(None if peak is None else peak / 1e6, 1) for peak in peaks),
                f"{results.bytes:,}",
            ]
        )
    return Table(head, rows)


def _cost(result: ComparisonResult, name: str, points: Mapping[str, Point], label: str) -> Figure:
    figure = TASKS[result.task].headline
    front = _front(
        {name: point.cost for name, point in points.items()},
        {name: figure.score(point.quality) for name, point in points.items()},
    )

    def draw(axes: Axes) -> None:
        line = [points[one] for one in front]
        axes.plot([one.cost for one in line], [one.quality for one in line], color=COLOUR["muted"], linewidth=0.8)
        for one in points.values():
            ends = [one.quality - one.deviation, one.quality + one.deviation]
            axes.plot([one.cost] * 2, ends, color=one.look.colour, linewidth=1.2, alpha=0.4)
            axes.plot([one.cost], [one.quality], color=one.look.colour, marker=one.look.marker, markersize=8)
        _set_range(axes, min(one.cost for one in points.values()), max(one.cost for one in points.values()))
        axes.set(xlabel=label, title=axis_of(figure))
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        _write_names(axes, points)

    alt = "; ".join(f"{name}: {one.quality:.2f} at {one.cost:,.4g} {label}" for name, one in points.items())
    digits = 3 if name == "latency" else 0
    rows = [
        [name, f"{one.quality:.4g}", f"{one.cost:,.{digits}f}", "yes" if name in front else "no"]
        for name, one in points.items()
    ]
    caption = (
        f"{'Lower' if figure.falls else 'Higher'} and further left is better. The line joins the networks that no "
        "other beats in both (the Pareto front). Bars are one standard deviation over the seeds."
    )
    if points.keys() - looks(result).keys():
        caption += " Exports have the colour of their network, and are those of one seed."
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


def _write_names(axes: Axes, named: Mapping[str, Point]) -> None:
    """Write the names beside the points, those of close points below each other."""
    low, high = axes.get_ylim()
    axes.set_ylim(low - (high - low) * 0.08, high + (high - low) * 0.08)
    points = {arm: tuple(axes.transData.transform((one.cost, one.quality)).tolist()) for arm, one in named.items()}
    middle = axes.bbox.x0 + axes.bbox.width / 2
    for (arm, (x, level)), y in zip(points.items(), apart([y for _, y in points.values()], FONT + 3), strict=True):
        right = x < middle
        beside = [far for far, near in points.values() if (far < middle) == right and abs(near - y) < FONT]
        place = (max if right else min)([x, *beside]) + (12 if right else -12)
        line = {"arrowstyle": "-", "color": named[arm].look.colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4}
        line["relpos"] = (0 if right else 1, 0.5)
        axes.annotate(
            short(arm),
            points[arm],
            (place, y),
            xycoords="figure pixels",
            textcoords="figure pixels",
            ha="left" if right else "right",
            va="center",
            arrowprops=line if abs(y - level) > 4 else None,
        )
