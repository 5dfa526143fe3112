"""The omitted class: G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network" (2015), section 3.

A student that never saw samples of a class learns it from the soft targets, but its bias for the class is too low.
Adding a constant to this bias, ``b_c <- b_c + delta``, recovers most of the accuracy on the class.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def shift_bias(logits: Tensor, classes: Sequence[int], delta: float) -> Tensor:
    """Return the logits (N, K) after ``delta`` is added to the biases of ``classes``."""
    shifted = logits.clone()
    shifted[:, list(classes)] += delta
    return shifted


def best_shift(logits: Tensor, targets: Tensor, classes: Sequence[int]) -> float:
    """Return the ``delta`` for `shift_bias` with the highest accuracy; among equals the closest to 0, then the lowest.

    It is one of -10, -9.9, ..., 10, in units of the logits. The search is an extension of limbeck: the paper does not
    say how it found its values. The logits (N, K) and targets (N,) are of data on which the result is not reported.
    """

    def rank(delta: float) -> tuple[int, float]:
        return _errors(shift_bias(logits, classes, delta), targets), abs(delta)

    return min((number / 10 for number in range(-100, 101)), key=rank)  # of equals the first, and they ascend


def bias_study(
    validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: Sequence[int]
) -> dict[str, Any]:
    """Measure the effect of shifting the biases of ``classes`` on the test split.

    Args:
        validation: logits (N, K) and targets (N,) on which the shift is chosen.
        test: logits (M, K) and targets (M,) on which all figures are computed. Both must have samples of the classes.
        classes: the classes in [0, K) that the student's training set lacked, or the only ones it had.

    Returns:
        ``classes``, and the figures ``before`` the shift and after it, ``validation_tuned`` and ``test_tuned``. Each
        has ``errors`` of all M samples, the number ``samples_of_classes``, and of these samples ``errors_on_classes``
        and the accuracy ``share_right`` in [0, 1]; the latter two also have their ``delta``. ``validation_tuned`` is
        the result. ``test_tuned`` is chosen on the test split itself and is never the headline: it is included because
        the paper reports it.
    """
    return {
        "classes": list(classes),
        "before": _counts(*test, classes),
        "validation_tuned": _tuned(best_shift(*validation, classes), *test, classes),
        "test_tuned": _tuned(best_shift(*test, classes), *test, classes),
    }


def _tuned(delta: float, logits: Tensor, targets: Tensor, classes: Sequence[int]) -> dict[str, float]:
    return {"delta": delta, **_counts(shift_bias(logits, classes, delta), targets, classes)}


def _counts(logits: Tensor, targets: Tensor, classes: Sequence[int]) -> dict[str, float]:
    chosen = torch.isin(targets, torch.tensor(list(classes), device=targets.device))
    errors, samples = _errors(logits[chosen], targets[chosen]), int(chosen.sum())
    return {
        "errors": _errors(logits, targets),
        "errors_on_classes": errors,
        "samples_of_classes": samples,
        "share_right": (samples - errors) / samples,
    }


def _errors(logits: Tensor, targets: Tensor) -> int:
    return int((logits.argmax(dim=1) != targets).sum())
