"""A store's rows on the device: reading them from the host at each step would wait for it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from limbeck.core import Outputs, Tap

CHUNK = 4096
"""Rows that are brought at once."""


class Resident:
    """Outputs whose current view lies on a device; an epoch reads one view, so it is brought once an epoch.

    Args:
        outputs: what is read, in the host's memory.
        device: where the rows are wanted, and where the index is.
    """

    def __init__(self, outputs: Outputs, device: torch.device) -> None:
        self.taps, self.rows = outputs.taps, outputs.rows
        self._outputs, self._device = outputs, device
        self._view, self._there = -1, dict[Tap, Tensor]()

    def read(self, index: Tensor, view: int) -> Mapping[Tap, Tensor]:
        """As `limbeck.core.Outputs.read`, on the device."""
        if view != self._view:
            self._there = {}  # before the next is brought: two views need not fit
            starts = range(0, self.rows, CHUNK)
            chunks = [torch.arange(start, min(start + CHUNK, self.rows)) for start in starts]
            parts = [self._outputs.read(chunk, view) for chunk in chunks]
            self._there = {tap: torch.cat([part[tap] for part in parts]).to(self._device) for tap in self.taps}
            self._view = view
        return {tap: values[index] for tap, values in self._there.items()}
