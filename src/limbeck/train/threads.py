"""How many threads a training computes with: one for networks so small that a second thread would only wait."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL = 2_000_000
"""Multiply-accumulates of one sample through all networks below which one thread is used.

On two idle cores a second thread gains nothing on two small MLPs and a fifth on the demo (1.7 million). Beside other
work it makes both several times slower. From 3.7 million on it nearly halves the time. See docs/speed.md.
"""


@contextmanager
def threads_for(macs: int) -> Iterator[None]:
    """Inside the block torch uses one thread if a sample takes fewer than `SMALL` multiply-accumulates."""
    before = torch.get_num_threads()
    if macs < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
