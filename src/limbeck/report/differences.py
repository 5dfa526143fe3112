"""Every seed's difference to the student alone of as many epochs."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from limbeck.comparison.results import ArmResult, ComparisonResult, Versus
from limbeck.report.drawing import COLOUR, Look, drawn, looks, plain_ticks
from limbeck.report.numbers import NONE, between, interval, scaled, short, signed, some
from limbeck.report.parts import Figure, Section, Table
from limbeck.report.verdict import evidence, judged, said
from limbeck.tasks import TASKS, Shown

ROW = 46
"""The height of a method in pixels."""

MOST_SEEDS = 50
"""The most seeds of a method that are shown; of more, so many evenly."""

LINE, HALF = -0.06, 0.22
"""The height of a method's line above its place, and half the height of its dots and marks, in rows."""

CAPTION = (
    "Each dot is one seed: the method minus the student alone of as many epochs, which is named after “vs”, with the "
    "same initial weights and batches. The diamond is the mean, the bar its 95 % interval (Student's t). On the right "
    "of 0 the method is better."
)


def differences(result: ComparisonResult) -> Section:
    """The differences of all methods, the greatest mean first."""
    title = "Difference to the student alone"
    found, figure = judged(result), TASKS[result.task].headline
    if not found:
        return Section("differences", title, missing=["there is no student alone to compare with"])

    def draw(axes: Axes) -> None:
        of = looks(result)
        for place, (arm, versus) in enumerate(found):
            _row(axes, len(found) - 1 - place, arm.arm, versus, of[arm.arm], figure)
        values = [scaled(value, figure) for _, versus in found for value in _extent(versus)] + [0.0]
        room = (max(values) - min(values)) * 0.06 or 1.0
        axes.set(xlim=(min(values) - room, max(values) + room), ylim=(-0.55, len(found) - 0.25), yticks=[])
        unit = f"{figure.label}{', points' * figure.percent}"
        axes.set_xlabel(f"← worse\u2003\u2003{unit}\u2003\u2003better →")
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False)
        plain_ticks(axes.xaxis, 7)
        for middle in (place + LINE for place in range(len(found))):  # not above it, where the text is
            for at, colour, width in ((axes.get_xticks(), "line", 0.6), ([0], "muted", 1)):
                axes.vlines(at, middle - HALF, middle + HALF, color=COLOUR[colour], linewidth=width, zorder=0)

    alt = "; ".join(said(arm, versus, figure) for arm, versus in found)
    panel = drawn("differences", alt, (400, ROW * len(found) + 48), draw, margins=(10, 10, 4, 40))
    seeds = list(some(sorted({one.seed for arm, _ in found for one in result.of(arm.arm)}), MOST_SEEDS))
    head = ["method", "compared with", *(f"seed {seed}" for seed in seeds), "mean", "95 % interval", "over samples too"]
    numbers = Table(head, [_numbers(result, arm, versus, seeds, figure) for arm, versus in found])
    plot = Figure("differences", "Every seed", CAPTION, [panel], numbers)
    return Section("differences", title, figures=[plot], after=evidence(result))


def _row(axes: Axes, place: int, name: str, versus: Versus, look: Look, figure: Shown) -> None:
    found, y = versus.judged.paired, place + LINE
    mark = {"helps": "▲ helps", "hurts": "▼ hurts"}.get(versus.judged.verdict, "no evidence")
    axes.axhline(y, color=COLOUR["line"], linewidth=0.6)
    dots = [scaled(versus.differences[at], figure) for at in some(range(len(versus.differences)), MOST_SEEDS)]
    heights = [y + HALF / 2 * (1 - at % 3) for at in range(len(dots))]  # so that equal seeds are seen
    axes.plot(dots, heights, "o", color=look.colour, markersize=5, alpha=0.55, markeredgewidth=0)
    if found.interval is not None:
        ends = [scaled(found.interval.low, figure), scaled(found.interval.high, figure)]
        axes.plot(ends, [y, y], color=look.colour, linewidth=2.5, solid_capstyle="butt")
    middle = [scaled(found.mean, figure)]
    axes.plot(middle, [y], "D", color=look.colour, markersize=8, markeredgecolor=COLOUR["paper"])
    across = axes.get_yaxis_transform()
    label = axes.text(0, place + 0.4, short(name), weight="bold", va="center", transform=across)
    axes.annotate(
        f"vs {versus.arm}",
        (1, 0),
        (6, 0),
        xycoords=label,
        textcoords="offset pixels",
        va="bottom",
        color=COLOUR["muted"],
    )
    text = f"{signed(found.mean, figure)}\u2003{mark}"
    weight = "normal" if versus.judged.verdict == "no evidence" else "bold"
    axes.text(1, place + 0.4, text, ha="right", va="center", weight=weight, transform=across)


def _extent(versus: Versus) -> list[float]:
    found = versus.judged.paired.interval
    return [*versus.differences, *((found.low, found.high) if found else ())]


def _numbers(
    result: ComparisonResult, arm: ArmResult, versus: Versus, seeds: Sequence[int], figure: Shown
) -> list[str]:
    both = sorted({one.seed for one in result.of(arm.arm)} & {one.seed for one in result.of(versus.arm)})
    values = dict(zip(both, versus.differences, strict=True))
    of_seeds = [signed(values[seed], figure) if seed in values else NONE for seed in seeds]
    ends = [interval(versus, figure), between(versus.samples_interval, figure)]
    return [arm.arm, versus.arm, *of_seeds, signed(versus.judged.paired.mean, figure), *ends]
