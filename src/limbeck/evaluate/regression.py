"""Metrics of a network that predicts numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from limbeck.evaluate.outputs import check_outputs


@dataclass(frozen=True)
class RegressionFigures:
    """The metrics of a network on one split, in the units of the targets; means are over samples and numbers."""

    rmse: float  # square root of the mean squared error
    mean_absolute_error: float
    r2: float | None  # at most 1, mean over the D numbers; None if one of them is the same in all samples
    samples: int
    rmse_to_teacher: float | None = None  # between the outputs of both networks; None without a teacher


def regression_metrics(
    outputs: Tensor,
    targets: Tensor,
    *,
    teacher_logits: Tensor | None = None,
    name: str = "network",
    split: str = "",
    files: Sequence[str] | None = None,
) -> RegressionFigures:
    """Compute the metrics of a regression network on one split in 64 bits.

    R² of a number is 1 - (sum of squared errors) / (sum of squared differences of the targets from their mean): 0 for
    a network that always predicts the mean.

    Args:
        outputs: (N, D).
        targets: (N, D).
        teacher_logits: the outputs (N, D) of the teacher, of the same samples in the same order.
        name: the name of the network in errors.
        split: the name of the split in errors, such as ``test``.
        files: the names of the samples, for errors.

    Raises:
        LimbeckError: the shapes do not match, or an output is not finite.
    """
    check_outputs(outputs, targets.shape, teacher_logits, name=name, split=split, files=files)
    truth = targets.double()
    errors = outputs.double() - truth
    constant = (targets == targets[0]).all(dim=0).any()
    # torchmetrics returns an R² of 0 or 1 where a sum of squares is below 1e-4.
    unexplained = errors.square().sum(dim=0) / (truth - truth.mean(dim=0)).square().sum(dim=0)
    return RegressionFigures(
        rmse=_root_mean_square(errors),
        mean_absolute_error=errors.abs().mean().item(),
        r2=None if constant else (1 - unexplained).mean().item(),
        samples=len(targets),
        rmse_to_teacher=None if teacher_logits is None else _root_mean_square(outputs.double() - teacher_logits),
    )


def _root_mean_square(differences: Tensor) -> float:
    return differences.square().mean().sqrt().item()
