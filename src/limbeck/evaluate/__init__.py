"""What a network is worth and what it costs."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from limbeck.core import Batch
from limbeck.evaluate.bias import best_shift, bias_study, shift_bias
from limbeck.evaluate.cost import Latency, file_bytes, latency, macs, parameters
from limbeck.evaluate.metrics import metrics, per_class_errors, predict

__all__ = [
    "Latency",
    "best_shift",
    "bias_study",
    "evaluate",
    "file_bytes",
    "latency",
    "macs",
    "metrics",
    "parameters",
    "per_class_errors",
    "predict",
    "shift_bias",
]


def evaluate(
    network: nn.Module, split_batches: Callable[[], Iterable[Batch]], *, teacher_logits: Tensor | None = None
) -> tuple[dict[str, float], Tensor]:
    """A network's `metrics` on a split, and its logits, which serve as ``teacher_logits`` where it is the teacher.

    Args:
        network: maps inputs to logits (N, K).
        split_batches: gives the split's batches, on the network's device; called once.
        teacher_logits: (N, K), of the same samples in the same order.

    Raises:
        LimbeckError: as `predict` and `metrics`.
    """
    targets: list[Tensor] = []

    def watched() -> Iterator[Batch]:
        for batch in split_batches():
            targets.append(batch.targets.cpu())
            yield batch

    logits = predict(network, watched())
    return metrics(logits, torch.cat(targets), teacher_logits=teacher_logits), logits
