"""How a file reads the middle of larger images, and how a backend resizes that cannot."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def middle(size: Sequence[int], sides: Sequence[int]) -> tuple[slice, slice]:
    """The largest part in the middle of an image of height and width ``size`` that has the ratio of ``sides``."""
    factor = min(size[0] / sides[0], size[1] / sides[1])
    inner = [max(1, round(side * factor)) for side in sides]
    first = [(side - one) // 2 for side, one in zip(size, inner, strict=True)]
    rows, columns = (slice(start, start + one) for start, one in zip(first, inner, strict=True))
    return rows, columns


def resized_by_products(images: Tensor, size: Sequence[int], *_: object) -> Tensor:
    """``aten._upsample_bilinear2d_aa.vec`` of images (..., H, W) as two matrix products, for backends that lack it."""
    rows, columns = (_weights(before, after) for before, after in zip(images.shape[-2:], size, strict=True))
    return rows @ images @ columns.T


def _weights(before: int, after: int) -> Tensor:
    """The matrix (after, before) that resizes one axis: a triangle around the place of each new pixel."""
    scale = before / after
    places = (np.arange(after)[:, None] + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(before) + 0.5 - places) / max(scale, 1))
    return torch.tensor((weights / weights.sum(axis=1, keepdims=True)).tolist())
