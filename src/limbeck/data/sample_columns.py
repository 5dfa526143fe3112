"""Which columns of samples with names hold the input and the target."""

from collections.abc import Iterable
from itertools import islice

from limbeck.core import LimbeckError
from limbeck.errors import nearest

INPUTS = ("image", "img", "pixel_values", "inputs", "features")
"""The columns of inputs that are found by their names."""

TARGETS = ("label", "labels", "target")
"""Likewise of targets. Names such as fine_label are not: a data set that has one usually has another."""

_LISTED = 100  # columns that an error lists


def column(names: Iterable[str], given: str | None, known: tuple[str, ...], option: str) -> str:
    """The column that is given; otherwise the only one whose name is known.

    Args:
        names: of all columns.
        given: the name that the user gave.
        known: `INPUTS` or `TARGETS`.
        option: the option that names the column, for the message.

    Raises:
        LimbeckError: there is no such column, or more than one.
    """
    listed = [str(name) for name in islice(names, _LISTED)]
    found = [name for name in listed if name == given or (given is None and name in known)]
    if len(found) == 1:
        return found[0]
    if given is not None:
        raise LimbeckError(f"there is no column {given!r}: {nearest(given, listed)}")
    got = " and ".join(found) if found else f"none of {', '.join(known)}"
    raise LimbeckError(f"the columns {', '.join(listed)} contain {got}; allowed is one of them: name it with {option}")
