"""Draw SVG with matplotlib that takes its colours and its font from the page, and is the same every time."""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from limbeck.comparison.results import ComparisonResult
from limbeck.report.colours import LIGHT, SERIES
from limbeck.report.numbers import MINUS

COLOUR = {name: f"#f0f0{place:02x}" for place, name in enumerate(LIGHT)}
"""By name, what stands for a colour until the SVG is written."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")

FONT = 12
"""Pixels, at the width that a panel is drawn for."""

POINTS = 72
"""Matplotlib's points an inch; one point is one pixel of the SVG."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "text.parse_math": False,  # a name may contain dollar signs
    "font.size": FONT,
    "text.color": COLOUR["ink"],
    "axes.edgecolor": COLOUR["line"],
    "axes.labelcolor": COLOUR["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": FONT,
    "axes.titleweight": "bold",
    "axes.titlepad": 7,
    "grid.color": COLOUR["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOUR["line"],
    "ytick.color": COLOUR["line"],
    "xtick.labelcolor": COLOUR["muted"],
    "ytick.labelcolor": COLOUR["muted"],
    "axes.formatter.useoffset": False,
}


@dataclass(frozen=True)
class Look:
    """How an arm is drawn in all figures: no two of the first seven methods share colour or marker."""

    colour: str  # a placeholder of `COLOUR`
    marker: str
    dash: str = "-"


def looks(result: ComparisonResult) -> dict[str, Look]:
    """The look of the teacher and of the arms: students alone are grey."""
    alone = [arm.arm for arm in result.arms if arm.alone is None and arm.arm.partition("@")[0] == "alone"]
    found = {arm: Look(COLOUR["muted"], MARKERS[at % len(MARKERS)], DASHES[at > 0]) for at, arm in enumerate(alone)}
    found |= {arm: series(at) for at, arm in enumerate(arm.arm for arm in result.arms if arm.arm not in found)}
    return found | {"teacher": Look(COLOUR["ink"], "*")}


def series(place: int) -> Look:
    """The look of one of several methods or classes."""
    turn, at = divmod(place, len(SERIES))
    return Look(COLOUR[SERIES[at]], MARKERS[(at + turn) % len(MARKERS)], DASHES[turn % len(DASHES)])


def drawn(
    key: str,
    alt: str,
    size: tuple[int, int],
    draw: Callable[[Axes], None],
    *,
    margins: tuple[int, int, int, int] = (44, 12, 26, 38),
) -> Markup:
    """A panel as SVG.

    Args:
        key: differs between all panels of a page.
        alt: the text alternative.
        size: width and height in pixels.
        draw: draws on the axes.
        margins: left, right, top and bottom of the axes in pixels.
    """
    (width, height), (left, right, top, bottom) = size, margins
    text = StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on glyphs that matplotlib's own font lacks
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": key})
        figure = Figure(figsize=(width / POINTS, height / POINTS), dpi=POINTS)
        box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
        draw(figure.add_axes(box))
        figure.savefig(text, format="svg", transparent=True)
    return _inline(text.getvalue(), alt, size)


def plain_ticks(axis: Axis, most: int = 5, *, whole: bool = False) -> None:
    """At most so many ticks, at whole numbers if asked for, with numbers such as 0.5, 20 and 75k."""

    def said(value: float, _: int) -> str:
        for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if abs(value) >= size:
                return f"{value / size:.4g}{unit}"
        return f"{value:.4g}".replace("-", MINUS)

    if axis.get_scale() == "log":
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(most, integer=whole))
    axis.set_major_formatter(FuncFormatter(said))


def sign(look: Look, *, line: bool = False) -> Markup:
    """A small picture of a look, for a legend."""

    def draw(axes: Axes) -> None:
        axes.axis("off")
        style = look.dash if line else "none"
        axes.plot([-1, 0, 1], [0, 0, 0], color=look.colour, linestyle=style, linewidth=2)
        axes.plot([0], [0], color=look.colour, marker=look.marker, markersize=8)

    return drawn(f"sign{look}{line}", "", (30, 16), draw, margins=(2, 2, 1, 1))


def apart(values: Sequence[float], least: float) -> list[float]:
    """Move values so that no two are closer than ``least``; those that overlap are centred on their mean."""
    groups: list[list[int]] = []
    centres: list[float] = []
    for place in sorted(range(len(values)), key=lambda place: values[place]):
        groups.append([place])
        centres.append(values[place])
        while len(groups) > 1 and _low(groups[-1], centres[-1], least) - _high(groups[-2], centres[-2], least) < least:
            last = groups.pop()
            groups[-1] += last
            centres[-2:] = [sum(values[one] for one in groups[-1]) / len(groups[-1])]
    moved = [0.0] * len(values)
    for group, centre in zip(groups, centres, strict=True):
        for at, place in enumerate(group):
            moved[place] = _low(group, centre, least) + at * least
    return moved


def _low(group: Sequence[int], centre: float, least: float) -> float:
    return centre - (len(group) - 1) * least / 2


def _high(group: Sequence[int], centre: float, least: float) -> float:
    return centre + (len(group) - 1) * least / 2


def _inline(text: str, alt: str, size: tuple[int, int]) -> Markup:
    """The SVG element for a page: no names of groups, rounded coordinates, colours as variables."""
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.S)
    text = text[text.index("<g ") : text.rindex("</svg>")]
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", text)
    text = re.sub(r'(?<= style=")[^"]*', _restyled, text)
    text = re.sub(r'(?<= d=")[^"]*|(?<= [xy]=")[^"]*', lambda found: _rounded(found[0]), text)
    text = re.sub(r">\s+<", "><", text)
    what = f'role="img" aria-label="{escape(alt)}"' if alt else 'aria-hidden="true"'
    return Markup('<svg viewBox="0 0 {} {}" {}>{}</svg>').format(*size, Markup(what), Markup(text))


def _restyled(found: re.Match[str]) -> str:
    return variables(re.sub(r"font-family: [^;]*(; )?", "", found[0]))


def variables(style: str) -> str:
    """A style with CSS variables for the colours of `COLOUR`."""
    return re.sub("#f0f0(..)", lambda place: f"var(--{[*LIGHT][int(place[1], 16)]})", style)


def _rounded(numbers: str) -> str:
    short = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), numbers)
    return " ".join(short.split())
