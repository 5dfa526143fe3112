"""The verdict, every seed's differences, the costs, and the table of arms."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from limbeck.comparison.results import ArmResult, ComparisonResult, Versus
from limbeck.comparison.statistics import LEVEL
from limbeck.evaluate.cost import QUIET
from limbeck.experiment.results import NetworkResult
from limbeck.report.drawing import COLOUR, FONT, Look, apart, drawn, looks, plain_ticks
from limbeck.report.parts import Figure, Section, Table, listed, short
from limbeck.tasks import TASKS, Shown

ROW = 46
"""The height of a method in the figure of differences, in pixels."""


def judged(result: ComparisonResult) -> list[tuple[ArmResult, Versus]]:
    """The arms that are compared with the student alone, the greatest mean difference first."""
    found = [(arm, arm.alone) for arm in result.arms if arm.alone is not None]
    return sorted(found, key=lambda one: -one[1].judged.paired.mean)


def best_arm(result: ComparisonResult) -> str | None:
    """The method with the greatest mean difference to the student alone; without one, the first method."""
    found = judged(result)
    methods = [arm.arm for arm in result.arms if not arm.arm.startswith("alone")]
    return found[0][0].arm if found else next(iter(methods), None)


def verdict(result: ComparisonResult) -> str:
    """What the comparison came to, in one sentence."""
    found, figure = judged(result), TASKS[result.task].headline
    if not found:
        return "Nothing is compared: there is no student alone of the same seeds."
    groups = {kind: [arm.arm for arm, versus in found if versus.judged.verdict == kind] for kind in ("helps", "hurts")}
    best, versus = found[0]
    n = versus.judged.paired.n
    seeds, amount = f"{n} seed{'s' * (n > 1)}", _amount(versus, figure)
    hurting = f"; {listed(groups['hurts'])} {'hurt' if len(groups['hurts']) > 1 else 'hurts'}" if groups["hurts"] else ""
    if groups["helps"]:
        others = groups["helps"][1:]
        also = f"; {listed(others)} {'help' if len(others) > 1 else 'helps'} too" if others else ""
        helping = next(one for one in found if one[0].arm == groups["helps"][0])
        return f"{helping[0].arm} helps: {_amount(helping[1], figure)} ({seeds}){also}{hurting}."
    if versus.judged.smallest_p > LEVEL:
        largest = "the largest mean difference is that of " if len(found) > 1 else ""
        return (
            f"No verdict: {seeds} cannot show whether a method helps (it takes 6); {largest}{best.arm}: {amount}."
        )
    limit = versus.judged.detectable
    seen = f"; a difference below {figure.number(limit)}{_unit(figure)} could not be seen" if limit is not None else ""
    which = f"{best.arm} helps" if len(found) == 1 else f"any of {len(found)} methods helps"
    return f"No evidence that {which} ({seeds}): {best.arm} is {amount}{seen}{hurting}."


def _amount(versus: Versus, figure: Shown) -> str:
    found = versus.judged.paired
    better = "better" if found.mean >= 0 else "worse"
    between = ""
    if found.interval is not None:
        low, high = _signed(found.interval.low, figure), _signed(found.interval.high, figure)
        between = f", 95 % interval {low} to {high}"
    than = "the student alone" + (f" of as many epochs ({versus.arm})" if versus.arm != "alone" else "")
    return f"{figure.number(abs(found.mean))}{_unit(figure)} {better} than {than}{between}"


def _unit(figure: Shown) -> str:
    return f" points of {figure.label}" if figure.percent else f" of {figure.label}"


def _signed(value: float, figure: Shown) -> str:
    return ("−" if value < 0 else "+") + figure.number(abs(value))


def differences(result: ComparisonResult) -> Section:
    """Every seed's difference to the student alone, with mean and interval."""
    title = "Difference to the student alone"
    found, figure = judged(result), TASKS[result.task].headline
    if not found:
        return Section("differences", title, missing=["there is no student alone to compare with"])
    scale = 100 if figure.percent else 1
    unit = "points" if figure.percent else figure.label

    def draw(axes: Axes) -> None:
        of = looks(arm.arm for arm in result.arms)
        axes.axvline(0, color=COLOUR["muted"], linewidth=1)
        for place, (arm, versus) in enumerate(found):
            _row(axes, len(found) - 1 - place, arm.arm, versus, of[arm.arm], figure)
        values = [value * scale for _, versus in found for value in _extent(versus)] + [0.0]
        low, high = min(values), max(values)
        room = (high - low) * 0.06 or 1.0
        axes.set(xlim=(low - room, high + room), ylim=(-0.55, len(found) - 0.25), yticks=[])
        axes.set_xlabel(f"← worse\u2003\u2003{figure.label}, {unit}\u2003\u2003better →")
        axes.spines["left"].set_visible(False)
        plain_ticks(axes.xaxis, 7)

    alt = "; ".join(f"{arm.arm}: {_amount(versus, figure)}, {versus.judged.verdict}" for arm, versus in found)
    seeds = sorted({one.seed for arm, _ in found for one in result.of(arm.arm)})
    rows = [_seed_row(result, arm, versus, seeds, figure) for arm, versus in found]
    caption = (
        "Each dot is one seed: the method minus the student alone, with the same initial weights and batches. The "
        "diamond is the mean, the bar its 95 % interval (Student's t). On the right of 0 the method is better."
    )
    panel = drawn("differences", alt, (400, ROW * len(found) + 48), draw, margins=(10, 10, 4, 40))
    numbers = Table(["method", "compared with", *(f"seed {seed}" for seed in seeds), "mean", "95 % interval"], rows)
    plot = Figure("differences", "Every seed", caption, [panel], numbers)
    return Section("differences", title, figures=[plot], after=_evidence(found, result, figure))


def _row(axes: Axes, y: int, name: str, versus: Versus, look: Look, figure: Shown) -> None:
    scale, found = 100 if figure.percent else 1, versus.judged.paired
    colour = {"helps": COLOUR["good"], "hurts": COLOUR["bad"]}.get(versus.judged.verdict, COLOUR["muted"])
    mark = {"helps": "▲ helps", "hurts": "▼ hurts"}.get(versus.judged.verdict, "no evidence")
    count = len(versus.differences)
    heights = [y - 0.06 - 0.22 * (at % 3 - 1) * (count > 3) * 0.5 for at in range(count)]
    axes.axhline(y - 0.06, color=COLOUR["line"], linewidth=0.6)
    dots = [value * scale for value in versus.differences]
    axes.plot(dots, heights, "o", color=look.colour, markersize=5, alpha=0.55, markeredgewidth=0)
    if found.interval is not None:
        ends = [found.interval.low * scale, found.interval.high * scale]
        axes.plot(ends, [y - 0.06] * 2, color=look.colour, linewidth=2.5, solid_capstyle="butt")
    axes.plot([found.mean * scale], [y - 0.06], "D", color=look.colour, markersize=8, markeredgecolor=COLOUR["paper"])
    across = {"transform": axes.get_yaxis_transform(), "va": "center"}
    axes.text(0, y + 0.4, short(name), weight="bold", **across)
    axes.text(1, y + 0.4, f"{_signed(found.mean, figure)}\u2003{mark}", ha="right", color=colour, weight="bold", **across)


def _extent(versus: Versus) -> list[float]:
    interval = versus.judged.paired.interval
    return [*versus.differences, *((interval.low, interval.high) if interval else ())]


def _seed_row(
    result: ComparisonResult, arm: ArmResult, versus: Versus, seeds: Sequence[int], figure: Shown
) -> list[str]:
    both = sorted({one.seed for one in result.of(arm.arm)} & {one.seed for one in result.of(versus.arm)})
    values = dict(zip(both, versus.differences, strict=False))
    of_seeds = [_signed(values[seed], figure) if seed in values else "–" for seed in seeds]
    return [arm.arm, versus.arm, *of_seeds, _signed(versus.judged.paired.mean, figure), _interval(versus, figure)]


def _interval(versus: Versus, figure: Shown) -> str:
    found = versus.judged.paired.interval
    return "–" if found is None else f"{_signed(found.low, figure)} to {_signed(found.high, figure)}"


def _evidence(
    found: Sequence[tuple[ArmResult, Versus]], result: ComparisonResult, figure: Shown
) -> list[str]:
    """What the number of seeds can show."""
    smallest = max(versus.judged.smallest_p for _, versus in found)
    n = min(versus.judged.paired.n for _, versus in found)
    lines = [
        f"With {n} seed{'s' * (n > 1)} the smallest p-value of the exact sign-flip test is {smallest:.3g}"
        + (", so there can be no verdict: use at least 6 seeds." if smallest > LEVEL else ".")
    ]
    unseen = [
        f"{figure.number(versus.judged.detectable)}{' points' * figure.percent} for {arm.arm}"
        for arm, versus in found
        if versus.judged.detectable is not None and versus.judged.verdict == "no evidence"
    ]
    if unseen:
        lines.append(f"With this deviation, a smaller difference than {listed(unseen)} could not be seen.")
    lines.append(
        "A verdict takes two tests at the level 5 %: the t-test, adjusted over the methods "
        f"({'Holm' if result.adjusted == 'holm' else 'Benjamini and Hochberg'}), and the sign-flip test."
    )
    return lines


def costs(result: ComparisonResult) -> Section:
    """The headline against the latency and against the number of parameters."""
    figure = TASKS[result.task].headline
    first = {arm.arm: result.of(arm.arm)[0] for arm in result.arms}
    sizes = {arm: float(one.parameters) for arm, one in first.items()}
    times = {arm.arm: arm.latency.median_ms for arm in result.arms if arm.latency is not None}
    if result.teacher is not None:
        sizes["teacher"] = float(result.teacher.parameters)
        if result.teacher.latency is not None:
            times["teacher"] = result.teacher.latency.median_ms
    figures = [
        _cost(result, name, costs, label)
        for name, costs, label in (("latency", times, "latency, ms"), ("size", sizes, "parameters"))
        if costs
    ]
    missing = [] if times else ["the latencies: they were not measured"]
    busy = [one.latency.others_cores or 0.0 for one in (result.teacher, *result.arms) if one and one.latency]
    text = []
    if max(busy, default=0.0) > QUIET:
        text = [f"The latencies are unreliable: other processes used {max(busy):.1f} cores meanwhile."]
    title = f"{figure.label[0].upper()}{figure.label[1:]} against cost"
    return Section("costs", title, text, figures, missing=missing)


def _cost(result: ComparisonResult, name: str, costs: dict[str, float], label: str) -> Figure:
    figure = TASKS[result.task].headline
    scale = 100 if figure.percent else 1
    spreads = {arm.arm: arm.headline for arm in result.arms}
    quality = {arm: spreads[arm].mean * scale for arm in costs if arm in spreads}
    if result.teacher is not None and "teacher" in costs:
        quality["teacher"] = getattr(result.teacher.test, figure.key) * scale
    front = _front(costs, quality, falls=figure.falls)

    def draw(axes: Axes) -> None:
        of = looks(arm.arm for arm in result.arms)
        low, high = min(costs.values()), max(costs.values())
        logarithmic = low > 0 and high / low > 5
        if logarithmic:
            axes.set_xscale("log")
        axes.plot([costs[arm] for arm in front], [quality[arm] for arm in front], color=COLOUR["good"], linewidth=1.2)
        for arm, value in quality.items():
            look, deviation = of[arm], (spreads[arm].deviation or 0.0) * scale if arm in spreads else 0.0
            axes.plot([costs[arm]] * 2, [value - deviation, value + deviation], color=look.colour, linewidth=1.2)
            axes.plot([costs[arm]], [value], color=look.colour, marker=look.marker, markersize=8)
        wide = (math.log(high / low) if logarithmic else high - low) or (0.5 if logarithmic else high or 1.0)
        ends = (low / math.exp(wide * 0.45), high * math.exp(wide * 0.45)) if logarithmic else (
            max(0.0, low - wide * 0.45), high + wide * 0.45)
        axes.set(xlim=ends, xlabel=label, title=f"{figure.label}{', %' * figure.percent}")
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        _names(axes, costs, quality)

    alt = "; ".join(f"{arm}: {quality[arm]:.2f} at {costs[arm]:,.4g} {label}" for arm in quality)
    rows = [[arm, f"{quality[arm]:.4g}", f"{costs[arm]:,.4g}" if name == "latency" else f"{costs[arm]:,.0f}",
             "yes" if arm in front else "no"] for arm in quality]
    caption = (
        f"{'Lower' if figure.falls else 'Higher'} and further left is better. The line joins the networks that no "
        "other network beats in both (the Pareto front). The bars are one standard deviation over the seeds."
    )
    numbers = Table(["network", f"{figure.label}{', %' * figure.percent}", label, "on the front"], rows)
    title = "Against latency" if name == "latency" else "Against parameters"
    panel = drawn(f"cost-{name}", alt, (400, 300), draw)
    return Figure(f"cost-{name}", title, caption, [panel], numbers)


def _front(costs: dict[str, float], quality: dict[str, float], *, falls: bool) -> list[str]:
    """The networks that no other beats, by ascending cost."""
    best, front = -math.inf, []
    for arm in sorted(quality, key=lambda arm: (costs[arm], quality[arm] if falls else -quality[arm])):
        score = -quality[arm] if falls else quality[arm]
        if score > best:
            best = score
            front.append(arm)
    return front


def _names(axes: Axes, costs: dict[str, float], quality: dict[str, float]) -> None:
    """Write the names beside the points, those of close points below each other."""
    low, high = axes.get_ylim()
    axes.set_ylim(low - (high - low) * 0.08, high + (high - low) * 0.08)
    left, right = axes.get_xlim()
    height = axes.bbox.height
    pixels = {arm: axes.transData.transform((costs[arm], quality[arm])) for arm in quality}
    middle = axes.bbox.x0 + axes.bbox.width / 2
    for side in (True, False):
        arms = [arm for arm in quality if (pixels[arm][0] < middle) == side]
        for arm, y in zip(arms, apart([pixels[arm][1] for arm in arms], FONT + 3), strict=True):
            up = min(max(y, axes.bbox.y0 + 6), axes.bbox.y0 + height - 6)
            beside = [pixels[other][0] for other in arms if abs(pixels[other][1] - up) < FONT]
            x = (max(beside, default=pixels[arm][0]) if side else min(beside, default=pixels[arm][0])) + (12 if side else -12)
            axes.annotate(
                short(arm),
                pixels[arm],
                (x, up),
                xycoords="figure pixels",
                textcoords="figure pixels",
                ha="left" if side else "right",
                va="center",
                arrowprops={"arrowstyle": "-", "color": COLOUR["muted"], "linewidth": 0.5, "shrinkA": 0, "shrinkB": 5}
                if abs(up - pixels[arm][1]) > 4
                else None,
            )


def arms_table(result: ComparisonResult, epochs: dict[str, int]) -> Section:
    """Quality, difference and cost of every arm."""
    figure = TASKS[result.task].headline
    quality = f"{figure.label}{', %' * figure.percent}"
    rows, cost = [], []
    if result.teacher is not None:
        rows.append(["teacher", "", figure.number(getattr(result.teacher.test, figure.key)), "", "", "", ""])
        cost.append(_costs("teacher", result.teacher, result.teacher))
    for arm in result.arms:
        mean, deviation = arm.headline.mean, arm.headline.deviation
        spread = figure.number(mean) + ("" if deviation is None else f" ± {figure.number(deviation)}")
        length = arm.epochs or epochs.get(arm.arm)
        rows.append([arm.arm, str(length or ""), spread, *_versus(arm.alone, figure)])
        cost.append(_costs(arm.arm, result.of(arm.arm)[0], arm))
    head = ["network", "epochs", quality, "difference to alone", "95 % interval", "p adjusted", "verdict"]
    costs = ["network", "parameters", "multiply-accumulates", "file, bytes", "latency, ms", "95th percentile, ms"]
    n = len(result.seeds)
    text = [f"Test split, {n} seed{'s' * (n > 1)}, mean ± standard deviation. Costs are of the first seed."]
    return Section("arms", "All networks", text, tables=[Table(head, rows), Table(costs, cost)])


def _versus(versus: Versus | None, figure: Shown) -> list[str]:
    if versus is None:
        return [""] * 4
    found = versus.judged
    against = "" if versus.arm == "alone" else f" (to {versus.arm})"
    mean = f"{_signed(found.paired.mean, figure)}{against}"
    return [mean, _interval(versus, figure), "< 0.001" if found.p_adjusted < 0.001 else f"{found.p_adjusted:.3f}", found.verdict]


def _costs(name: str, one: NetworkResult, timed: NetworkResult | ArmResult) -> list[str]:
    times = ["", ""] if timed.latency is None else [f"{timed.latency.median_ms:.3f}", f"{timed.latency.p95_ms:.3f}"]
    return [name, f"{one.parameters:,}", "" if one.macs is None else f"{one.macs:,}", f"{one.file_bytes:,}", *times]
