"""A figure of the page as an SVG file of its own, for a paper or another page."""

import re
from pathlib import Path

from limbeck.errors import LimbeckError, nearest
from limbeck.files.atomic import write
from limbeck.report.colours import DARK, LIGHT
from limbeck.report.costs import costs
from limbeck.report.differences import differences
from limbeck.report.found import Found, read
from limbeck.report.numbers import printable

TEXT = "font-family: system-ui, sans-serif; paint-order: stroke; stroke-width: 3px; stroke-linejoin: round"


def write_figure(folder: Path, name: str, out: Path) -> None:
    """Write a figure of a run or comparison, which is `differences`, `cost-latency`, `cost-parameters` or `cost-size`.

    Raises:
        LimbeckError: the folder has no finished run or comparison, or no such figure.
    """
    write(out, figure_svg(read(folder), name))


def figure_svg(found: Found, name: str) -> str:
    """The figure, see `standalone`.

    Raises:
        LimbeckError: there is no such figure.
    """
    sections = differences(found.result), costs(found.result, found.exports)
    figures = {one.name: one for section in sections for one in section.figures}
    if name not in figures:
        raise LimbeckError(f"{found.result.name} has no figure {name!r}: {nearest(name, figures)}")
    return standalone(figures[name].panels[0])


def standalone(panel: str) -> str:
    """A panel with its own background. Viewers that support it show dark colours if the screen is dark."""
    head, _, body = printable(panel).partition(">")
    size = "width='{2}' height='{3}'".format(*re.findall(r"\d+", head))
    body = re.sub(r"var\(--(\w+)\)", lambda found: LIGHT[found[1]], body)
    dark = [
        f"[style*='{key}: {LIGHT[colour]}'] {{ {key}: {DARK[colour]} !important }}"
        for colour in LIGHT
        for key in ("fill", "stroke")
    ]
    style = f"text {{ {TEXT}; stroke: {LIGHT['paper']} }} @media (prefers-color-scheme: dark) {{ {' '.join(dark)} "
    style += f"text {{ stroke: {DARK['paper']} }} }}"
    paper = f"<rect width='100%' height='100%' style='fill: {LIGHT['paper']}'/>"
    return f"{head} xmlns='http://www.w3.org/2000/svg' {size}><style>{style}</style>{paper}{body}\n"
