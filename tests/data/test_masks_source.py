"""Images with masks of the same names."""

import io
import zlib

import numpy
import pytest
import torch
from PIL import Image

from limbeck.core import LimbeckError
from limbeck.data import load
from tests.data.image_files import encoded, picture, tree


def pair(number, top="", size=(8, 6), name=None):
    """An image and its mask; both show the same rectangle."""
    pixels = numpy.zeros(size[::-1], dtype=numpy.uint8)
    pixels[: 1 + number % 3, 2:] = 1 + number % 2
    name = name or f"{number:02}"
    files = {"images": Image.fromarray(pixels * 100), "masks": Image.fromarray(pixels)}
    return {f"{top}{folder}/{name}.png": image for folder, image in files.items()}


def pairs(top="", count=20, **options):
    return {name: image for number in range(count) for name, image in pair(number, top, **options).items()}


@pytest.mark.parametrize("place", ["scenes", "scenes.zip"])
@pytest.mark.parametrize("top", ["", "scenes/"])
def test_every_image_has_the_mask_of_its_name(tmp_path, place, top):
    data = load("masks", path=tree(tmp_path / place, pairs(top)), normalise=False)
    assert (data.task, data.classes, data.shape) == ("segmentation", ("0", "1", "2"), (1, 6, 8))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [14, 2, 4]
    for part in (data.train, data.validation, data.test):
        assert torch.equal(part.inputs[:, 0], part.targets * 100)
    assert data.origins["train"] == "the images of " + (f"{place}/{top}".rstrip("/")) + (
        ", without the samples of test and validation"
    )
    assert data.notes == ()


def test_splits_limit_and_names(tmp_path):
    files = pairs("train/", 9) | pairs("val/", 3) | pairs("TEST/", 4)
    data = load("masks", path=tree(tmp_path / "set", files), limit=3, classes=("sky", "car", "road"))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [3, 3, 3]
    assert data.classes == ("sky", "car", "road")
    assert data.origins["test"] == "folder TEST/ of set; 3 of 4 kept by limit"
    assert all(name.startswith("train/images/") for name in data.train.names)


def test_other_folders_and_palettes(tmp_path):
    files = {}
    for number in range(10):
        image, mask = pair(number).values()
        paletted = mask.copy()
        paletted.putpalette([value for colour in range(256) for value in (colour, 255 - colour, 7)])
        files |= {f"jpg/a/{number}.jpg": encoded(image, "jpeg"), f"labels/a/{number}.png": paletted}
    data = load("masks", path=tree(tmp_path / "set", files), image_folder="jpg", mask_folder="labels/")
    assert data.train.targets.unique().tolist() == [0, 1, 2]
    assert data.train.names[0].startswith("jpg/a/")


@pytest.mark.parametrize("size", [None, (3, 3), (12, 5)])
def test_a_mask_is_cut_out_as_its_image(tmp_path, size):
    files = {}
    for number in range(10):
        half = numpy.zeros((20, 40 + 2 * number), dtype=numpy.uint8)
        half[:, half.shape[1] // 2 :] = 1
        files |= {f"images/{number}.png": Image.fromarray(half * 255), f"masks/{number}.png": Image.fromarray(half)}
    data = load("masks", path=tree(tmp_path / "set", files), size=size, normalise=False)
    sides = size or (20, 20)
    assert data.train.targets.shape[1:] == sides
    close = (data.train.inputs[:, 0].float() / 255 - data.train.targets).abs() <= 0.51
    assert close.all()


def test_pixels_that_do_not_count(tmp_path):
    files = pairs(count=5) | {"masks/00.png": picture(255, (8, 6))}
    data = load("masks", path=tree(tmp_path / "set", files), validation=0)
    assert data.classes == ("0", "1", "2")
    both = torch.cat([data.train.targets, data.test.targets])
    assert int((both == 255).all(dim=2).all(dim=1).sum()) == 1


def two_bits():
    stream = io.BytesIO()
    Image.fromarray(numpy.zeros((6, 8), dtype=numpy.uint8)).save(stream, "png")
    return stream.getvalue().replace(b"\x08\x00\x00\x00\x00", b"\x02\x00\x00\x00\x00", 1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"masks/00.png": picture(0, (6, 8))}, "masks/00.png in .*it has 8 x 6 pixels, but its image has 6 x 8"),
        ({"masks/00.png": picture(0, (8, 6), "RGB")}, "its pixels are RGB; allowed are 8-bit grey"),
        ({"masks/00.png": Image.new("1", (8, 6))}, "its pixels are 1; allowed are 8-bit grey"),
        (
            {"masks/00.png": encoded(picture(0, (8, 6)), "jpeg")},
            r"1 \(masks/00.png\) of 4 masks are no PNG: save",
        ),
        ({"masks/00.png": encoded(picture(0, (8, 6)), "png")[:20]}, "masks/00.png in .* cannot be read as a mask"),
        ({"masks/00.png": picture(7, (8, 6))}, "has the class index 7; allowed are 0 to 2, and 255"),
        ({"masks/09.png": picture(1, (8, 6))}, r"images/ has no file for 1 \(09\) of the names in the other folder"),
        ({"images/09.png": picture(1, (8, 6))}, r"masks/ has no file for 1 \(09\) of the names in the other folder"),
        ({"images/00.jpg": picture(1, (8, 6))}, r"more than one file in images/ with the name 1 \(00\)"),
    ],
)
def test_what_does_not_fit_is_an_error(tmp_path, files, message):
    path = tree(tmp_path / "set", pairs(count=4) | files)
    with pytest.raises(LimbeckError, match=message):
        load("masks", path=path, classes=("a", "b", "c"))


def test_grey_of_few_bits_is_an_error_because_pillow_stretches_it(tmp_path):
    with pytest.raises(LimbeckError, match="its pixels are L;2; allowed"):
        load("masks", path=tree(tmp_path / "set", pairs(count=4) | {"masks/00.png": fixed_header(two_bits())}))


def fixed_header(png):
    """The PNG with the right checksum of its header."""
    return png[:29] + zlib.crc32(png[12:29]).to_bytes(4, "big") + png[33:]


@pytest.mark.parametrize("lacking", ["images", "masks"])
def test_a_folder_that_is_missing_is_named(tmp_path, lacking):
    files = {name: image for name, image in pairs(count=3).items() if not name.startswith(lacking)}
    with pytest.raises(LimbeckError, match=f"has no folder {lacking}/ with images"):
        load("masks", path=tree(tmp_path / "set", {**files, "readme/a.txt": b""}))


def test_a_declared_size_that_is_too_large_is_refused_before_it_is_decoded(tmp_path):
    png = bytearray(encoded(picture(0, (8, 6))))
    png[16:24] = (9_000).to_bytes(4, "big") * 2
    with pytest.raises(LimbeckError, match="it declares 81,000,000 pixels"):
        load("masks", path=tree(tmp_path / "set", pairs(count=4) | {"masks/00.png": fixed_header(bytes(png))}))
