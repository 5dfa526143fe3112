"""Learning curves: the headline on the validation split after each epoch, over the seeds."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from limbeck.report.drawing import COLOUR, Look, drawn, looks, sign
from limbeck.report.found import Epochs, Found
from limbeck.report.parts import Figure, Section, Table, short, some
from limbeck.tasks import TASKS, Shown

MOST_EPOCHS = 200
"""The most epochs of a curve that are drawn; of more, so many evenly."""

ROWS = 60
"""The most rows of the table behind a figure."""

Curve = tuple[list[int], list[float], list[float], list[float]]
"""The numbers of the epochs, with the mean, lowest and highest value over the seeds."""


def curves(found: Found) -> Section:
    """One panel for each method, with the student alone for comparison."""
    result, title = found.result, "Learning curves"
    figure = TASKS[result.task].headline
    known = {arm: curve for arm, seeds in found.epochs.items() if (curve := _curve(seeds, figure))[0]}
    missing = found.missing.get("curves", [])
    if not known:
        return Section("curves", title, missing=missing or ["the data has no validation split"])
    of, base = looks(arm.arm for arm in result.arms), _base(known)
    shown = [arm for arm in known if arm != base] or list(known)
    limits = _limits(list(known.values()))
    panels = []
    for arm in shown:
        lines = {base: known[base], arm: known[arm]} if base else {arm: known[arm]}

        def draw(axes: Axes, lines: Mapping[str, Curve] = lines, arm: str = arm) -> None:
            _draw(axes, lines, of, limits)
            _stages(axes, found.epochs[arm][0].stages)
            axes.set_title(short(arm))

        alt = ". ".join(f"{name}: {_said(curve, figure)}" for name, curve in lines.items())
        panels.append(drawn(f"curve-{arm}", alt, (260, 190), draw, margins=(36, 8, 24, 30)))
    caption = (
        f"{figure.label[0].upper()}{figure.label[1:]}{', %' * figure.percent} on the validation split after each epoch: "
        "the line is the mean over the seeds, the band from the lowest to the highest seed. A dotted line is where the "
        "next stage of a method begins. The first epochs may be below the picture."
    )
    legend = [(name, sign(of[name], line=True)) for name in ([base] if base else []) + shown]
    plot = Figure("curves", "Validation", caption, panels, _numbers(known, figure), legend, width=260)
    return Section("curves", title, figures=[plot], missing=missing)


def _base(known: Mapping[str, Curve]) -> str | None:
    return "alone" if "alone" in known else None


def _curve(seeds: Sequence[Epochs], figure: Shown) -> Curve:
    """The epochs in which the student of every seed learned."""
    scale = 100 if figure.percent else 1
    lengths = [len(one.scores) for one in seeds]
    numbers, means, lows, highs = [], [], [], []
    for epoch in range(min(lengths, default=0)):
        values = [value * scale for one in seeds if (value := one.scores[epoch]) is not None]
        if len(values) == len(seeds):
            numbers.append(epoch + 1)
            means.append(sum(values) / len(values))
            lows.append(min(values))
            highs.append(max(values))
    return numbers, means, lows, highs


def _limits(known: Sequence[Curve]) -> tuple[float, float]:
    """The range of the last half of the curves: the first epochs may be far below."""
    low = min(min(lows[len(lows) // 3 :]) for _, _, lows, _ in known)
    high = max(max(highs[len(highs) // 3 :]) for _, _, _, highs in known)
    room = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    return low - room, high + room


def _draw(axes: Axes, lines: Mapping[str, Curve], of: Mapping[str, Look], limits: tuple[float, float]) -> None:
    for name, (numbers, means, lows, highs) in lines.items():
        at = list(some(range(len(numbers)), MOST_EPOCHS))
        epochs, mean, low, high = ([values[place] for place in at] for values in (numbers, means, lows, highs))
        look = of[name]
        axes.fill_between(epochs, low, high, color=look.colour, alpha=0.2, linewidth=0)
        axes.plot(epochs, mean, color=look.colour, linestyle=look.dash, linewidth=1.8)
        axes.plot(epochs[-1:], mean[-1:], color=look.colour, marker=look.marker, markersize=6)
    axes.set_ylim(*limits)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    axes.yaxis.get_major_locator().set_params(nbins=4)


def _stages(axes: Axes, stages: Sequence[str]) -> None:
    for place in range(1, len(stages)):
        if stages[place] != stages[place - 1]:
            axes.axvline(place + 0.5, color=COLOUR["muted"], linewidth=1, linestyle=":")


def _said(curve: Curve, figure: Shown) -> str:
    numbers, means, lows, highs = curve
    unit = " %" * figure.percent
    return (
        f"{figure.label} from {means[0]:.4g}{unit} after epoch {numbers[0]} to {means[-1]:.4g}{unit} after epoch "
        f"{numbers[-1]}, there from {lows[-1]:.4g} to {highs[-1]:.4g} over the seeds"
    )


def _numbers(known: Mapping[str, Curve], figure: Shown) -> Table:
    """The means by epoch."""
    values = {arm: dict(zip(curve[0], curve[1], strict=True)) for arm, curve in known.items()}
    epochs = sorted({epoch for of_arm in values.values() for epoch in of_arm})
    rows = [
        [str(epoch), *(f"{of_arm[epoch]:.4g}" if epoch in of_arm else "" for of_arm in values.values())]
        for epoch in some(epochs, ROWS)
    ]
    return Table(["epoch", *(f"{arm}{', %' * figure.percent}" for arm in known)], rows)


