"""The change of the accuracy of each class."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from limbeck.comparison.learned import Learned
from limbeck.report.drawing import COLOUR, drawn
from limbeck.report.numbers import NONE, decimal, percent, short
from limbeck.report.parts import Figure, Section, Table

MOST_CLASSES = 20
"""The most classes in the figure."""

ROWS = 1000
"""The most rows of the table behind the figure."""

MOST_NETWORKS, OF_PANEL = 15, 5
"""The most networks in the figure, and in one of its panels."""

DARKEST = 0.55
"""The opacity of the greatest change: the numbers on it remain legible."""


def classes(learned: Learned) -> Section:
    """A table of classes and networks, coloured by the change."""
    title = "Change by class"
    changes = {
        one.arm: np.array([np.nan if change is None else 100 * change for change in one.class_change])
        for one in learned.networks
        if one.class_change is not None
    }
    if not changes:
        return Section("classes", title, missing=["there is no student alone to compare with"])
    columns = list(changes)[:MOST_NETWORKS]
    every = np.nan_to_num(np.abs(np.stack(list(changes.values()))).T)  # (classes, networks)
    greatest = np.argsort(-every.max(axis=1), kind="stable")[:MOST_CLASSES]
    shown = sorted(greatest.tolist())
    drawn_changes = np.stack([changes[arm][shown] for arm in columns], axis=1)
    caption = "Test accuracy of each class minus that of the student alone, in points, of the first seed."
    if len(shown) < len(learned.classes):
        caption += f" Shown are the {len(shown)} classes with the greatest changes."
    if len(columns) < len(changes):
        caption += f" Shown are the first {len(columns)} networks."
    alone = next(one for one in learned.networks if one.arm == "alone")
    rows = [
        [name, percent(alone.class_accuracy[at]), *(_signed(changes[arm][at]) for arm in changes)]
        for at, name in list(enumerate(learned.classes))[:ROWS]
    ]
    numbers = Table(["class", "alone, %", *(f"{arm}, points" for arm in changes)], rows)
    names = [learned.classes[at] for at in shown]
    most = max(float(np.nanmax(np.abs(drawn_changes), initial=0.0)), 1e-9)
    top = 16 + 6 * max(len(short(arm)) for arm in columns)
    panels = [
        _panel(drawn_changes[:, part], names, [columns[at] for at in part], most, top)
        for part in np.array_split(np.arange(len(columns)), -(-len(columns) // OF_PANEL))
    ]
    figure = Figure("classes", "Points won and lost", caption, panels, numbers, width=300)
    return Section("classes", title, figures=[figure])


def _panel(changes: NDArray[np.float64], names: Sequence[str], columns: Sequence[str], most: float, top: int) -> Markup:
    def draw(axes: Axes) -> None:
        for (row, column), change in np.ndenumerate(changes):
            if not np.isnan(change):
                colour = COLOUR["good"] if change > 0 else COLOUR["bad"]
                place = (column - 0.47, row - 0.46)
                alpha = DARKEST * abs(float(change)) / most
                axes.add_patch(Rectangle(place, 0.94, 0.92, facecolor=colour, alpha=alpha, linewidth=0))
            axes.text(column, row, _signed(float(change)), ha="center", va="center")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(names) - 0.4, -0.6))
        axes.xaxis.tick_top()
        heads = [short(arm) for arm in columns]
        axes.set_xticks(range(len(columns)), heads, rotation=60, ha="left", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), [short(name) for name in names])
        axes.tick_params(length=0)

    ends = [
        (float(change), f"{_signed(float(change))} points for class {names[row]} with {columns[column]}")
        for (row, column), change in np.ndenumerate(changes)
        if not np.isnan(change)
    ]
    alt = f"from {min(ends)[1]} to {max(ends)[1]}" if ends else "no class has test samples"
    left = 16 + 7 * max(len(short(name)) for name in names)
    right = 8 + 3 * len(short(columns[-1]))
    size, margins = (400, top + 24 * len(names) + 8), (left, right, top, 8)
    return drawn(f"classes-{columns[0]}", alt, size, draw, margins=margins)


def _signed(change: float) -> str:
    return NONE if np.isnan(change) else ("+" if change > 0 else "") + decimal(change, 1)
