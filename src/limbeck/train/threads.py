"""How many threads a training computes with: one where the networks are so small that a second would only wait."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL = 2_000_000
"""Multiply-accumulates of one sample through all networks below which one thread does all.

On 2 cores a second one gains nothing on two small MLPs and a fifth on the demo (1.7 million) where the machine is idle,
and makes both several times slower beside other work; from 3.7 million on it gains nearly all. See docs/speed.md.
"""


@contextmanager
def threads_for(macs: int) -> Iterator[None]:
    """Inside the block torch computes with one thread if so few multiply-accumulates are to be done for a sample."""
    before = torch.get_num_threads()
    if macs < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
