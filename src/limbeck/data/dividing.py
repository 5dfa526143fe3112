"""Divide a split at random, evenly over the classes, and samples into batches."""

import torch
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data.keys import Purpose, key
from limbeck.data.split import Split
from limbeck.data.targets import TaskName


def split_off(count_or_fraction: float, split: Split, seed: int) -> tuple[Split, Split]:
    """Divide a split at random, each class as evenly as possible; both parts keep the order of the samples.

    Unlabelled samples stay in the rest.

    Args:
        count_or_fraction: the size of the part: a count if int, a share in [0, 1) of the labelled samples if float
            (rounded).
        split: what to divide.
        seed: the same seed gives the same division; torch's global generator is not used.

    Returns:
        The rest, and the part.

    Raises:
        LimbeckError: the count or the share is out of range.
    """
    labelled = torch.nonzero(split.labels >= 0).flatten()
    chosen = torch.zeros(len(split), dtype=torch.bool)
    count = _count(count_or_fraction, len(labelled))
    chosen[labelled] = _evenly(split.labels[labelled], count, seed)
    return split.select(torch.nonzero(~chosen).flatten()), split.select(torch.nonzero(chosen).flatten())


def limited(split: Split, count: int, seed: int) -> Split:
    """At most ``count`` samples of a split, chosen as `split_off` does; unlabelled samples count as one class."""
    if count >= len(split):
        return split
    return split.select(torch.nonzero(_evenly(split.labels + 1, count, seed)).flatten())


def _evenly(targets: Tensor, count: int, seed: int) -> Tensor:
    """Choose ``count`` samples at random, each class as evenly as possible: (N,) bool."""
    total = len(targets)
    sizes = torch.bincount(targets)
    quotas, remainders = sizes * count // max(total, 1), sizes * count % max(total, 1)
    missing = count - int(quotas.sum())
    quotas[torch.argsort(remainders, descending=True, stable=True)[:missing]] += 1

    generator = torch.Generator().manual_seed(key(Purpose.SPLIT, seed))
    shuffled = torch.randperm(total, generator=generator)
    by_class = shuffled[torch.argsort(targets[shuffled], stable=True)]
    labels = targets[by_class]
    rank = torch.arange(total) - (sizes.cumsum(0) - sizes)[labels]
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[by_class] = rank < quotas[labels]
    return chosen


def _count(count_or_fraction: float, total: int) -> int:
    if isinstance(count_or_fraction, int):
        if 0 <= count_or_fraction <= total:
            return count_or_fraction
    elif 0 <= count_or_fraction < 1:
        return round(count_or_fraction * total)
    raise LimbeckError(
        f"cannot split off {count_or_fraction!r} of {total} samples; "
        f"allowed are a count from 0 to {total} and a share (a float) in [0, 1)"
    )


def in_words(count_or_fraction: float) -> str:
    """A count or share of `split_off` in words."""
    return (
        f"{count_or_fraction:,} samples" if isinstance(count_or_fraction, int) else f"{100 * count_or_fraction:.6g} %"
    )


def how_divided(task: TaskName) -> str:
    """How `split_off` chooses samples, in words."""
    return "evenly over the classes" if task == "classification" else "at random"


def part_of_train(count_or_fraction: float, seed: int, task: TaskName) -> str:
    """The origin of a validation split that `split_off` gave, as `Data.origins` says it."""
    return f"{in_words(count_or_fraction)} of train, {how_divided(task)}, seed {seed}" if count_or_fraction else "none"


def part_of(total: int, number: int, count: int) -> slice:
    """Part ``number`` of ``count`` parts of a batch. Their sizes differ by at most one; the larger ones are first."""
    size, rest = divmod(total, count)
    start = number * size + min(number, rest)
    return slice(start, start + size + (number < rest))


def batch_sizes(count: int, most: int) -> list[int]:
    """The sizes of the batches of ``count`` samples: ``most`` each, and the rest in a last batch.

    If the rest is a single sample, the last two batches share evenly, because some networks cannot take a batch of one:
    501 samples in batches of 500 are 251 and 250. In batches of two, the last sample of an odd number stays alone.
    """
    whole, rest = divmod(count, most)
    if rest == 1 and whole:
        return [most] * (whole - 1) + [(most + 2) // 2, (most + 1) // 2]
    return [most] * whole + [rest] * (rest > 0)
