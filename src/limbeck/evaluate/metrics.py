"""Metrics of a network's logits: accuracy, cross-entropy, calibration, and agreement with the teacher."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import Batch, LimbeckError
from limbeck.evaluate.confidence import calibration_error
from limbeck.evaluate.outputs import check_finite
from limbeck.taps import evaluation_mode


@dataclass(frozen=True)
class ClassFigures:
    """The metrics of a network on one split; means are over its samples."""

    accuracy: float  # fraction of samples whose largest logit (the first of equal ones) is the target, in [0, 1]
    errors: int
    samples: int
    cross_entropy: float  # in nats
    ece: float  # expected calibration error in [0, 1], over 15 bins of equal width
    agreement: float | None = None  # fraction of samples with the teacher's prediction; None without a teacher
    kl_to_teacher: float | None = None  # KL(p_teacher || p_student) at T = 1, in nats; None without a teacher


def predict(network: nn.Module, batches: Iterable[Batch], *, name: str = "network") -> Tensor:
    """Return the network's outputs for all batches, in order.

    They are (N, K), or (N, K, H, W) for segmentation, float32 on the CPU, for the N samples of all batches, of which
    only ``inputs`` is used. The network runs on its device in eval mode without gradients. Afterwards, even after an
    error, the mode of every submodule is restored.

    Raises:
        LimbeckError: there is no batch, or the network does not return one tensor with a row for each sample.
    """
    parts: list[Tensor] = []
    with evaluation_mode([network]), torch.no_grad():
        for batch in batches:
            output = network(batch.inputs)
            _check_output(name, output, len(batch.inputs))
            parts.append(output.float().cpu())
    if not parts:
        raise LimbeckError("there are no batches: the split is empty")
    return torch.cat(parts)


def metrics(
    logits: Tensor,
    targets: Tensor,
    *,
    teacher_logits: Tensor | None = None,
    name: str = "network",
    split: str = "",
    files: Sequence[str] | None = None,
) -> ClassFigures:
    """Compute the metrics of a network on one split in 64 bits; the calibration error is in 32 bits.

    Args:
        logits: (N, K) with N of at least 1 and K of at least 2.
        targets: (N,) int64 in [0, K).
        teacher_logits: (N, K), of the same samples in the same order.
        name: the name of the network in errors.
        split: the name of the split in errors, such as ``test``.
        files: the names of the samples, for errors.

    Raises:
        LimbeckError: the teacher's logits have another shape, or a logit is not finite.
    """
    check_finite(logits, name=name, split=split, files=files, kind="logits")
    predicted = logits.argmax(dim=1)
    errors = int((predicted != targets).sum())
    log_probabilities = F.log_softmax(logits.double(), dim=1)
    agreement = divergence = None
    if teacher_logits is not None:
        if teacher_logits.shape != logits.shape:
            raise LimbeckError(
                f"the teacher's logits have shape {tuple(teacher_logits.shape)}, the {name}'s {tuple(logits.shape)}"
            )
        check_finite(teacher_logits, name="teacher", split=split, files=files, kind="logits")
        teacher = F.log_softmax(teacher_logits.double(), dim=1)
        agreement = (predicted == teacher_logits.argmax(dim=1)).double().mean().item()
        divergence = F.kl_div(log_probabilities, teacher, reduction="batchmean", log_target=True).item()
    return ClassFigures(
        accuracy=(len(targets) - errors) / len(targets),
        errors=errors,
        samples=len(targets),
        cross_entropy=F.nll_loss(log_probabilities, targets).item(),
        ece=calibration_error(log_probabilities.exp(), targets),
        agreement=agreement,
        kl_to_teacher=divergence,
    )


def _check_output(name: str, output: object, samples: int) -> None:
    if not isinstance(output, Tensor):
        raise LimbeckError(f"the {name} returns a {type(output).__name__}: it must return one tensor")
    if output.ndim not in (2, 4) or len(output) != samples:
        raise LimbeckError(
            f"the {name} returns a tensor {tuple(output.shape)} for {samples} samples: it must return (N, K), or "
            "(N, K, H, W) for segmentation"
        )
