"""Metrics of a network that predicts the class of every place of an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.targets import IGNORED
from limbeck.evaluate.outputs import check_outputs, chunk


@dataclass(frozen=True)
class SegmentationFigures:
    """The metrics of a network on one split. A place counts if its target is not the ignored index."""

    miou: float  # intersection over union, mean over the classes that are a target or a prediction, in [0, 1]
    accuracy: float  # fraction of the places that count whose largest logit is the target, in [0, 1]
    cross_entropy: float  # in nats, mean over the places that count
    samples: int
    agreement: float | None = None  # fraction of all places with the teacher's prediction; None without a teacher


def segmentation_metrics(
    outputs: Tensor,
    targets: Tensor,
    *,
    teacher_logits: Tensor | None = None,
    name: str = "network",
    split: str = "",
    files: Sequence[str] | None = None,
) -> SegmentationFigures:
    """Compute the metrics of a segmentation network on one split, with the cross-entropy in 64 bits.

    The places of all images count together, so the intersection and the union of a class are sums over the split. Apart
    from the arguments, the memory is bounded.

    Args:
        outputs: logits (N, K, H, W).
        targets: (N, H, W) integers in [0, K), or 255 for places that do not count.
        teacher_logits: (N, K, H, W), of the same samples in the same order.
        name: the name of the network in errors.
        split: the name of the split in errors, such as ``test``.
        files: the names of the samples, for errors.

    Raises:
        LimbeckError: the shapes do not match, a logit is not finite, or no place counts.
    """
    classes = outputs.shape[1] if outputs.dim() == 4 else 1
    expected = (len(targets), classes, *targets.shape[1:])
    check_outputs(outputs, expected, teacher_logits, name=name, split=split, files=files)
    if (targets == IGNORED).all():
        raise LimbeckError(f"no place of the {split or 'evaluated'} targets counts: all are {IGNORED}")
    step = chunk(outputs)
    confusion = torch.zeros(classes * classes, dtype=torch.int64)
    entropy, agreeing = 0.0, 0
    for start in range(0, len(targets), step):
        logits, truth = outputs[start : start + step], targets[start : start + step].long()
        predicted, kept = logits.argmax(dim=1), truth != IGNORED
        confusion += torch.bincount(truth[kept] * classes + predicted[kept], minlength=classes * classes)
        entropy += F.cross_entropy(logits.double(), truth, ignore_index=IGNORED, reduction="sum").item()
        if teacher_logits is not None:
            agreeing += int((predicted == teacher_logits[start : start + step].argmax(dim=1)).sum())
    table = confusion.reshape(classes, classes).double()  # a row for each true class, a column for each predicted one
    hits = table.diagonal()
    union = table.sum(dim=0) + table.sum(dim=1) - hits
    return SegmentationFigures(
        miou=(hits / union)[union > 0].mean().item(),
        accuracy=(hits.sum() / table.sum()).item(),
        cross_entropy=entropy / table.sum().item(),
        samples=len(targets),
        agreement=None if teacher_logits is None else agreeing / targets.numel(),
    )
