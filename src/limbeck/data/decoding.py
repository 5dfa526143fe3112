"""Decode image files."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, TILELENGTH, TILEWIDTH, TiffImageFile

from limbeck.core import LimbeckError
from limbeck.data import bounds

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".npy")
"""The endings of the names of image files, in lower or upper case."""

Pixels: TypeAlias = NDArray[numpy.uint8 | numpy.float32]  # (H, W) of one channel, or (H, W, C) of several

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")  # others may start programs, such as EPS
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What an EXIF orientation means; 1 means that nothing is turned."""

_TURNED_BY = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})  # where Pillow keeps it


class Picture(NamedTuple):
    """A decoded image of mode L or RGB; of mode F, with values from 0 to 1, if it has more than 8 bits."""

    image: Image.Image
    turned: bool  # because its EXIF data says so


class Header(NamedTuple):
    """What the header of an image file says."""

    size: tuple[int, int]  # height and width after it is turned
    turned: bool
    channels: int = 3  # of an array; the most that an image file may have
    deep: bool = False  # whether it has more than 8 bits a channel


def picture(label: str, data: bytes, *, least: tuple[int, int] | None = None, exif_orientation: bool = True) -> Picture:
    """Decode a file to an image of mode L, if it is grey, or RGB; of several, the first. Transparency is dropped.

    A grey image of more than 8 bits gets mode F: whole numbers are divided by that of white, so that values are from 0
    to 1, and floats must be. EXIF data that cannot be read is ignored.

    Args:
        label: the name of the file in messages.
        data: the bytes of the file.
        least: height and width to which the image will be reduced. A JPEG is decoded at a half, a quarter or an eighth
            of its size, which is faster, if that is still twice these; Pillow's thumbnails do the same.
        exif_orientation: turn and mirror the image as its EXIF data says.

    Raises:
        LimbeckError: Pillow cannot read the file; the image has more than 8 bits in each of several channels, of which
            Pillow reads 8; a value is not between black and white; it is larger than `limbeck.data.bounds` allows.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image)
            orientation = 1 if image.format == "PNG" else _orientation(image)
            if least is not None:
                height, width = least if orientation < 5 or not exif_orientation else least[::-1]
                image.draft(None, (2 * width, 2 * height))
            pixels = loaded(image)
            if image.format == "PNG":  # the EXIF data may come after the pixels
                orientation = _orientation(image)
            method = _to_turn(image, orientation, exif_orientation)
    except Exception as error:  # Pillow raises anything for a damaged file
        raise _unreadable(label, data, error) from error
    if method is not None:
        pixels = pixels.transpose(method)
        pixels.info = {name: value for name, value in pixels.info.items() if name not in _TURNED_BY}  # else: twice
    return Picture(pixels, exif_orientation and orientation != 1)


def mask(label: str, data: bytes, *, size: tuple[int, int], of: tuple[int, int]) -> NDArray[numpy.uint8]:
    """Decode a PNG whose pixels are class indices to (H, W), fitted as `fitted` by choosing the nearest pixels.

    Args:
        label: the name of the file in messages.
        data: the bytes of the file.
        size: height and width of the result.
        of: height and width that the file must have.

    Raises:
        LimbeckError: Pillow cannot read the file; it is not grey with 8 bits, nor a palette; it has another size, or is
            larger than `limbeck.data.bounds` allows.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            _check_size(image)
            if image.size[::-1] != of:
                raise LimbeckError(f"it has {image.height} x {image.width} pixels, but its image has {of[0]} x {of[1]}")
            layout = str(image.tile[0][3]) if image.tile else image.mode
            if image.mode not in ("L", "P") or layout in ("L;2", "L;4"):  # Pillow would stretch the values of L;4
                raise LimbeckError(f"its pixels are {layout}; allowed are 8-bit grey (L) and palettes (P)")
            chosen = ImageOps.fit(image, size[::-1], Image.Resampling.NEAREST)
            return numpy.array(chosen, dtype=numpy.uint8)
    except Exception as error:  # Pillow raises anything for a damaged file
        reason = "the PNG is damaged" if isinstance(error, UnidentifiedImageError) else error
        raise LimbeckError(f"{label} cannot be read as a mask: {reason}") from error


def moved(points: NDArray[numpy.float32], size: tuple[int, int], of: tuple[int, int]) -> NDArray[numpy.float32]:
    """Points (L, 2), x and y in pixels from the left and the upper edge, after an image of size ``of`` is `fitted`."""
    scale = max(size[0] / of[0], size[1] / of[1])
    left, top = (of[1] - size[1] / scale) / 2, (of[0] - size[0] / scale) / 2
    return ((points - (left, top)) * scale).astype(numpy.float32)


def header(label: str, data: bytes, *, exif_orientation: bool = True) -> Header:
    """Read the header of a file, or of the beginning of a file, without decoding it; otherwise as `picture`."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image)
            unknown = image.format == "PNG" and "exif" not in image.info  # it may be after the pixels
            orientation = 1 if unknown else _orientation(image)
            sideways = orientation >= 5 and exif_orientation != (image.format == "TIFF")
            width, height = image.size if not sideways else image.size[::-1]
            return Header((height, width), exif_orientation and orientation != 1, deep=_white(image) is not None)
    except Exception as error:  # Pillow raises anything for a damaged file
        raise _unreadable(label, data, error) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Pillow's warnings, of which there is one for every oddity in a file. Not thread-safe."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The largest centred part that has the proportions of this height and width, resized to them.

    This is a resize until the image just covers the size, and a centre crop (bilinear, antialiased). An image of this
    size is not changed.
    """
    return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BILINEAR)


def is_grey(pixels: Pixels) -> bool:
    """Whether there is one channel, or all three are equal: webp and gif cannot store a grey image in another way."""
    return pixels.ndim == 2 or (pixels.shape[2] == 3 and bool((pixels == pixels[..., :1]).all()))


def _unreadable(label: str, data: bytes, error: Exception) -> LimbeckError:
    reason = str(error)
    if not data:
        reason = "the file is empty"
    elif isinstance(error, UnidentifiedImageError):
        reason = f"its header is damaged, or it has another format; allowed are {', '.join(_FORMATS)}"
    return LimbeckError(f"{label} cannot be read as an image: {reason}")


def _check_size(image: ImageFile.ImageFile) -> None:
    """Check the size that a header declares, before memory is allocated for it."""
    pixels = image.width * image.height
    if isinstance(image, TiffImageFile):
        pixels = max(pixels, image.tag_v2.get(TILEWIDTH, 1) * image.tag_v2.get(TILELENGTH, 1))
    most = min([bounds.PIXELS, *(bounds.SLOW_PIXELS[tile[0]] for tile in image.tile if tile[0] in bounds.SLOW_PIXELS)])
    if pixels > most:
        raise LimbeckError(f"it declares {pixels:,} pixels ({image.height} x {image.width}); allowed are {most:,}")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (not turned) if the EXIF data has none or cannot be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises anything for damaged EXIF data
        return 1
    return found if found in _TURNS else 1


def _to_turn(image: ImageFile.ImageFile, orientation: int, wanted: bool) -> Image.Transpose | None:
    """How to turn the decoded image: Pillow always turns a TIFF when it decodes it."""
    if isinstance(image, TiffImageFile):
        return None if wanted else _TURNS.get({6: 8, 8: 6}.get(orientation, orientation))
    return _TURNS.get(orientation) if wanted else None


def _white(image: Image.Image) -> float | None:
    """The value of white in an image of more than 8 bits a channel, which its header says; None if it has at most 8.

    Raises:
        LimbeckError: it has several channels, of which Pillow reads 8 bits.
    """
    if image.mode == "F":
        return 1.0
    if image.mode.startswith("I"):
        return 2.0 ** (image.tag_v2.get(BITSPERSAMPLE, (16,))[0] if isinstance(image, TiffImageFile) else 16) - 1
    if not isinstance(image, ImageFile.ImageFile):
        return None  # it is decoded
    # The arguments of Pillow's decoders: the layout of a PNG, such as RGB;16B; the layout and maximum of a PPM.
    told: list[tuple[str, Any]] = [(name, how) for name, _, _, how in image.tile]
    deep = any(str(how).endswith(";16B") or (name.startswith("ppm") and how[1] > 255) for name, how in told)
    if deep or (isinstance(image, TiffImageFile) and max(image.tag_v2.get(BITSPERSAMPLE, (1,))) > 8):
        raise LimbeckError(
            f"it has more than 8 bits in each of several channels, of which Pillow reads 8 (mode {image.mode}); "
            "allowed are 8 bits, or the pixels as a .npy file of shape (C, H, W)"
        )
    return None


def loaded(image: Image.Image) -> Image.Image:
    """Load an image and convert it as `picture` does.

    Raises:
        LimbeckError: it has more than 8 bits in each of several channels, or a value that is not between black and
            white.
    """
    white = _white(image)
    image.load()
    if white is not None:
        values = numpy.asarray(image, dtype=numpy.float32) / numpy.float32(white)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN is refused too
            least, most = (white * float(value) for value in (values.min(), values.max()))
            raise LimbeckError(f"it has values from {least:.6g} to {most:.6g}; allowed are 0 to {white:.10g}")
        return Image.fromarray(values)
    if image.mode in ("L", "RGB"):
        return image  # a copy would take the same memory again
    if image.mode in ("1", "LA"):
        return image.convert("L")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA").convert("RGB")  # directly, Pillow may warn of the palette
    return image.convert("RGB")
