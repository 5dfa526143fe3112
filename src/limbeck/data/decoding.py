"""The bytes of an image file to pixels."""

import io
import struct
from typing import Any, TypeAlias

import numpy
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from limbeck.core import LimbeckError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""The names of image files end like this, in small or capital letters."""

Pixels: TypeAlias = NDArray[numpy.uint8]  # (H, W), or (H, W, 3) of a colour image

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def decode(label: str, data: bytes, *, least: tuple[int, int] | None = None) -> Image.Image:
    """Decode a file to an image of mode L, if it is grey, or RGB; transparency is dropped.

    It is as it lies in the file, whatever orientation its EXIF data tells.

    Args:
        label: what messages call the file.
        data: its bytes.
        least: height and width that it will be made smaller to. A JPEG is decoded at a half, a quarter or an eighth of
            its size, which is faster, where that still has twice these; as Pillow's own thumbnails are.

    Raises:
        LimbeckError: it is no image that Pillow can read, or has more than 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if least is not None:
                image.draft(None, (2 * least[1], 2 * least[0]))
            mode, picture = image.mode, _eight_bits(image)
    except _UNREADABLE as error:
        raise LimbeckError(f"{label} cannot be read as an image: {error}") from error
    if picture is None:
        raise LimbeckError(
            f"{label} has more than 8 bits a channel (and Pillow's mode {mode}); allowed are images of at most 8"
        )
    return picture


def stretched(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The whole image at this height and width, whatever its proportions (bilinear, antialiased)."""
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The greatest part around the centre that has the proportions of this height and width, at that size.

    This is a resize until the image just covers the size, and a centre crop (bilinear, antialiased).
    """
    return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BILINEAR)


def is_grey(pixels: Pixels) -> bool:
    """Whether it has one channel, or equal ones: webp and gif have no other way to store a grey image."""
    return pixels.ndim == 2 or bool((pixels == pixels[..., :1]).all())


def _deeper(image: ImageFile.ImageFile) -> bool:
    """Whether it has more than 8 bits a channel. Of colour the header alone tells it: Pillow gives the upper 8."""
    if image.mode.startswith(("I", "F")):
        return True
    if isinstance(image, TiffImageFile):
        return bool(max(image.tag_v2.get(BITSPERSAMPLE, (1,))) > 8)
    # What Pillow's decoders are told: a PNG's layout such as RGB;16B, a PPM's layout and greatest value.
    told: list[tuple[str, Any]] = [(name, how) for name, _, _, how in image.tile]
    return any(str(how).endswith(";16B") or (name.startswith("ppm") and how[1] > 255) for name, how in told)


def _eight_bits(image: ImageFile.ImageFile) -> Image.Image | None:
    if _deeper(image):
        return None
    if image.mode in ("1", "L", "LA"):
        return image.convert("L")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA").convert("RGB")  # straight to RGB it warns of a transparent palette
    return image.convert("RGB")
