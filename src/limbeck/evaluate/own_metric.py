"""A metric of the user."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from limbeck.core import LimbeckError


class OwnMetric:
    """A function of the user from outputs (N, ...) and targets (N, ...) to a number.

    Args:
        function: receives the outputs of a network in 32 bits and the targets of `limbeck.data.targets`.

    Attributes:
        name: of the function.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        self._function = function
        self.name: str = getattr(function, "__name__", type(function).__name__)

    def __call__(self, outputs: Tensor, targets: Tensor) -> float | None:
        """The value; None if it is not finite.

        Raises:
            LimbeckError: the function fails, or returns no number.
        """
        try:
            with torch.no_grad():
                value = float(self._function(outputs, targets))
        except Exception as error:  # the user's function may raise anything
            raise LimbeckError(f"the metric {self.name} failed: {type(error).__name__}: {error}") from error
        return value if math.isfinite(value) else None

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Call the function once.

        Raises:
            LimbeckError: it fails, returns no number, or changes the outputs or the targets in place.
        """
        own = outputs.clone(), targets.clone()
        self(*own)
        if not torch.equal(own[0], outputs) or not torch.equal(own[1], targets):
            raise LimbeckError(f"the metric {self.name} changes its arguments: it must work on copies")
