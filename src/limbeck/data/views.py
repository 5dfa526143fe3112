"""Augmentation that can be replayed: the view of a sample is a pure function of seed, view and index."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.core import LimbeckError
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
    _check(images, index, options)
    if options.crop:
        images = _move(images, options.crop, draw(index, Purpose.CROP, seed, view))
    if options.shift:
        images = _move(images, options.shift, draw(index, Purpose.SHIFT, seed, view))
    if options.flip:
        mirrored = draw(index, Purpose.FLIP, seed, view) >> 31 == 1
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if options.cutout:
        images = _cut_out(images, options.cutout, draw(index, Purpose.CUTOUT, seed, view))
    return images


def _check(images: Tensor, index: Tensor, options: Augment) -> None:
    if images.dim() != 4:
        raise LimbeckError(f"only images (N, C, H, W) can be augmented; the inputs have shape {tuple(images.shape)}")
    if len(images) != len(index):
        raise LimbeckError(f"{len(images)} images, but {len(index)} indices")
    side, height, width = max(options.crop, options.shift, options.cutout), *images.shape[2:]
    if side > min(height, width):
        raise LimbeckError(f"{options} does not fit images of {height} x {width} pixels; allowed is at most their side")


def _move(images: Tensor, reach: int, numbers: Tensor) -> Tensor:
    height, width = images.shape[2:]
    places = 2 * reach + 1
    place = below(numbers, places * places)
    windows = functional.pad(images, (reach, reach, reach, reach)).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, place // places, place % places]


def _cut_out(images: Tensor, side: int, numbers: Tensor) -> Tensor:
    height, width = images.shape[2:]
    centre = below(numbers, height * width)
    rows = _band(centre // width, side, height)
    columns = _band(centre % width, side, width)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def _band(centre: Tensor, side: int, length: int) -> Tensor:
    """(N,) centres to (N, length) bool: the ``side`` places around each centre."""
    start = (centre - side // 2)[:, None]
    places = torch.arange(length, device=centre.device)
    return (places >= start) & (places < start + side)
