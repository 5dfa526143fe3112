"""Images of more than 8 bits a channel, and arrays in files."""

import io
import struct

import numpy
import pytest
import torch
from PIL import Image

from limbeck.core import LimbeckError
from limbeck.data import Batches, load
from limbeck.data.decoding import header
from limbeck.data.decoding import picture as decode
from limbeck.data.pixels import CHANNELS, converted, decoded, fitted_channels
from limbeck.data.sources.images import read_images
from limbeck.data.trees import Reader
from tests.data.image_files import encoded, picture, tree, two_classes

WIDE = numpy.array([[0, 1000, 65_535], [7, 256, 40_000]], dtype=numpy.uint16)
FLOATS = numpy.array([[0.0, 0.25], [0.5, 1.0]], dtype=numpy.float32)


def npy(values, **options):
    stream = io.BytesIO()
    numpy.save(stream, values, **options)
    return stream.getvalue()


def tiff_of_12_bits():
    """A TIFF of two grey pixels of 12 bits, 0xFFF and 0x800."""
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    listed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 12) + b"\xff\xf8\x00\0" + struct.pack("<H", len(tags)) + listed + bytes(4)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(Image.fromarray(WIDE)), WIDE / 65_535),
        (encoded(Image.fromarray(WIDE), "tiff"), WIDE / 65_535),
        (encoded(Image.fromarray(WIDE), "ppm"), WIDE / 65_535),
        (b"P5 2 1 1000\n" + struct.pack(">HH", 1000, 250), numpy.array([[1, 0.25]])),
        (encoded(Image.fromarray(WIDE.astype("int32") * 65_537), "tiff"), None),
        (encoded(Image.fromarray(WIDE.astype("int32") * 1000), "tiff"), WIDE * 1000.0 / (2**32 - 1)),
        (encoded(Image.fromarray(FLOATS), "tiff"), FLOATS),
        (tiff_of_12_bits(), numpy.array([[1, 2048 / 4095]])),
    ],
)
def test_a_grey_image_of_more_than_8_bits_has_values_from_0_to_1(data, expected):
    if expected is None:
        with pytest.raises(LimbeckError, match=r"it has values from -.* to .*; allowed are 0 to 4294967295"):
            decode("x", data)
        return
    image = decode("x", data).image
    assert image.mode == "F"
    numpy.testing.assert_allclose(numpy.asarray(image), expected, atol=1e-4)
    assert header("x", data).deep


@pytest.mark.parametrize("value", [-0.1, 1.1, numpy.nan, numpy.inf])
def test_a_float_image_that_is_not_between_0_and_1_is_refused(value):
    with pytest.raises(LimbeckError, match=r"^x cannot be read as an image: it has values from .*; allowed are 0 to 1"):
        decode("x", encoded(Image.fromarray(numpy.where(FLOATS == 1, numpy.float32(value), FLOATS)), "tiff"))


def test_one_image_of_more_bits_makes_all_of_them_floats_and_a_note_says_so(tmp_path):
    files = two_classes() | {"cat/z.png": Image.fromarray(numpy.full((4, 4), 13_107, dtype=numpy.uint16))}
    data = load("folder", path=tree(tmp_path / "set", files), normalise=False)
    assert data.train.inputs.dtype == torch.float32
    found = torch.cat([part.inputs for part in (data.train, data.validation, data.test)])[:, 0, 0, 0]
    expected = [20 * i / 255 for i in range(10)] * 2 + [0.2]
    torch.testing.assert_close(found.sort().values, torch.tensor(expected).sort().values)
    note = (
        "1 of 21 images have more than 8 bits a channel: all are float32, with integers divided by the value of white"
    )
    assert note in data.notes


@pytest.mark.parametrize("deep_first", [True, False])
def test_bits_and_colours_may_come_in_any_order(tmp_path, deep_first):
    names = ["b.png", "a.png"] if deep_first else ["a.png", "b.png"]
    colour, deep = picture(200, mode="RGB"), Image.fromarray(numpy.full((4, 4), 13_107, dtype=numpy.uint16))
    reader = Reader(tree(tmp_path / "set", {"a.png": colour, "b.png": deep}))
    pixels, _ = read_images(reader, names, None)
    found = dict(zip(names, pixels[:, :, 0, 0], strict=True))
    torch.testing.assert_close(found["a.png"], torch.tensor([200.0, 0.0, 55.0]) / 255)
    torch.testing.assert_close(found["b.png"], torch.full((3,), 0.2))


def test_streamed_images_of_more_bits_are_those_in_memory(tmp_path):
    deep = {f"{name}/{i}.png": Image.fromarray(WIDE // (i + 1)) for name in ("ant", "cat") for i in range(10)}
    held, streamed = (load("folder", path=tree(tmp_path / "set", deep), streaming=on) for on in (False, True))
    assert streamed.train.inputs.dtype == torch.float32
    assert torch.equal(streamed.train.inputs[torch.arange(len(held.train))], held.train.inputs)
    assert (streamed.mean, streamed.std) == (pytest.approx(held.mean), pytest.approx(held.std))
    one, other = (
        next(Batches(data.train, batch_size=4, seed=0, mean=held.mean, std=held.std)(0)) for data in (held, streamed)
    )
    assert torch.equal(one.inputs, other.inputs)
    with pytest.raises(LimbeckError, match="transform is 'random_resized_crop', which takes images of 8 bits"):
        load("folder", path=tmp_path / "set", streaming=True, transform="random_resized_crop")


def test_a_streamed_image_of_more_bits_among_others_that_were_not_looked_at_is_refused():
    with pytest.raises(LimbeckError, match=r"^x has more than 8 bits a channel, but those that were checked"):
        converted("x", FLOATS, 1, deep=False)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (numpy.arange(60, dtype=numpy.uint8).reshape(5, 3, 4), None),
        (WIDE, WIDE[None] / 65_535),
        (WIDE.astype(">u2"), WIDE[None] / 65_535),
        (WIDE.astype("float64"), WIDE[None]),
        (numpy.asfortranarray(numpy.arange(24.0).reshape(2, 3, 4)), None),
    ],
)
def test_an_array_in_a_file_is_an_image_of_any_channels(values, expected):
    found = decoded("x", npy(values), values.shape[-2:]).pixels
    grid = found[None] if found.ndim == 2 else found.transpose(2, 0, 1)
    numpy.testing.assert_allclose(grid, values if expected is None else expected, rtol=1e-6)
    assert found.dtype == (numpy.uint8 if values.dtype == numpy.uint8 else numpy.float32)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("place", ["set", "set.zip"])
def test_class_folders_may_hold_arrays_of_many_channels(tmp_path, place, streaming):
    files = {f"{name}/{i}.npy": npy(numpy.full((5, 6, 8), i / 7)) for name in ("ant", "cat") for i in range(10)}
    path = tree(tmp_path / place, files)
    data = load("folder", path=path, size=(3, 4), validation=2, normalise=False, streaming=streaming)
    assert data.shape == (5, 3, 4)
    inputs = data.train.inputs[torch.arange(len(data.train))]
    expected = torch.tensor([int(name[-5]) / 7 for name in data.train.names])
    torch.testing.assert_close(inputs, expected[:, None, None, None].expand_as(inputs))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            npy(numpy.zeros((CHANNELS + 1, 4, 4))),
            r"has shape \(17, 4, 4\); allowed are \(H, W\) and \(C, H, W\) w",
        ),
        (npy(numpy.zeros(4)), r"has shape \(4,\)"),
        (npy(numpy.zeros((4, 0))), r"has shape \(4, 0\)"),
        (npy(numpy.zeros((4, 4), dtype="int64")), "has values of int64; allowed are uint8, uint16, float16"),
        (npy(numpy.full((4, 4), numpy.nan)), "has values that are NaN, infinite or too large"),
        (npy(numpy.array([[object()]]), allow_pickle=True), "holds Python objects, which would be unpickled"),
        (npy(numpy.zeros((4, 4)))[:-1], "but its size in bytes is another"),
        (npy(numpy.zeros((4, 4))) + b"0", "but its size in bytes is another"),
        (npy(numpy.zeros((4, 4)))[:20], "cannot be read as an array"),
    ],
)
def test_an_array_that_is_no_image_is_refused_by_name(data, message):
    with pytest.raises(LimbeckError, match=f"^a/x.npy {message}|^a/x.npy cannot be read as an array: .*{message}"):
        decoded("a/x.npy", data, (4, 4))


def test_arrays_of_different_channels_are_refused(tmp_path):
    files = two_classes() | {"cat/z.npy": npy(numpy.zeros((5, 4, 4), dtype=numpy.uint8))}
    with pytest.raises(LimbeckError, match=r"cat/z.npy in .* has 5 channels; allowed are 1, as the first image has"):
        load("folder", path=tree(tmp_path / "set", files))


def test_every_channel_is_fitted_as_an_image_is():
    grid = numpy.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=numpy.uint8)
    expected = numpy.asarray(Image.fromarray(grid).crop((0, 0, 12, 9)).resize((4, 3), Image.Resampling.BILINEAR))
    assert numpy.array_equal(fitted_channels(grid, (3, 4)), expected)


def test_images_of_another_size_than_the_first_are_not_enlarged_to_it(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "limbeck.data.pixels.fitted", lambda image, size: sizes.append(size) or image.resize(size[::-1])
    )
    files = {"0.png": picture(size=(40, 40)), **{f"{i}.png": picture(size=(8, 6)) for i in range(1, 5)}}
    assert read_images(Reader(tree(tmp_path / "set", files)), sorted(files), None)[0].shape == (5, 1, 6, 6)
    assert set(sizes) == {(6, 6)}
