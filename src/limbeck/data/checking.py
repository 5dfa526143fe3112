"""Check the samples of a split."""

import torch
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.images import Inputs
from limbeck.data.targets import TaskName, check_targets


def check_samples(
    name: str,
    inputs: Inputs,
    targets: Tensor,
    weights: Tensor | None,
    *,
    shape: tuple[int, ...],
    classes: int,
    unlabelled: bool,
    task: TaskName = "classification",
) -> None:
    """Check a split: inputs (N, C, H, W), (N, C, L) or (N, D), targets, and weights (N,) if there are any.

    The targets are class indices (N,), with ``unlabelled`` also -1, which means no label; or those of another task, see
    `limbeck.data.targets.check_targets`.

    Raises:
        LimbeckError: a shape, a type, a length or a value does not fit.
    """
    if inputs.dim() not in (2, 3, 4):
        allowed = "(N, C, H, W), (N, C, L) and (N, D)"
        raise LimbeckError(f"{name}: inputs have shape {tuple(inputs.shape)}; allowed are {allowed}")
    if tuple(inputs.shape[1:]) != shape:
        raise LimbeckError(f"{name}: a sample has shape {tuple(inputs.shape[1:])}; allowed is that of train, {shape}")
    if inputs.dtype != torch.uint8 and not inputs.dtype.is_floating_point:
        raise LimbeckError(f"{name}: inputs are {inputs.dtype}; allowed are torch.uint8 and floating types")
    if len(inputs) != len(targets):
        raise LimbeckError(f"{name}: {len(inputs)} inputs, but {len(targets)} targets; allowed is the same number")
    if task == "classification":
        _check_classes(name, targets, classes, unlabelled=unlabelled)
    else:
        check_targets(name, targets, task=task, outputs=classes, size=shape[1:])
    if weights is not None and task != "classification":
        raise LimbeckError(f"{name}: weights of samples are for classification; the task of the data is {task}")
    if weights is not None:
        _check_weights(name, weights, len(targets))
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        _check_finite(name, inputs)


def _check_classes(name: str, targets: Tensor, classes: int, *, unlabelled: bool) -> None:
    if targets.dtype != torch.int64 or targets.dim() != 1:
        raise LimbeckError(
            f"{name}: targets are {targets.dtype} of shape {tuple(targets.shape)}; allowed is torch.int64 of shape (N,)"
        )
    wrong = torch.nonzero((targets < -unlabelled) | (targets >= classes)).flatten()
    if len(wrong):
        first = int(wrong[0])
        allowed = f"allowed are 0 to {classes - 1}" + ", and -1 for no label" * unlabelled
        raise LimbeckError(f"{name}: target {int(targets[first])} of sample {first} is not a class; {allowed}")


def _check_weights(name: str, weights: Tensor, samples: int) -> None:
    if weights.shape != (samples,) or weights.dtype != torch.float32:
        got = f"{weights.dtype} of shape {tuple(weights.shape)}"
        raise LimbeckError(f"{name}: weights are {got}; allowed is torch.float32 of shape ({samples},)")
    wrong = torch.nonzero(~((weights >= 0) & weights.isfinite())).flatten()
    if len(wrong):
        first = int(wrong[0])
        raise LimbeckError(
            f"{name}: weight {weights[first].item()} of sample {first}; allowed are finite numbers from 0"
        )


def _check_finite(name: str, inputs: Tensor) -> None:
    bad = ~torch.isfinite(inputs)
    count = int(bad.sum())
    if count:
        first = int(torch.nonzero(bad)[0, 0])
        raise LimbeckError(
            f"{name}: {count} values are NaN or infinite, the first in sample {first}; allowed are finite values"
        )
