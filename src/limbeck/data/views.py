"""Augmentation that can be repeated: the view of a sample is a pure function of seed, view and index."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.core import LimbeckError
from limbeck.data.keys import Purpose, below, draw
from limbeck.data.targets import IGNORED


@dataclass(frozen=True)
class Augment:
    """The random changes of a training image, in this order; all are off by default, lengths are in pixels.

    Black is the value 0 before normalisation, also for floating images that are not in [0, 1].

    Raises:
        LimbeckError: a length is negative.
    """

    crop: int = 0  #: pad each side with so much black and crop the original size at a random place
    shift: int = 0  #: move by up to so much down or up, and right or left, and fill with black
    flip: bool = False  #: mirror left to right with probability 1/2
    cutout: int = 0  #: set one square of this side around a random pixel to black, clipped at the border

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0:
                raise LimbeckError(f"augmentation {field.name} is {value}; allowed are 0 and greater")


NONE = Augment()
"""No augmentation."""


def draws(index: Tensor, *, options: Augment, seed: int, view: int) -> Tensor:
    """The random numbers of `change` for samples at these places: (N,) int64 to (P, N) for P options in use."""
    used = [purpose for name, purpose in _PURPOSES.items() if getattr(options, name)]
    return torch.stack([draw(index, purpose, seed, view) for purpose in used])


_PURPOSES = {"crop": Purpose.CROP, "shift": Purpose.SHIFT, "flip": Purpose.FLIP, "cutout": Purpose.CUTOUT}


def change(images: Tensor, numbers: Tensor, *, options: Augment) -> Tensor:
    """Change a batch of images at random, each in a way that only (seed, view, its index) decide.

    The result for a sample depends neither on the batch it is in, nor on the device, nor on any generator.

    Args:
        images: (N, C, H, W), uint8 or floating, before normalisation; in any memory format.
        numbers: (P, N), what `draws` gave for the samples.
        options: what may happen, at least one of the options.

    Returns:
        Images of the same shape and type.

    Raises:
        LimbeckError: the inputs are not images, or are smaller than a length in the options.
    """
    check(images.shape, options)
    if not len(images):
        return images
    rows = iter(numbers)
    if options.crop:
        images = _move(images, options.crop, next(rows))
    if options.shift:
        images = _move(images, options.shift, next(rows))
    if options.flip:
        mirrored = next(rows) >> 31  # 0 or 1
        chosen = torch.arange(len(images), device=images.device) + mirrored * len(images)
        images = torch.cat([images, images.flip(3)]).index_select(0, chosen)
    if options.cutout:
        images = _cut_out(images, options.cutout, next(rows))
    return images


def change_masks(masks: Tensor, numbers: Tensor, *, options: Augment) -> Tensor:
    """Change masks (N, H, W) uint8 as `change` changes their images; what is filled in is 255, which does not count."""
    return IGNORED - change(IGNORED - masks[:, None], numbers, options=options)[:, 0]


def check_points(targets: Tensor, options: Augment) -> None:
    """Raise LimbeckError if the options would move the images of points (N, L, 2) and not the points."""
    moving = [name for name in ("crop", "shift", "flip") if getattr(options, name)]
    if moving and targets.dim() == 3 and targets.dtype == torch.float32:
        raise LimbeckError(f"augmentation {moving[0]} moves the images but not the landmarks; allowed is cutout")


def check(shape: Sequence[int], options: Augment) -> None:
    """Check that inputs of this shape, N first, can be changed so.

    Raises:
        LimbeckError: the inputs are not images, or are smaller than a length in the options.
    """
    if len(shape) != 4:
        raise LimbeckError(f"only images (N, C, H, W) can be augmented; the inputs have shape {tuple(shape)}")
    side, name = max((getattr(options, name), name) for name in ("crop", "shift", "cutout"))
    height, width = shape[2:]
    if side > min(height, width):
        raise LimbeckError(
            f"augmentation {name} is {side}, but the images are {height} x {width} pixels; allowed is their side"
        )


def _move(images: Tensor, reach: int, numbers: Tensor) -> Tensor:
    """Move each image by up to ``reach`` pixels, and fill with black.

    A line of the result is a part of the padded batch's memory, of the line's length, that begins anywhere. So one
    choice among all such parts moves everything; it is ten times as fast as choosing pixels.
    """
    count, channels, height, width = images.shape
    padded = functional.pad(images, (reach, reach, reach, reach)).contiguous()
    places = 2 * reach + 1
    place = below(numbers, places * places)
    first = torch.arange(count * channels, device=images.device).view(count, channels, 1) * padded.shape[2]
    line = first + (torch.arange(height, device=images.device) + (place // places)[:, None])[:, None]
    start = line * padded.shape[3] + (place % places)[:, None, None]
    lines = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
    return lines.index_select(0, start.flatten()).view(images.shape)


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
