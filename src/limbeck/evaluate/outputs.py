"""What the metrics of every task need of a network's outputs: a check, and chunks of bounded size."""

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.core import LimbeckError

_CHUNK = 2**22  # numbers in a chunk, 32 MiB in 64 bits


def chunk(outputs: Tensor) -> int:
    """Return how many samples of outputs (N, ...) to process at once, at least 1, to bound the memory of a metric."""
    return max(1, _CHUNK * len(outputs) // outputs.numel())


def check_outputs(
    outputs: Tensor,
    expected: Sequence[int],
    teacher: Tensor | None = None,
    *,
    name: str = "network",
    split: str = "",
    files: Sequence[str] | None = None,
) -> None:
    """Raise LimbeckError unless the outputs, and those of a teacher, have the expected shape and are finite.

    Args:
        outputs: (N, ...).
        expected: the shape that fits the targets. N must be at least 1.
        teacher: (N, ...), of the same samples in the same order.
        name: the name of the network in errors.
        split: the name of the split in errors, such as ``test``.
        files: the names of the samples, for errors.
    """
    for who, values in ((name, outputs), ("teacher", teacher)):
        if values is None:
            continue
        if tuple(values.shape) != tuple(expected) or not values.numel():
            raise LimbeckError(
                f"the {who} returns outputs {tuple(values.shape)}: allowed for these targets are {tuple(expected)}, "
                "with at least one sample"
            )
        check_finite(values, name=who, split=split, files=files)


def check_finite(
    outputs: Tensor,
    *,
    name: str = "network",
    split: str = "",
    files: Sequence[str] | None = None,
    kind: str = "outputs",
) -> None:
    """Raise LimbeckError with the network and the first such sample if a number is NaN or infinite.

    ``kind`` is what the message calls the numbers; the other arguments are those of `check_outputs`.
    """
    samples = f"{split} samples" if split else "samples"
    parts = torch.split(outputs, chunk(outputs))
    finite = [one for part in parts for one in part.isfinite().flatten(1).all(dim=1).tolist()]
    bad = [index for index, one in enumerate(finite) if not one]
    if not bad:
        return
    first = f"{bad[0]} ({files[bad[0]]})" if files is not None else str(bad[0])
    if len(bad) == len(outputs):
        which = f"all {len(bad)} {samples}: its weights are probably not finite"
    else:
        which = f"{len(bad)} of {len(outputs)} {samples} ({len(bad) / len(outputs):.1%}), the first is number {first}"
    raise LimbeckError(f"the {name} returns NaN or infinite {kind} for {which}")
