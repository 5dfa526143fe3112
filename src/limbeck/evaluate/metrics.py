"""How good a network is, from its logits: accuracy, cross-entropy, calibration, likeness to the teacher."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

from limbeck.core import Batch, LimbeckError
from limbeck.taps import evaluation_mode

ECE_BINS = 15
_BELOW_ONE = 1 - 2**-24  # the greatest float32 below 1


@dataclass(frozen=True)
class Figures:
    """How good a network is on one split; means are over its samples."""

    accuracy: float  # share of samples whose greatest logit (the first among equals) is the target's, in [0, 1]
    errors: int
    samples: int
    cross_entropy: float  # in nats
    ece: float  # expected calibration error in [0, 1], over 15 bins of equal width
    agreement: float | None = None  # share of samples whose class is the teacher's; None without a teacher
    kl_to_teacher: float | None = None  # KL(p_teacher || p_student) at T = 1, in nats; likewise


def predict(network: nn.Module, batches: Iterable[Batch], *, name: str = "network") -> Tensor:
    """The network's logits of all batches, in their order.

    The network runs in eval mode and without gradients where it is; afterwards, even after an error, every submodule
    has the mode it had.

    Args:
        network: maps inputs to logits (N, K).
        batches: on the network's device; only ``inputs`` is read.
        name: what errors call the network.

    Returns:
        (N, K) float32 on the CPU, N over all batches.

    Raises:
        LimbeckError: there is no batch; the network gives something else than one tensor (N, K).
    """
    parts: list[Tensor] = []
    with evaluation_mode([network]), torch.no_grad():
        for batch in batches:
            output = network(batch.inputs)
            _check_output(name, output, len(batch.inputs))
            parts.append(output.float().cpu())
    if not parts:
        raise LimbeckError("there is no batch to predict: the split is empty")
    return torch.cat(parts)


def metrics(
    logits: Tensor,
    targets: Tensor,
    *,
    teacher_logits: Tensor | None = None,
    name: str = "network",
    split: str = "",
    files: Sequence[str] | None = None,
) -> Figures:
    """A network's figures on one split, computed in 64 bits.

    The expected calibration error is the absolute gap between mean confidence and accuracy in each bin of confidence,
    weighted by the bins' samples.

    Args:
        logits: (N, K), K at least 2.
        targets: (N,) int64 in [0, K).
        teacher_logits: (N, K), of the same samples in the same order.
        name: what errors call the network.
        split: what they call the samples, such as ``test``.
        files: the samples' names, to tell one that went wrong.

    Raises:
        LimbeckError: no sample; shapes that do not fit; a target outside [0, K); a logit that is NaN or infinite.
    """
    _check_pair(logits, targets)
    check_finite(logits, name=name, split=split, files=files)
    predicted = logits.argmax(dim=1)
    errors = int((predicted != targets).sum())
    log_probabilities = F.log_softmax(logits.double(), dim=1)
    agreement = divergence = None
    if teacher_logits is not None:
        if teacher_logits.shape != logits.shape:
            raise LimbeckError(
                f"the teacher's logits are {tuple(teacher_logits.shape)}, the {name}'s {tuple(logits.shape)}"
            )
        check_finite(teacher_logits, name="teacher", split=split, files=files)
        teacher = F.log_softmax(teacher_logits.double(), dim=1)
        agreement = (predicted == teacher_logits.argmax(dim=1)).double().mean().item()
        divergence = F.kl_div(log_probabilities, teacher, reduction="batchmean", log_target=True).item()
    return Figures(
        accuracy=(len(targets) - errors) / len(targets),
        errors=errors,
        samples=len(targets),
        cross_entropy=F.nll_loss(log_probabilities, targets).item(),
        ece=_calibration_error(log_probabilities.exp(), targets),
        agreement=agreement,
        kl_to_teacher=divergence,
    )


def _calibration_error(probabilities: Tensor, targets: Tensor) -> float:
    # torchmetrics puts a confidence of exactly 1 into a sixteenth bin of its own.
    inside = probabilities.clamp(max=_BELOW_ONE)
    return multiclass_calibration_error(inside, targets, inside.shape[1], n_bins=ECE_BINS, norm="l1").item()


def _check_output(name: str, output: object, samples: int) -> None:
    if not isinstance(output, Tensor):
        raise LimbeckError(f"the {name} gives a {type(output).__name__}: it must give one tensor of logits (N, K)")
    if output.ndim != 2 or len(output) != samples:
        raise LimbeckError(
            f"the {name} gives a tensor {tuple(output.shape)} for {samples} samples: it must give logits (N, K)"
        )


def _check_pair(logits: Tensor, targets: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2 or targets.shape != logits.shape[:1]:
        raise LimbeckError(
            f"logits are {tuple(logits.shape)} and targets {tuple(targets.shape)}: allowed are (N, K) with K of 2 "
            "and more, and (N,)"
        )
    if len(targets) == 0:
        raise LimbeckError("there is no sample to evaluate: the split is empty")
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise LimbeckError(
            f"targets go from {int(targets.min())} to {int(targets.max())}: allowed are 0 to {logits.shape[1] - 1}"
        )


def check_finite(logits: Tensor, *, name: str = "network", split: str = "", files: Sequence[str] | None = None) -> None:
    """Raise LimbeckError, naming the network and the first such sample, where a logit is NaN or infinite."""
    bad = (~torch.isfinite(logits)).any(dim=1).nonzero().flatten().tolist()
    if not bad:
        return
    first = f"{bad[0]} ({files[bad[0]]})" if files is not None else str(bad[0])
    samples = f"{split} samples" if split else "samples"
    if len(bad) == len(logits):
        which = f"{len(bad)} {samples}, which is all of them: its weights are most likely not finite"
    else:
        which = f"{len(bad)} of {len(logits)} {samples} ({len(bad) / len(logits):.1%}), the first is number {first}"
    raise LimbeckError(f"the {name} gives NaN or infinite logits for {which}")
