"""Learning curves: the headline on the validation split after each epoch, over the seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from limbeck.report.drawing import COLOUR, Look, drawn, looks, plain_ticks, sign
from limbeck.report.found import Epochs, Found
from limbeck.report.numbers import axis_of, capital, scaled, short, some
from limbeck.report.parts import Figure, Section, Table
from limbeck.tasks import TASKS, Shown

MOST_EPOCHS = 200
"""The most epochs of a curve that are drawn; of more, so many evenly."""

ROWS = 60
"""The most rows of the table behind the figure."""

FIRST = 0.6
"""The part of a curve that may lie outside the picture: otherwise the first epochs hide the differences later."""


@dataclass(frozen=True)
class Curve:
    """The mean, lowest and highest value over the seeds, of the epochs in which the student learned."""

    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def curves(found: Found) -> Section:
    """One panel for each method, with the student alone that it is compared with."""
    result, title = found.result, "Learning curves"
    figure = TASKS[result.task].headline
    known = {arm: curve for arm, seeds in found.epochs.items() if (curve := _curve(seeds, figure)).epochs}
    missing = found.missing.get("curves", [])
    if not known:
        return Section("curves", title, missing=missing or ["there are no figures of the validation split"])
    of, limits, panels = looks(result), _limits(known.values()), []
    against = {arm.arm: arm.alone.arm for arm in result.arms if arm.alone is not None}
    for arm in [arm for arm in known if arm not in against.values()] or list(known):
        lines = {name: known[name] for name in (against.get(arm), arm) if name in known}

        def draw(axes: Axes, lines: Mapping[str, Curve] = lines, arm: str = arm) -> None:
            for name, curve in lines.items():
                _draw(axes, curve, of[name])
            _mark_stages(axes, found.epochs[arm][0].stages)
            axes.set(title=" vs ".join(map(short, reversed([*lines]))), xlabel="epoch", ylim=limits)
            plain_ticks(axes.xaxis, whole=True)
            plain_ticks(axes.yaxis, 4)

        alt = ". ".join(f"{name}: {_said(curve, figure)}" for name, curve in lines.items())
        panels.append(drawn(f"curve-{arm}", alt, (300, 215), draw, margins=(38, 8, 26, 36)))
    caption = (
        f"{capital(axis_of(figure))}, on the validation split after each epoch. The line is the mean over the "
        "seeds, the band reaches from the lowest to the highest seed. At a dotted line a method begins its next stage. "
        "The first epochs may be outside the picture."
    )
    legend = [(name, sign(of[name], line=True)) for name in known]
    plot = Figure("curves", "Validation", caption, panels, _numbers(known, figure), legend, width=260)
    return Section("curves", title, figures=[plot], missing=missing)


def _curve(seeds: Sequence[Epochs], figure: Shown) -> Curve:
    curve = Curve([], [], [], [])
    for place in range(min((len(one.scores) for one in seeds), default=0)):
        values = [scaled(value, figure) for one in seeds if (value := one.scores[place]) is not None]
        if len(values) == len(seeds):
            curve.epochs.append(place + 1)
            curve.mean.append(sum(values) / len(values))
            curve.low.append(min(values))
            curve.high.append(max(values))
    return curve


def _limits(curves: Iterable[Curve]) -> tuple[float, float]:
    """The range of all curves after their first part."""
    later = [(curve, slice(int(len(curve.epochs) * FIRST), None)) for curve in curves]
    low = min(min(curve.low[part]) for curve, part in later)
    high = max(max(curve.high[part]) for curve, part in later)
    room = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    return low - room, high + room


def _draw(axes: Axes, curve: Curve, look: Look) -> None:
    at = list(some(range(len(curve.epochs)), MOST_EPOCHS))
    epochs, mean, low, high = (
        [values[place] for place in at] for values in (curve.epochs, curve.mean, curve.low, curve.high)
    )
    axes.fill_between(epochs, low, high, color=look.colour, alpha=0.2, linewidth=0)
    axes.plot(epochs, mean, color=look.colour, linestyle=look.dash, linewidth=1.8)
    axes.plot(epochs[-1:], mean[-1:], color=look.colour, marker=look.marker, markersize=6)


def _mark_stages(axes: Axes, stages: Sequence[str]) -> None:
    for place in range(1, len(stages)):
        if stages[place] != stages[place - 1]:
            axes.axvline(place + 0.5, color=COLOUR["muted"], linewidth=1, linestyle=":")


def _said(curve: Curve, figure: Shown) -> str:
    return (
        f"{axis_of(figure)} from {curve.mean[0]:.4g} after epoch {curve.epochs[0]} to {curve.mean[-1]:.4g} after epoch "
        f"{curve.epochs[-1]}, there from {curve.low[-1]:.4g} to {curve.high[-1]:.4g} over the seeds"
    )


def _numbers(known: Mapping[str, Curve], figure: Shown) -> Table:
    """The means by epoch."""
    values = {arm: dict(zip(curve.epochs, curve.mean, strict=True)) for arm, curve in known.items()}
    epochs = sorted({epoch for of_arm in values.values() for epoch in of_arm})
    rows = [
        [str(epoch), *(f"{of_arm[epoch]:.4g}" if epoch in of_arm else "" for of_arm in values.values())]
        for epoch in some(epochs, ROWS)
    ]
    return Table(["epoch", *known], rows)
