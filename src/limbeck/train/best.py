"""The best epoch of a stage, and early stopping."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Best:
    """The epoch of a stage with the best score; of equal scores, the first.

    Args:
        keep: whether to keep the weights after that epoch for `restore`.
        stop_after: the stage ends after this number of epochs without a better score; None trains all epochs.

    Attributes:
        epoch: its number, from 1; 0 before the first epoch.
        score: its score; greater is better.
    """

    def __init__(self, *, keep: bool, stop_after: int | None) -> None:
        self.epoch, self.score = 0, -math.inf
        self._keep, self._stop_after = keep, stop_after
        self._weights: dict[str, Tensor] = {}

    def add(self, epoch: int, score: float, learned: nn.Module) -> None:
        """Add the score of an epoch. ``learned`` contains all networks and losses that learn in the stage."""
        if score > self.score:
            self.epoch, self.score = epoch, score
            if self._keep:
                self._weights = {name: tensor.clone() for name, tensor in learned.state_dict().items()}

    def ends(self, epochs: int) -> bool:
        """Whether to end the stage after this number of epochs."""
        return self._stop_after is not None and epochs - self.epoch >= self._stop_after

    def restore(self, learned: nn.Module) -> None:
        """Load the weights of the best epoch, if they are kept."""
        if self._weights:
            state = learned.state_dict()
            state.update(self._weights)  # keeps the versions of the layers, which some networks of torchvision need
            learned.load_state_dict(state)

    def state(self) -> dict[str, Any]:
        """Return what exact resume needs."""
        return {"best": {"epoch": self.epoch, "score": self.score, "weights": self._weights}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        held = state["best"]
        self.epoch, self.score, self._weights = held["epoch"], held["score"], held["weights"]
