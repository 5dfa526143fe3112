"""The omitted class: G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network" (2015), section 3.

A student that never saw a class knows it from the soft targets, but its classifier's bias for the class is off.
Adding one number to that bias, ``b_c <- b_c + delta``, recovers most of the class.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.core import LimbeckError


def shift_bias(logits: Tensor, classes: Sequence[int], delta: float) -> Tensor:
    """The logits (N, K) of the network whose classifier has ``delta`` added to the biases of ``classes``.

    Raises:
        LimbeckError: no class, or one outside [0, K).
    """
    _check_classes(classes, logits.shape[1])
    shifted = logits.clone()
    shifted[:, list(classes)] += delta
    return shifted


def best_shift(
    logits: Tensor,
    targets: Tensor,
    classes: Sequence[int],
    *,
    low: float = -10.0,
    high: float = 10.0,
    step: float = 0.1,
) -> float:
    """The ``delta`` for `shift_bias` of the highest accuracy; among equals the nearest to 0, then the smallest.

    The search is ours: the paper does not say how it found its values.

    Args:
        logits: (N, K), of data that the result is not reported on.
        targets: (N,) int64.
        classes: whose biases are shifted, all by the same delta.
        low: the least delta, in units of the logits.
        high: the greatest delta.
        step: the deltas tried are the whole multiples of it in [low, high].

    Raises:
        LimbeckError: no class, or one outside [0, K); no sample of the classes; no multiple of step in [low, high].
    """
    _check_classes(classes, logits.shape[1])
    _of_classes(targets, classes)
    candidates = _grid(low, high, step)

    def rank(delta: float) -> tuple[int, float]:
        return _errors(shift_bias(logits, classes, delta), targets), abs(delta)

    return min(candidates, key=rank)  # the first among equals, and the candidates ascend


def bias_study(
    validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: Sequence[int]
) -> dict[str, Any]:
    """What shifting the biases of ``classes`` gains on the test split.

    Args:
        validation: logits (N, K) and targets (N,) that the shift is chosen on. They must hold the omitted classes.
        test: logits (M, K) and targets (M,) that everything is counted on.
        classes: those that the student's training set left out, or the only ones it had.

    Returns:
        ``classes``; and under ``before``, ``validation_tuned`` and ``test_tuned`` each ``errors`` of all M samples,
        ``samples_of_classes``, ``errors_on_classes`` of those samples, and ``share_right`` of those samples in
        [0, 1]; the latter two have their ``delta`` as well. ``validation_tuned`` is the result. ``test_tuned`` is an
        oracle, chosen on the very data it is counted on: it is there because the paper reports that figure, and is
        never the headline.

    Raises:
        LimbeckError: no class, or one outside [0, K); a split without a sample of the classes.
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
    chosen = _of_classes(targets, classes)
    errors, samples = _errors(logits[chosen], targets[chosen]), int(chosen.sum())
    return {
        "errors": _errors(logits, targets),
        "errors_on_classes": errors,
        "samples_of_classes": samples,
        "share_right": (samples - errors) / samples,
    }


def _errors(logits: Tensor, targets: Tensor) -> int:
    return int((logits.argmax(dim=1) != targets).sum())


def _grid(low: float, high: float, step: float) -> list[float]:
    # Each multiple is computed from its whole number and rounded, so that 0.1 * 3 is 0.3; the slack keeps the ends.
    if step <= 0:
        raise LimbeckError(f"step is {step}: it must be above 0")
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    if not numbers:
        raise LimbeckError(f"there is no multiple of {step} from {low} to {high}: low must be below high")
    return [round(number * step, 10) for number in numbers]


def _of_classes(targets: Tensor, classes: Sequence[int]) -> Tensor:
    chosen = torch.isin(targets, torch.tensor(list(classes), device=targets.device))
    if not bool(chosen.any()):
        raise LimbeckError(f"no sample is of the classes {', '.join(map(str, classes))}: a shift cannot be judged")
    return chosen


def _check_classes(classes: Sequence[int], count: int) -> None:
    if not classes:
        raise LimbeckError("there is no class to shift: name at least one")
    wrong = [number for number in classes if not 0 <= number < count]
    if wrong:
        raise LimbeckError(f"there is no class {wrong[0]}: allowed are 0 to {count - 1}")
