"""What a page consists of. Texts are plain: the template escapes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

SHORT = 18
"""The most characters of a name in a figure."""


@dataclass(frozen=True)
class Table:
    """Numbers as they are shown; the first column names the row."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """One picture, of one or more panels that stand beside each other if there is room."""

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
    tables: Sequence[Table] = ()
    after: Sequence[str] = ()  # text below the figures
    missing: Sequence[str] = ()  # sentences on what is not shown, and why


def short(name: str) -> str:
    """A name that fits into a figure."""
    return name if len(name) <= SHORT else f"{name[: SHORT - 1]}…"


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def some(places: Sequence[int], most: int) -> Iterator[int]:
    """At most so many of the places, evenly, with the first and the last."""
    count = len(places)
    yield from places if count <= most else (places[round(at * (count - 1) / (most - 1))] for at in range(most))
