"""What a page consists of. Texts are plain: the template escapes them."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """Numbers as they are shown; the first column names the row."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A picture of one or more panels, which stand beside each other if there is room."""

    name: str
    title: str
    caption: str  # how to read it
    panels: Sequence[Markup]  # SVG, each with its text alternative
    numbers: Table  # behind the picture
    legend: Sequence[tuple[str, Markup]] = ()  # names and their signs
    width: int = 400  # of a panel, in pixels


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    name: str
    title: str
    text: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    after: Sequence[str] = ()  # text below the figures
    tables: Sequence[Table] = ()
    missing: Sequence[str] = ()  # what is not shown, and why
