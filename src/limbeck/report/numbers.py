"""How the page writes names and numbers."""

import re
from collections.abc import Iterator, Sequence

from limbeck.comparison.results import Versus
from limbeck.comparison.statistics import Interval
from limbeck.experiment.results import Spread
from limbeck.tasks import Shown

NONE = "\N{EN DASH}"
"""Stands for a number that does not exist."""

MINUS = "\N{MINUS SIGN}"

SHORT = 18
"""The most characters of a name in a figure."""


_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What HTML does not allow: most control characters, and halves of surrogate pairs."""


def printable(text: str) -> str:
    """The text with escapes for what HTML does not allow."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def short(name: str) -> str:
    """A name that fits into a figure; names that differ at the end still do."""
    name = printable(" ".join(name.split()))
    return name if len(name) <= SHORT else f"{name[: SHORT - 7]}…{name[-6:]}"


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def counted(count: int, what: str) -> str:
    """``1 seed``, ``6 seeds``."""
    return f"{count} {what}{'s' * (count != 1)}"


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def axis_of(figure: Shown) -> str:
    """The name of a figure with its unit, such as ``accuracy, %``."""
    return f"{figure.label}{', %' * figure.percent}"


def scaled(value: float, figure: Shown) -> float:
    """The value in the unit of `axis_of`."""
    return 100 * value if figure.percent else value


def amount(value: float, figure: Shown) -> str:
    """The size of a difference with its unit, such as ``0.50 points of accuracy``."""
    return f"{figure.number(abs(value))}{' points' * figure.percent} of {figure.label}"


def signed(value: float, figure: Shown) -> str:
    """A difference with its sign."""
    return (MINUS if value < 0 else "+") + figure.number(abs(value))


def over_seeds(found: Spread, figure: Shown) -> str:
    """The mean and the standard deviation over the seeds, without ``%``."""
    mean = figure.number(found.mean)
    return mean if found.deviation is None else f"{mean} ± {figure.number(found.deviation)}"


def interval(versus: Versus, figure: Shown) -> str:
    """The 95 % interval of a mean difference."""
    return between(versus.judged.paired.interval, figure)


def between(found: Interval | None, figure: Shown) -> str:
    """An interval of a difference."""
    return NONE if found is None else f"{signed(found.low, figure)} to {signed(found.high, figure)}"


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as a percentage, without ``%``."""
    return decimal(None if value is None else 100 * value, digits)


def decimal(value: float | None, digits: int) -> str:
    """A number with so many digits after the point."""
    return NONE if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def some(places: Sequence[int], most: int) -> Iterator[int]:
    """At most so many of the places, evenly, with the first and the last."""
    count = len(places)
    yield from places if count <= most else (places[round(at * (count - 1) / (most - 1))] for at in range(most))
