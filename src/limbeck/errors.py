"""What a user can fix, and one way to say "did you mean": nothing here needs torch."""

import difflib
from collections.abc import Iterable
from os.path import commonprefix
from typing import ClassVar

MODEL_FORMS = "a model is the name of a zoo network, timm:NAME, torchvision:NAME or path/to/file.py:function"


class LimbeckError(Exception):
    """Something the user can fix; the message says what was got, what is allowed and the nearest name."""

    exit_code: ClassVar[int] = 2  # of the command that it ends


class DamagedStore(LimbeckError):
    """A file of a store is damaged or missing; ``limbeck cache build`` makes it again."""


class NoClassifier(LimbeckError):
    """A network without a linear layer that gives its logits."""


def nearest(name: object, allowed: Iterable[str]) -> str:
    """What is allowed, and what was probably meant."""
    names = sorted(allowed)
    near = close_names(str(name), names, most=1)
    listed = f"allowed are {', '.join(names)}" if names else "nothing is allowed here"
    return f"did you mean {near[0]!r}? {listed}" if near else listed


def close_names(name: str, names: Iterable[str], *, most: int = 3) -> list[str]:
    """The names that are most like a name, upper and lower case being the same; the closest first, maybe none.

    Likeness is difflib's ratio, at least 0.5; of two that are equally like, the one that begins alike for longer.
    """
    matcher, found = difflib.SequenceMatcher(b=name.lower()), []
    for other in names:
        matcher.set_seq1(other.lower())
        bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)  # the first two are fast upper bounds
        if all(ratio() >= 0.5 for ratio in bounds):
            begins = len(commonprefix([name.lower(), other.lower()]))  # noqa: RUF071 (no paths)
            found.append((-matcher.ratio(), -begins, other))
    return [other for _, _, other in sorted(found)[:most]]
