"""The samples of data in the form in which an exported file reads them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data import Data, Split
from limbeck.exports.graph import Layout
from limbeck.exports.resizing import middle

MOST_VALUES = 2**29
"""The most values of raw samples that are in memory at the same time, besides one sample."""


@dataclass(frozen=True)
class RawSamples:
    """Raw samples: images as bytes or floats in a layout, and other inputs as float32.

    Args:
        data: that of the student.
        layout: of images.
        size: height and width of the images, if it is not that of the data. See `framed`.

    Raises:
        LimbeckError: a size is given, and the samples are not images.
    """

    data: Data
    layout: Layout
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and not self.are_images:
            raise LimbeckError(f"a size is that of images, but the samples have shape {tuple(self.data.shape)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, (C, H, W) or (D,)."""
        return tuple(self.data.shape) if self.size is None else (self.data.shape[0], *self.size)

    @property
    def part(self) -> tuple[slice, slice] | None:
        """What the student reads of an image; None: the whole."""
        return None if self.size is None else middle(self.size, self.data.shape[1:])

    @property
    def are_images(self) -> bool:
        """Whether a sample is (C, H, W) in the data."""
        return len(self.data.shape) == 3

    @property
    def are_pixels(self) -> bool:
        """Whether the values are bytes."""
        return self.data.train.inputs.dtype == torch.uint8

    @property
    def _most(self) -> int:
        return max(1, MOST_VALUES // prod(self.shape))

    def some(self, split: Split, count: int) -> Tensor:
        """Samples spread evenly over a split, (count, ...); fewer if it has fewer, or for `MOST_VALUES`."""
        count = min(count, self._most, len(split))
        return self._of(split, torch.arange(count) * len(split) // max(1, count))

    def outputs(self, run: Callable[[Tensor], Tensor], split: Split, size: int) -> Tensor:
        """What a file or a module returns for a whole split, read in batches of ``size``."""
        return torch.cat([run(part) for part in self._batches(split, size)])

    def _batches(self, split: Split, size: int) -> Iterator[Tensor]:
        for index in torch.split(torch.arange(len(split)), min(size, self._most)):
            yield self._of(split, index)

    def _of(self, split: Split, index: Tensor) -> Tensor:
        values = split.inputs[index]
        if self.size is not None:
            values = framed(values, self.size)
        if self.are_images and self.layout == "nhwc":
            values = values.permute(0, 2, 3, 1)
        return (values if self.are_pixels else values.float()).contiguous()


def framed(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (N, C, h, w) in frames (N, C, *size) of the same type.

    An image is in the `middle` of its frame, as large as it fits (bilinear, antialiased). Its edges are repeated around
    it.
    """
    rows, columns = middle(size, images.shape[2:])
    inner = (rows.stop - rows.start, columns.stop - columns.start)
    fitted = F.interpolate(images.float(), inner, mode="bilinear", antialias=True, align_corners=False)
    around = (columns.start, size[1] - columns.stop, rows.start, size[0] - rows.stop)
    frames = F.pad(fitted, around, mode="replicate")
    return frames if images.is_floating_point() else frames.round().to(images.dtype)
