"""The guard rails: what is checked before training, and notes on what was found."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from limbeck.core import LimbeckError

RAILS: Mapping[str, str] = {
    "overlap": "no image of the test split is in another split",
    "classes": "every split has samples of every class",
    "range": "the inputs have the range that the networks are described with",
    "shared": "no two networks share parts",
    "not_finite": "the outputs of the teacher are finite",
    "probabilities": "the teacher returns logits",
    "random": "the teacher returns the same outputs in each run",
    "input": "no other common form of inputs suits the teacher far better",
    "permuted": "the classes of the teacher are in the order of the data",
    "chance": "the teacher is more accurate than chance",
    "buffers": "running a frozen network leaves its buffers unchanged",
    "terms": "every term can train something",
    "gradients": "no term has a far larger gradient than the labels",
    "constant": "every tensor that is read differs between samples",
}
"""Each guard rail with what holds if it finds nothing. Those that refuse are `limbeck.recipe.blocks.Refusal`."""


class Note(NamedTuple):
    """What a user should know before the training."""

    said: str
    rail: str = ""  # the guard rail that it is of; "" for none
    refusal: str = ""  # of a refusal that is allowed: the message without ``allow``


def refuse(rail: str, what: str, advice: str, allow: Collection[str]) -> Note:
    """Refuse what a guard rail found, or return a note if its name is allowed.

    Raises:
        LimbeckError: the name is not allowed; the message says how to allow it.
    """
    way = f"--allow {rail}, in a recipe allow: [{rail}], in Python allow=({rail!r},)"
    message = f"{what}. {advice}; or turn this check off: {way}"
    if rail not in allow:
        raise LimbeckError(message)
    return Note(f"{what}, as allowed", rail, message)
