"""The samples of data in the form in which an exported file reads them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.data import Data, Split
from limbeck.exports.graph import Layout


@dataclass(frozen=True)
class RawSamples:
    """Raw samples: images as bytes or floats in a layout, and other inputs as float32."""

    data: Data
    layout: Layout

    @property
    def are_images(self) -> bool:
        """Whether a sample is (C, H, W) in the data."""
        return len(self.data.shape) == 3

    @property
    def are_pixels(self) -> bool:
        """Whether the values are bytes."""
        return self.data.train.inputs.dtype == torch.uint8

    def some(self, split: Split, count: int) -> Tensor:
        """Samples spread evenly over a split, (count, ...), or all if it has fewer."""
        return self._of(split, self.places(split, count))

    def places(self, split: Split, count: int) -> Tensor:
        """The places of `some` in the split."""
        return torch.arange(min(count, len(split))) * len(split) // max(1, min(count, len(split)))

    def outputs(self, run: Callable[[Tensor], Tensor], split: Split, size: int) -> Tensor:
        """What a file or a module returns for a whole split, read in batches of ``size``."""
        return torch.cat([run(part) for part in self._batches(split, size)])

    def _batches(self, split: Split, size: int) -> Iterator[Tensor]:
        for index in torch.split(torch.arange(len(split)), size):
            yield self._of(split, index)

    def _of(self, split: Split, index: Tensor) -> Tensor:
        values = split.inputs[index]
        if self.are_images and self.layout == "nhwc":
            values = values.permute(0, 2, 3, 1)
        return (values if self.are_pixels else values.float()).contiguous()
