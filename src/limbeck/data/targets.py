"""The targets of each task: their shapes, types and values."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from limbeck.core import LimbeckError

TaskName = Literal["classification", "multi_label", "regression", "landmarks", "segmentation"]
"""What is learnt: one of several classes, several labels, numbers, points (x, y), or the class of every pixel."""

UNITS = {"multi_label": "labels", "regression": "numbers", "landmarks": "points"}

NUMBERS = ("regression", "landmarks")
"""The tasks whose outputs are numbers; those of the others are logits."""

IGNORED = 255
"""The target of pixels that do not count, as in the masks of PASCAL VOC and Cityscapes."""


def check_targets(name: str, targets: Tensor, *, task: TaskName, outputs: int, size: tuple[int, ...] = ()) -> None:
    """Check the targets of the split ``name``. Those of a classification are checked with the samples.

    Args:
        name: of the split, for the message.
        targets: (N, K) float32 in [0, 1] for multi_label, (N, D) float32 for regression, (N, L, 2) float32 for
            landmarks, (N, H, W) uint8 class indices for segmentation, where 255 does not count.
        task: the task.
        outputs: the number of labels, numbers, points, or classes.
        size: (H, W) of the images, for segmentation.

    Raises:
        LimbeckError: a shape, a type or a value does not fit.
    """
    dtype, shape, letters = {
        "multi_label": (torch.float32, (outputs,), "K"),
        "regression": (torch.float32, (outputs,), "D"),
        "landmarks": (torch.float32, (outputs, 2), "L, 2"),
        "segmentation": (torch.uint8, size, "H, W"),
    }[task]
    if targets.dtype != dtype or tuple(targets.shape[1:]) != shape:
        got = f"{targets.dtype} of shape {tuple(targets.shape)}"
        known = targets.dim() == 1 + len(shape)
        wanted = f"(N, {', '.join(map(str, shape)) if known else letters})"
        hint = ""
        if task == "multi_label" and targets.dim() == 1:
            hint = "; torch.nn.functional.one_hot converts class indices to labels"
        if task == "landmarks" and targets.dim() == 2 and targets.shape[1] % 2 == 0:
            hint = f"; targets.reshape(-1, {targets.shape[1] // 2}, 2) converts rows of x0, y0, x1, ..."
        raise LimbeckError(f"{name}: targets are {got}; allowed for {task} is {dtype} of shape {wanted}{hint}")
    wrong, allowed = ~targets.isfinite(), "finite numbers"
    if task == "multi_label":
        wrong, allowed = ~((targets >= 0) & (targets <= 1)), "numbers in [0, 1]"
    elif task == "segmentation":
        wrong = (targets >= outputs) & (targets != IGNORED)
        allowed = f"0 to {outputs - 1}, and {IGNORED} for pixels that do not count"
    places = torch.nonzero(wrong)
    if len(places):
        place = tuple(places[0].tolist())
        raise LimbeckError(f"{name}: target {targets[place].item()} of sample {place[0]}; allowed are {allowed}")
    if task == "segmentation" and len(targets) and (targets == IGNORED).all():
        raise LimbeckError(f"{name}: all pixels are {IGNORED}, so none counts; allowed are masks with a class")


def as_targets(values: Tensor, task: TaskName, classes: Sequence[str] | None) -> Tensor:
    """Numbers of any type as targets of the type that the task has; see `check_targets`, which checks them.

    Args:
        values: the numbers. Those of a regression may be (N,).
        task: the task.
        classes: the names of the classes, if they are given: floats are class indices only then.

    Raises:
        LimbeckError: they cannot be targets of the task.
    """
    if task == "classification":
        return _class_indices(values, classes)
    if task == "segmentation":
        if values.is_floating_point() or values.is_complex():
            raise LimbeckError(f"targets are {values.dtype}; allowed for segmentation are integers from 0 to {IGNORED}")
        whole = values if values.dtype == torch.uint8 else values.long()
        lowest, highest = (int(whole.min()), int(whole.max())) if whole.numel() else (0, 0)
        if lowest < 0 or highest > IGNORED:
            raise LimbeckError(
                f"targets are from {lowest} to {highest}; allowed for segmentation are 0 to {IGNORED}, where {IGNORED} "
                "is for pixels that do not count"
            )
        return whole.to(torch.uint8)
    if values.is_complex():
        raise LimbeckError(f"targets are {values.dtype}; allowed for {task} are real numbers")
    return (values[:, None] if task == "regression" and values.dim() == 1 else values).float()


def outputs_of(targets: Tensor, task: TaskName) -> int:
    """The number of classes, labels, numbers or points, according to the targets."""
    if task in ("multi_label", "regression", "landmarks"):
        return targets.shape[1] if targets.dim() > 1 else 0
    counted = targets[targets != IGNORED] if task == "segmentation" else targets
    return int(counted.max()) + 1 if len(counted) else 0


def _class_indices(targets: Tensor, classes: Sequence[str] | None) -> Tensor:
    if targets.dim() != 1:
        one_hot = "; targets.argmax(1) converts rows with one value a class" if targets.dim() == 2 else ""
        raise LimbeckError(
            f"targets have shape {tuple(targets.shape)}; allowed is (N,), one class index a sample{one_hot}"
        )
    if not len(targets):
        return targets.long()
    if targets.is_complex() or (targets.is_floating_point() and classes is None):
        raise LimbeckError(
            f"targets are {targets.dtype}, the first {targets[0].item()}, which are not class indices; allowed are "
            "integers and bool: targets.astype(int), or targets.long() of a tensor. Whole floats are class indices "
            "where classes= is given"
        )
    whole = targets.long()
    if not torch.equal(whole.to(targets.dtype), targets):
        first = int(torch.nonzero(whole.to(targets.dtype) != targets)[0, 0])
        raise LimbeckError(
            f"target {targets[first].item()} of sample {first} is not a class index; allowed are whole numbers"
        )
    if set(whole.tolist()) == {-1, 1}:
        raise LimbeckError("targets are -1 and 1, but -1 means no label; allowed are 0 and 1: (targets + 1) // 2")
    return whole
