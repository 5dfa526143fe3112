"""Whether an exported file answers as the student did."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from limbeck.data.targets import NUMBERS, TaskName
from limbeck.exports.base import Runner
from limbeck.exports.graph import Precision
from limbeck.models.binary import Sign

SAMPLES = 256
"""The samples on which a file is compared with the student."""

BATCHES = (1, 2, 8)
"""The batch sizes of a file that takes any number of samples."""


@dataclass(frozen=True)
class Limit:
    """What an exported file must reach."""

    difference: float  # the greatest `Parity.relative` of outputs that decide for classes or labels
    numbers: float  # the same of outputs that are numbers
    agreement: float  # the least share of equal decisions
    probabilities: float  # the greatest difference of a probability from the softmax of the logits of the file


LIMITS: dict[Precision, Limit] = {
    "fp32": Limit(1e-4, 1e-4, 0.99, 1e-4),
    "fp16": Limit(2e-2, 2e-2, 0.98, 1e-2),
    "int8": Limit(math.inf, 0.2, 0.9, 1e-3),
}


def limit_of(network: nn.Module, precision: Precision) -> Limit:
    """What a file of a network must reach. If the rounding of a value near 0 can change its `Sign`, outputs may differ.

    Args:
        network: the student.
        precision: of the file.
    """
    limit = LIMITS[precision]
    if not any(isinstance(module, Sign) for module in network.modules()):
        return limit
    return replace(limit, difference=LIMITS["int8"].difference, numbers=LIMITS["int8"].numbers)


@dataclass(frozen=True)
class Parity:
    """An exported file beside the student, on the same samples."""

    split: str  #: of the samples
    samples: int
    batches: tuple[int, ...]  #: the batch sizes
    difference: float  #: the greatest absolute difference of an output over all batch sizes
    #: the same, divided by the greatest absolute output of the student, or, of numbers, by the greatest deviation of an
    #: output from its mean over the samples
    relative: float
    agreement: float | None  #: the least share of equal decisions over the batch sizes; None if outputs are numbers

    @property
    def whole(self) -> str:
        """What `relative` is a share of: the greatest ..."""
        return "deviation from the mean" if self.agreement is None else "output"

    def problem(self, limit: Limit) -> str:
        """Why the file is refused; empty if it is not."""
        allowed = limit.numbers if self.agreement is None else limit.difference
        if not math.isfinite(self.relative):
            return "its outputs are not finite, or have another shape"
        if self.relative > allowed:
            return f"its outputs differ by {self.relative:.2g} of the greatest {self.whole}, allowed is {allowed:g}"
        if self.agreement is not None and self.agreement < limit.agreement:
            return f"{self.agreement:.1%} of its decisions agree with the student's, needed are {limit.agreement:.0%}"
        return ""


def decisions(outputs: Tensor, task: TaskName) -> Tensor | None:
    """The classes (N, ...), or the labels (N, K) that outputs decide for; None if they are numbers."""
    if task in NUMBERS:
        return None
    return outputs > 0 if task == "multi_label" else outputs.argmax(dim=1)


def run(runner: Runner, samples: Tensor, size: int) -> Tensor:
    """The outputs (N, ...) of a file for raw samples, in batches of ``size``."""
    return torch.cat([runner(part) for part in torch.split(samples, size)])


def compare(
    runner: Runner,
    student: Callable[[Tensor], Tensor],
    samples: Tensor,
    sizes: Sequence[int],
    *,
    task: TaskName,
    split: str,
) -> Parity:
    """Compare a file with the student for each batch size.

    Args:
        runner: the file.
        student: the module that was exported, in 32 bits: raw samples to outputs.
        samples: raw samples (N, ...) of the split.
        sizes: the batch sizes.
        task: of the outputs.
        split: the name of the split.
    """
    expected = run(student, samples, max(sizes))
    decided, greatest, agreement = decisions(expected, task), 0.0, 1.0
    for size in sizes:
        outputs = run(runner, samples, size)
        apart = (outputs - expected).abs().max().item() if outputs.shape == expected.shape else math.nan
        greatest = apart if math.isnan(apart) else max(greatest, apart)
        found = decisions(outputs, task) if outputs.shape == expected.shape else None
        if decided is not None and found is not None:
            agreement = min(agreement, (found == decided).double().mean().item())
        if math.isnan(greatest):
            break
    varying = expected if decided is not None else expected - expected.mean(dim=0)
    relative = greatest / (varying.abs().max().item() or expected.abs().max().item() or 1.0)
    return Parity(split, len(samples), tuple(sizes), greatest, relative, None if decided is None else agreement)
