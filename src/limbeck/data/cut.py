"""How samples are cut into batches."""

from collections.abc import Iterator

import torch
from torch import Tensor


def batch_sizes(count: int, most: int) -> list[int]:
    """The sizes of the batches of so many samples: ``most`` each, and the last what is left.

    Where a single sample would be left, the last two batches share evenly: some networks cannot take a batch of one.
    501 samples in batches of 500 are 251 and 250. Of an odd number in batches of two one sample stays alone.
    """
    whole, rest = divmod(count, most)
    if rest == 1 and whole:
        return [most] * (whole - 1) + [(most + 2) // 2, (most + 1) // 2]
    return [most] * whole + [rest] * (rest > 0)


def cut(values: Tensor, most: int) -> Iterator[Tensor]:
    """A tensor in parts of these sizes along its first dimension; none of an empty one."""
    yield from torch.split(values, batch_sizes(len(values), most))
