"""Whether a file's tensors are a network's, and what to say if not."""

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from limbeck.core import LimbeckError

FINE_TUNE = "in a recipe init: fine_tune starts from all but the classifier, for a teacher together with train:"
"""The way out where a file is of other classes."""

_SHOWN = 3


def check_fit(path: Path, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], held: str = "") -> None:
    """Raise LimbeckError, saying what differs, unless the file's tensors have the names and shapes of the network's.

    Args:
        path: the file.
        state: its tensors.
        wanted: the network's.
        held: what the file holds in all, to be said where names differ.
    """
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    reshaped = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    if not (missing or unexpected or reshaped):
        return
    if not (missing or unexpected):
        classes = _other_classes(reshaped, state, wanted)
        if classes:
            raise LimbeckError(
                f"{path} does not fit the network: the checkpoint has {classes[0]} classes, the data {classes[1]}; "
                f"all other layers agree: {FINE_TUNE}"
            )
    shapes = [f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}" for name in reshaped]
    found = [
        _listed(missing, "missing"),
        _listed(unexpected, "unexpected"),
        _listed(shapes, "of another shape"),
    ]
    differs = "; ".join(text for text in found if text)
    said = f" ({held})" if held and (missing or unexpected) else ""
    raise LimbeckError(f"{path} does not fit the network: {differs}{said}")


def _other_classes(
    reshaped: Collection[str], state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[int, int] | None:
    """The two class counts, where only the first size of the last layer differs."""
    last = list(wanted)[-1].rpartition(".")[0]
    if any(name.rpartition(".")[0] != last or state[name].shape[1:] != wanted[name].shape[1:] for name in reshaped):
        return None
    counts = {(len(state[name]), len(wanted[name])) for name in reshaped}
    return counts.pop() if len(counts) == 1 else None


def _listed(entries: list[str], what: str) -> str:
    more = ", ..." if len(entries) > _SHOWN else ""
    return f"{len(entries)} {what} ({', '.join(entries[:_SHOWN])}{more})" if entries else ""
