import numpy
import pytest
import torch
from image_files import encoded, tree
from PIL import Image

from limbeck.data import Split, load
from limbeck.data.overlap import Match, identical, similar


def images(count, seed):
    """Pictures with large shapes, as photographs have them, uint8 (N, 3, 16, 16)."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, 16, mode="bilinear") * 255).byte()


def split(inputs):
    return Split(inputs, torch.zeros(len(inputs), dtype=torch.int64))


@pytest.mark.parametrize("as_float", [False, True])
def test_identical_images_are_found_in_every_other_split(as_float):
    test, train, validation = images(6, 0), images(9, 1), images(3, 2)
    test[4], test[1] = train[7], validation[2]
    parts = {"train": train, "validation": validation, "test": test}
    found = identical({name: split(one.float() if as_float else one) for name, one in parts.items()})
    assert found == {"train": [], "validation": [], "test": [Match(1, "validation", 2), Match(4, "train", 7)]}


@pytest.mark.parametrize("form", [torch.Tensor.byte, lambda images: images.float() / 255])
def test_a_brighter_and_noisier_copy_is_nearly_identical_and_another_image_is_not(form):
    test, train = images(40, 0), images(40, 1)
    noise = torch.randint(-4, 5, train[7].shape, generator=torch.Generator().manual_seed(2))
    test[4] = (train[7].float() * 0.8 + 30 + noise).clamp(0, 255).byte()
    train, test = split(form(train)), split(form(test))
    assert identical({"train": train, "test": test})["test"] == []
    assert similar(test, {"train": train}) == [Match(4, "train", 7)]


@pytest.mark.parametrize(
    "form", [torch.Tensor.byte, lambda images: images.float() / 255, lambda images: (images.float() - 120) / 60]
)
def test_the_same_shapes_in_other_grey_values_are_another_image(form):
    test, train = images(40, 0), images(40, 1)
    test[4] = train[7] // 2 + 64
    test[5] = (0.95 * train[8] + 5).byte()
    assert similar(split(form(test)), {"train": split(form(train))}) == [Match(5, "train", 8)]


def test_images_without_contrast_and_feature_vectors_are_not_compared():
    plain = split(torch.full((4, 1, 8, 8), 7, dtype=torch.uint8))
    assert similar(plain, {"train": plain}) == []
    vectors = split(torch.zeros(4, 3))
    assert identical({"train": vectors, "test": vectors})["test"] == similar(vectors, {"train": vectors}) == []


def test_streamed_images_are_compared_by_the_bytes_of_their_files(tmp_path):
    def file(seed):
        noise = numpy.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=numpy.uint8)
        return encoded(Image.fromarray(noise), "bmp")  # longer than what is read at first

    files = {f"{part}/{name}/{i}.bmp": file(10 * i + seed) for i in range(3) for part, name, seed in KINDS}
    files["test/cat/1.bmp"] = files["train/ant/2.bmp"]
    changed = bytearray(files["train/ant/0.bmp"])
    changed[-1] ^= 1  # after the first 4 KiB
    files["test/ant/2.bmp"] = bytes(changed)
    changed[-2] ^= 1
    files["train/ant/1.bmp"] = files["test/cat/2.bmp"] = bytes(changed)  # not the first that begins like this
    path = tree(tmp_path / "set", files)
    data = load("folder", path=path, streaming=True, workers=0, validation=0)
    found = identical({"train": data.train, "test": data.test})["test"]
    assert [(data.test.names[match.place], data.train.names[match.other]) for match in found] == [
        ("test/cat/1.bmp", "train/ant/2.bmp"),
        ("test/cat/2.bmp", "train/ant/1.bmp"),
    ]


KINDS = [("train", "ant", 0), ("train", "cat", 1), ("test", "ant", 2), ("test", "cat", 3)]
