"""What an image file may do: turn, lie, and be damaged."""

import io
import random
import struct
import zlib

import numpy
import pytest
from PIL import Image, ImageOps

from limbeck.core import LimbeckError
from limbeck.data import bounds
from limbeck.data.decoding import header, picture, quiet

PIXELS = Image.fromarray((numpy.arange(18, dtype=numpy.uint8) * 10).reshape(2, 3, 3))


def with_orientation(kind, orientation, image=PIXELS, **options):
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x112] = orientation
    image.save(stream, kind, exif=exif, **options)
    return stream.getvalue()


KINDS = [
    ("png", {}),
    ("webp", {"lossless": True}),
    ("jpeg", {"quality": 100, "subsampling": 0}),
    ("tiff", {}),
    ("tiff", {"compression": "tiff_lzw"}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_data_says_unless_this_is_not_wanted(kind, options, orientation):
    data = with_orientation(kind, orientation, **options)
    as_it_lies = numpy.asarray(picture("x", with_orientation(kind, 1, **options)).image)
    expected = numpy.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    image, turned = picture("x", data)
    assert numpy.array_equal(numpy.asarray(image), expected)
    assert numpy.array_equal(numpy.asarray(picture("x", data, exif_orientation=False).image), as_it_lies)
    assert header("x", data)[:2] == (expected.shape[:2], turned)
    assert header("x", data, exif_orientation=False)[:2] == (as_it_lies.shape[:2], False)
    assert turned == (orientation > 1)
    assert numpy.array_equal(numpy.asarray(ImageOps.exif_transpose(image.copy())), expected)  # it is not turned twice


def test_a_jpeg_that_is_turned_is_decoded_smaller_to_what_is_needed_once_it_is_turned():
    data = with_orientation("jpeg", 6, Image.new("RGB", (320, 256)))
    assert picture("x", data, least=(80, 64)).image.size == (128, 160)
    assert picture("x", data, least=(80, 64), exif_orientation=False).image.size == (320, 256)
    assert picture("x", data, least=(64, 80), exif_orientation=False).image.size == (160, 128)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_damaged_exif_data_never_fails_an_image(kind):
    exif = Image.Exif()
    exif[0x112], exif[0x10F] = 6, "Maker"
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    whole, draw = exif.tobytes(), random.Random(0)
    for number in range(150):
        damaged = bytearray(whole[: draw.randrange(7, len(whole))] if number % 3 == 0 else whole)
        for _ in range(draw.randint(1, 8)):
            damaged[draw.randrange(6, len(damaged))] = draw.randrange(256)
        stream = io.BytesIO()
        PIXELS.save(stream, kind, exif=bytes(damaged))
        with quiet():
            assert sorted(picture("x", stream.getvalue()).image.size) == [2, 3]
            assert sorted(header("x", stream.getvalue()).size) == [2, 3]


def tiff(*tags):
    """A grey TIFF of 2 x 3 pixels with these tags in the place of, or beside, its own."""
    own = {256: 3, 257: 2, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 2, 279: 6} | dict(tags)
    listed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(own.items()))
    return b"II*\0" + struct.pack("<I", 16) + b"abcdef\0\0" + struct.pack("<H", len(own)) + listed + bytes(300)


@pytest.mark.parametrize("place", [0, 8, 100, 2**31, 2**32 - 1])
def test_exif_data_of_a_tiff_that_is_not_where_it_should_be_never_fails_it(place):
    with quiet():
        assert picture("x", tiff((274, 6), (0x8769, place))).image.size == (2, 3)


def chunk(tag, data):
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))


def png(width, height, rows=b"", beside=b""):
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + beside + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def gif(screen, frame):
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6)
    return head + b"\x2c" + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00;"


def bmp(width, height, *, packed=0, bits=24):
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, packed, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info + bytes(1024)


BOMB = zlib.compress(bytes(2_000_000), 9)
LIES = {
    "png of 13,000 x 13,000": png(13_000, 13_000),
    "png with a great text": png(1, 1, bytes(4), chunk(b"zTXt", b"a\0\0" + BOMB)),
    "png with a great profile": png(1, 1, bytes(4), chunk(b"iCCP", b"a\0\0" + BOMB)),
    "gif with a great screen": gif((65_535, 65_535), (2, 2)),
    "gif with a great frame": gif((2, 2), (60_000, 60_000)),
    "bmp": bmp(60_000, 60_000),
    "bmp upside down": bmp(60_000, -60_000),
    "bmp that is decoded slowly": bmp(7000, 7000, packed=1, bits=8),
    "ppm": b"P6 9000 9000 255\n",
    "ppm that is decoded slowly": b"P5 3000 3000 100\n",
    "ppm of text": b"P3 3000 3000 255\n" + b"1 " * 1000,
    "ppm of a size that is no number": b"P6 999999999999999999 9 255\n",
    "tiff": tiff((256, 60_000), (257, 60_000)),
    "tiff of great tiles": tiff((322, 32_768), (323, 65_000), (324, 200), (325, 16)),
    "tiff of many samples": tiff((277, 60_000)),
    "webp": b"RIFF\x24\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0" + b"\xff" * 6 + bytes(20),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "nothing": b"",
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies_is_refused_by_name(name):
    with quiet(), pytest.raises(LimbeckError, match=r"^a/x\.png in set cannot be read as an image: "):
        picture("a/x.png in set", LIES[name])


def test_an_image_is_refused_by_what_it_declares():
    data = png(13_000, 13_000)
    with (
        quiet(),
        pytest.raises(LimbeckError, match=r"it declares 169,000,000 pixels \(13000 x 13000\); allowed are 64,000,000"),
    ):
        header("x", data)


def test_of_an_image_that_moves_the_first_frame_is_taken_whatever_follows():
    stream = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (10, 200, 90)]
    frames[0].save(stream, "webp", save_all=True, append_images=frames[1:], lossless=True)
    assert picture("x", stream.getvalue()).image.getpixel((0, 0)) == (10, 0, 0)


def test_the_bound_on_pixels_is_one_that_a_file_within_its_own_bound_can_hold():
    assert 4 * bounds.PIXELS <= bounds.FILE_BYTES


def test_an_image_of_another_format_is_told_the_formats():
    with pytest.raises(
        LimbeckError, match="or it has another format; allowed are PNG, JPEG, BMP, WEBP, GIF, TIFF, PPM"
    ):
        picture("x", b"%!PS-Adobe-3.0")
