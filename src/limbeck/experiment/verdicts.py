"""The names of the checks before training, and notes on what they find."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from limbeck.core import LimbeckError

CHECKS: Mapping[str, str] = {
    "overlap": "no image of the test split is in another split",
    "classes": "every split has samples of every class",
    "range": "the inputs have the range that the networks are described with",
    "shared": "no two networks share layers",
    "not_finite": "the outputs of the teacher are finite",
    "probabilities": "the teacher returns logits",
    "random": "the teacher returns the same outputs in each run",
    "input": "no other common form of inputs makes the teacher far more accurate",
    "permuted": "the classes of the teacher are in the order of the data",
    "chance": "the accuracy of the teacher is higher than chance",
    "buffers": "running a frozen network leaves its buffers unchanged",
    "terms": "every term can train something",
    "gradients": "no term has a far larger gradient than the labels",
    "constant": "every tensor that is read differs between samples",
}
"""Each check with what is true if it finds nothing. Those that refuse a run are `limbeck.recipe.blocks.Refusal`."""

OF_TEACHER = ("not_finite", "probabilities", "random", "input", "permuted", "chance")
"""The checks of a trained teacher, in their order."""


class Note(NamedTuple):
    """What a check found."""

    said: str
    check: str = ""  # a key of `CHECKS`; empty for notes of other parts
    refusal: str = ""  # the message that an allowed refusal would have
    skipped: bool = False  # the check does not apply; only `limbeck plan` shows this


def skipped(reason: str, *checks: str) -> list[Note]:
    """A note for each check that does not apply."""
    return [Note(reason, check, skipped=True) for check in checks]


def refuse_unless_allowed(check: str, what: str, advice: str, allow: Collection[str]) -> Note:
    """Refuse what a check found, or return a note if ``allow`` contains the check.

    Raises:
        LimbeckError: the check is not allowed to fail; the message says how to turn it off.
    """
    way = f"--allow {check}, in a recipe allow: [{check}], in Python allow=({check!r},)"
    message = f"{what}. {advice}; or turn this check off: {way}"
    if check not in allow:
        raise LimbeckError(message)
    return Note(f"{what}, as allowed", check, message)
