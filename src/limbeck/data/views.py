"""Augmentation that can be replayed: the view of a sample is a pure function of seed, view and index."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.core import LimbeckError
from limbeck.data.images import by_channels
from limbeck.data.keys import Purpose, below, draw


@dataclass(frozen=True)
class Augment:
    """Which random changes a training image gets, in this order; all are off by default, lengths are in pixels.

    Black is 0 before normalisation: for floating images that are not in [0, 1] it is whatever 0 stands for.

    Raises:
        LimbeckError: a length is negative.
    """

    crop: int = 0  # pad by this much black on each side and cut out the original size at a random place
    shift: int = 0  # move by up to this much down or up, and right or left, filling with black
    flip: bool = False  # mirror left-right, one time in two
    cutout: int = 0  # black out one square of this side around a random pixel, clipped at the border

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0:
                raise LimbeckError(f"augmentation {field.name} is {value}; allowed are 0 and greater")


NONE = Augment()
"""No augmentation."""


def augment(images: Tensor, index: Tensor, *, options: Augment, seed: int, view: int) -> Tensor:
    """Change a batch of images at random, each in a way that only (seed, view, its index) decide.

    The result for a sample depends neither on the batch it is in, nor on the device, nor on any generator.

    Args:
        images: (N, C, H, W), uint8 or floating, before normalisation.
        index: (N,) int64, each sample's place in its split, on the images' device.
        options: what may happen.
        seed: of the run.
        view: which view of each sample, such as the epoch.

    Returns:
        Images of the same shape and type; ``images`` itself, not a copy, if all options are off.

    Raises:
        LimbeckError: the inputs are no images, are smaller than a length in the options, or are not as many as the
            indices.
    """
    if options == NONE:
        return images
    if len(images) != len(index):
        raise LimbeckError(f"{len(images)} images, but {len(index)} indices")
    return change(images, draws(index, options=options, seed=seed, view=view), options=options)


def draws(index: Tensor, *, options: Augment, seed: int, view: int) -> Tensor:
    """The random numbers of `change`, for as many samples as one likes: (N,) int64 to (P, N), P the options in use."""
    used = [purpose for name, purpose in _PURPOSES.items() if getattr(options, name)]
    return torch.stack([draw(index, purpose, seed, view) for purpose in used])


_PURPOSES = {"crop": Purpose.CROP, "shift": Purpose.SHIFT, "flip": Purpose.FLIP, "cutout": Purpose.CUTOUT}


def change(images: Tensor, numbers: Tensor, *, options: Augment) -> Tensor:
    """Change a batch of images, (N, C, H, W) in any memory format, as the numbers say: (P, N) of `draws`.

    Raises:
        LimbeckError: the inputs are no images, or are smaller than a length in the options.
    """
    check(images.shape, options)
    if not len(images):
        return images
    last = by_channels(images)
    # What moves is a pixel: (N, planes, H, W, values a pixel), as they lie in memory.
    grid = images.permute(0, 2, 3, 1)[:, None] if last else images[..., None]
    rows = iter(numbers)
    if options.crop:
        grid = _move(grid, options.crop, next(rows))
    if options.shift:
        grid = _move(grid, options.shift, next(rows))
    if options.flip:
        mirrored = next(rows) >> 31  # 0 or 1
        chosen = torch.arange(len(grid), device=grid.device) + mirrored * len(grid)
        grid = torch.cat([grid, grid.flip(3)]).index_select(0, chosen)
    if options.cutout:
        grid = _cut_out(grid, options.cutout, next(rows))
    return grid[:, 0].permute(0, 3, 1, 2) if last else grid[..., 0]


def check(shape: Sequence[int], options: Augment) -> None:
    """Check that inputs of this shape, N first, can be changed so.

    Raises:
        LimbeckError: they are no images, or are smaller than a length in the options.
    """
    if len(shape) != 4:
        raise LimbeckError(f"only images (N, C, H, W) can be augmented; the inputs have shape {tuple(shape)}")
    side, height, width = max(options.crop, options.shift, options.cutout), *shape[2:]
    if side > min(height, width):
        raise LimbeckError(f"{options} does not fit images of {height} x {width} pixels; allowed is at most their side")


def _move(grid: Tensor, reach: int, numbers: Tensor) -> Tensor:
    """Each image moved by up to ``reach`` pixels, black around it.

    A line of the result is a stretch of the padded batch's memory that begins anywhere, so one choice among all
    stretches of that length moves everything; it is ten times as fast as choosing pixels.
    """
    count, planes, height, width, values = grid.shape
    beside = reach * values
    padded = functional.pad(grid.flatten(3), (beside, beside, reach, reach)).contiguous()
    places = 2 * reach + 1
    place = below(numbers, places * places)
    first = torch.arange(count * planes, device=grid.device).view(count, planes, 1) * padded.shape[2]
    line = first + (torch.arange(height, device=grid.device) + (place // places)[:, None])[:, None]
    start = line * padded.shape[3] + (place % places * values)[:, None, None]
    stretches = padded.as_strided((padded.numel() - width * values + 1, width * values), (1, 1))
    return stretches.index_select(0, start.flatten()).view(grid.shape)


def _cut_out(grid: Tensor, side: int, numbers: Tensor) -> Tensor:
    height, width = grid.shape[2:4]
    centre = below(numbers, height * width)
    rows = _band(centre // width, side, height)
    columns = _band(centre % width, side, width)
    return grid.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None, :, :, None], 0)


def _band(centre: Tensor, side: int, length: int) -> Tensor:
    """(N,) centres to (N, length) bool: the ``side`` places around each centre."""
    start = (centre - side // 2)[:, None]
    places = torch.arange(length, device=centre.device)
    return (places >= start) & (places < start + side)
