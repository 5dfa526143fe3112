"""Metrics of logits for several labels that a sample may have together."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.evaluate.outputs import check_outputs


@dataclass(frozen=True)
class MultiLabelFigures:
    """The metrics of a network on one split. A label is predicted where its probability is above 0.5."""

    mean_average_precision: float  # mean over the labels that a sample has, in [0, 1]
    f1_macro: float  # mean over the same labels, in [0, 1]; F1 of a label that no sample has is always 0
    f1_micro: float  # of all pairs of sample and label together, in [0, 1]
    exact_match: float  # fraction of samples for which every label is right, in [0, 1]
    cross_entropy: float  # binary, in nats, mean over samples and labels
    samples: int
    kl_to_teacher: float | None = None  # binary KL(p_teacher || p_student), mean as above; None without a teacher


def multi_label_metrics(
    outputs: Tensor,
    targets: Tensor,
    *,
    teacher_logits: Tensor | None = None,
    name: str = "network",
    split: str = "",
    files: Sequence[str] | None = None,
) -> MultiLabelFigures:
    """Compute the metrics of a multi-label network on one split in 64 bits; the average precision is in 32 bits.

    The average precision is sum_n (R_n - R_(n-1)) P_n over the distinct logits of a label, without interpolation.
    Samples with equal logits count together.

    Args:
        outputs: logits (N, K), one for each label.
        targets: (N, K), 1.0 where the sample has the label, else 0.0.
        teacher_logits: (N, K), of the same samples in the same order.
        name: the name of the network in errors.
        split: the name of the split in errors, such as ``test``.
        files: the names of the samples, for errors.

    Raises:
        LimbeckError: the shapes do not match, a logit is not finite, or no sample has a label.
    """
    check_outputs(outputs, targets.shape, teacher_logits, name=name, split=split, files=files)
    truth, predicted, logits = targets > 0.5, outputs > 0, outputs.double()
    present = truth.any(dim=0)
    if not present.any():
        raise LimbeckError(f"no {split or 'evaluated'} sample has a label: there is nothing to find")
    pairs = zip(outputs.T[present], truth.T[present], strict=True)
    precisions = [_average_precision(column, right) for column, right in pairs]
    hits = (truth & predicted).sum(dim=0).double()
    marked = (truth.sum(dim=0) + predicted.sum(dim=0)).double()  # twice the hits, and the errors of both kinds
    return MultiLabelFigures(
        mean_average_precision=torch.stack(precisions).double().mean().item(),
        f1_macro=(2 * hits / marked)[present].mean().item(),
        f1_micro=(2 * hits.sum() / marked.sum()).item(),
        exact_match=(truth == predicted).all(dim=1).double().mean().item(),
        cross_entropy=F.binary_cross_entropy_with_logits(logits, targets.double()).item(),
        samples=len(targets),
        kl_to_teacher=None if teacher_logits is None else _divergence(logits, teacher_logits.double()),
    )


def _average_precision(values: Tensor, truth: Tensor) -> Tensor:
    _, ranks = torch.unique(values, return_inverse=True)
    counts = torch.bincount(ranks)
    right = torch.bincount(ranks[truth], minlength=len(counts))
    hits, found = (ranked.flip(0).cumsum(0).flip(0) for ranked in (right, counts))  # from each value upwards
    recall = torch.cat((hits / hits[0], torch.zeros(1)))
    return ((recall[:-1] - recall[1:]) * (hits / found)).sum()


def _divergence(student: Tensor, teacher: Tensor) -> float:
    # p and 1 - p of every label, as a distribution over two classes
    log_q, log_p = (F.logsigmoid(torch.stack((logits, -logits))) for logits in (student, teacher))
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True).item() / student.numel()
