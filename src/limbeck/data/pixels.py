"""Pixels of a file: an image file or an array in numpy's format, decoded and brought to the size of a data set."""

import io
from typing import NamedTuple

import numpy
import torch
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from limbeck.core import LimbeckError
from limbeck.data import bounds
from limbeck.data.decoding import Header, Pixels, fitted, header, is_grey, picture
from limbeck.files.npy import array_header

CHANNELS = 16
"""The most channels of an array in a file."""

_TYPES = ("uint8", "uint16", "float16", "float32", "float64")


class Decoded(NamedTuple):
    """A decoded file."""

    pixels: Pixels  # uint8 or float32
    turned: bool  # because its EXIF data says so


def decoded(label: str, data: bytes, size: tuple[int, int] | None, *, exif_orientation: bool = True) -> Decoded:
    """Decode a file, and fit it to the size as `limbeck.data.decoding.fitted` does.

    An array is (H, W), or (C, H, W) with at most `CHANNELS` channels; uint8 stays uint8, uint16 is divided by 65,535,
    and floats become float32.

    Args:
        label: the name of the file in messages.
        data: the bytes of the file.
        size: height and width; None: its own.
        exif_orientation: turn an image file as its EXIF data says.

    Raises:
        LimbeckError: the file cannot be read.
    """
    if data.startswith(npy.MAGIC_PREFIX):
        pixels = _array(label, data)
        return Decoded(pixels if size is None else fitted_channels(pixels, size), False)
    image, turned = picture(label, data, least=size, exif_orientation=exif_orientation)
    return Decoded(numpy.asarray(image if size is None else fitted(image, size)), turned)


def looked_at(label: str, data: bytes, size: int, *, exif_orientation: bool = True) -> Header:
    """Read the header of a file of ``size`` bytes from its beginning.

    Raises:
        LimbeckError: the header cannot be read.
    """
    if not data.startswith(npy.MAGIC_PREFIX):
        return header(label, data, exif_orientation=exif_orientation)
    (channels, height, width), dtype = _array_header(label, data, size)
    return Header((height, width), False, channels, dtype != numpy.uint8)


def converted(label: str, pixels: Pixels, channels: int, *, deep: bool) -> Pixels:
    """Give pixels the channels and the type of a data set: (H, W, C), float32 if ``deep``, else uint8.

    Raises:
        LimbeckError: there are other channels, colours where all should be grey, or more bits.
    """
    if pixels.dtype == numpy.uint8 and deep:
        pixels = pixels / numpy.float32(255)
    elif pixels.dtype != numpy.uint8 and not deep:
        raise LimbeckError(f"{label} has more than 8 bits a channel, but those that were checked when loading do not")
    grid = pixels if pixels.ndim == 3 else pixels[..., None]
    if channels == 1 and grid.shape[2] == 3:
        if not is_grey(grid):
            raise LimbeckError(f"{label} is in colour, but the images that were checked when loading are all grey")
        return grid[..., :1]
    if grid.shape[2] not in ((1, 3) if channels == 3 else (channels,)):
        raise LimbeckError(f"{label} has {grid.shape[2]} channels; allowed are {channels}, as the first image has")
    return numpy.broadcast_to(grid, (*grid.shape[:2], channels))


def fitted_channels(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Fit each channel of (H, W) or (H, W, C) to the size as `limbeck.data.decoding.fitted` does."""
    if pixels.shape[:2] == size:
        return pixels
    if pixels.ndim == 2:
        return numpy.asarray(fitted(Image.fromarray(pixels), size))
    channels = [fitted_channels(pixels[..., number], size) for number in range(pixels.shape[2])]
    return numpy.stack(channels, axis=2)


def as_tensor(pixels: Pixels) -> Tensor:
    """Copy pixels (H, W) or (H, W, C) to a tensor (C, H, W)."""
    return torch.from_numpy(numpy.array(pixels, order="C")).view(*pixels.shape[:2], -1).permute(2, 0, 1)


def _array(label: str, data: bytes) -> Pixels:
    (channels, _, _), dtype = _array_header(label, data, len(data))
    try:
        values = npy.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy raises anything for a damaged file
        raise LimbeckError(f"{label} cannot be read as an array: {error}") from error
    if dtype == numpy.uint16:
        values = values / numpy.float32(65_535)
    elif dtype != numpy.uint8:
        with numpy.errstate(over="ignore"):  # it is an error below
            values = values.astype(numpy.float32)
    if not numpy.isfinite(values).all():
        raise LimbeckError(f"{label} has values that are NaN, infinite or too large for float32")
    grid: Pixels = values.reshape(values.shape[-2:]) if channels == 1 else values.transpose(1, 2, 0)
    return grid


def _array_header(label: str, data: bytes, size: int) -> tuple[tuple[int, int, int], "numpy.dtype[numpy.generic]"]:
    """The channels, height, width and type of an array."""
    try:
        shape, dtype = array_header(io.BytesIO(data), size, "of the file")
    except Exception as error:  # numpy raises anything for a damaged header
        raise LimbeckError(f"{label} cannot be read as an array: {error}") from error
    whole = (1, *shape) if len(shape) == 2 else shape
    if len(whole) != 3 or whole[0] > CHANNELS or min(whole) < 1:
        raise LimbeckError(f"{label} has shape {shape}; allowed are (H, W) and (C, H, W) with 1 to {CHANNELS} channels")
    if whole[1] * whole[2] > bounds.PIXELS:
        raise LimbeckError(f"{label} has {whole[1] * whole[2]:,} pixels; allowed are {bounds.PIXELS:,}")
    dtype = dtype.newbyteorder("=")
    if dtype not in _TYPES:
        raise LimbeckError(f"{label} has values of {dtype}; allowed are {', '.join(_TYPES)}")
    return (whole[0], whole[1], whole[2]), dtype
