"""Check that the tensors of a file fit a network, and report the differences."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from limbeck.core import LimbeckError

FINE_TUNE = (
    "in a recipe, init: fine_tune loads all layers except the classifier; a teacher also needs train:. If a teacher "
    "has further classes, list all its classes under classes:, in the order of its logits"
)
"""The advice for a file with other classes."""

_SHOWN = 3


def check_fit(
    path: Path,
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    content: str = "",
    beside: Sequence[str] = (),
) -> None:
    """Raise LimbeckError with the differences unless the names and shapes of the file's tensors match the network's.

    The message includes ``content``, a description of the file, if names differ, and ``beside``, the names of the
    tensors that are not part of ``state`` because they have another prefix.
    """
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    reshaped = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if not (missing or unexpected or reshaped):
        return
    if not (missing or unexpected):
        classes = _other_classes(reshaped, state, expected)
        if classes:
            raise LimbeckError(
                f"{path} does not fit the network: the checkpoint has {classes[0]} classes, the network {classes[1]} "
                f"(those of the data, or of classes:); all other layers fit: {FINE_TUNE}"
            )
    shapes = [f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}" for name in reshaped]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes, "under other prefixes": beside}
    differences = "; ".join(f"{len(names)} {kind} ({listed(names)})" for kind, names in kinds.items() if names)
    described = f" ({content})" if content and (missing or unexpected) else ""
    raise LimbeckError(f"{path} does not fit the network: {differences}{described}")


def _other_classes(
    reshaped: Collection[str], state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[int, int] | None:
    """Return the two numbers of classes if only the first dimension of the last layer differs."""
    last = list(expected)[-1].rpartition(".")[0]
    if any(name.rpartition(".")[0] != last or state[name].shape[1:] != expected[name].shape[1:] for name in reshaped):
        return None
    counts = {(len(state[name]), len(expected[name])) for name in reshaped}
    return counts.pop() if len(counts) == 1 else None


def listed(names: Sequence[str]) -> str:
    """The first names, as text."""
    return ", ".join([*names[:_SHOWN], *["..."] * (len(names) > _SHOWN)])
