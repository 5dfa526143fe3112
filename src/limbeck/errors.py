"""What a user can fix, and one way to say "did you mean": nothing here needs torch."""

import difflib
from collections.abc import Iterable
from os.path import commonprefix
from typing import ClassVar


class LimbeckError(Exception):
    """Something the user can fix; the message says what was got, what is allowed and the nearest name."""

    exit_code: ClassVar[int] = 2  # of the command that it ends


class NoClassifier(LimbeckError):
    """A network without a linear layer that gives its logits."""


def nearest(name: object, allowed: Iterable[str]) -> str:
    """What is allowed, and what was probably meant."""
    names = sorted(allowed)
    likeness = {other: _likeness(str(name).lower(), other.lower()) for other in names}
    near = max(names, key=lambda other: likeness[other], default=None)
    listed = f"allowed are {', '.join(names)}" if names else "nothing is allowed here"
    return f"did you mean {near!r}? {listed}" if near and likeness[near][0] >= 0.5 else listed


def _likeness(name: str, other: str) -> tuple[float, int]:
    """How alike two names are, in [0, 1], and among equals how long they begin alike."""
    return difflib.SequenceMatcher(None, other, name).ratio(), len(commonprefix([name, other]))  # noqa: RUF071 (no paths)
