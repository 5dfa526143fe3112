"""What the splits of a folder are, and what is said of how they were found."""

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_files import encoded, picture, tree, two_classes
from PIL import Image

from limbeck.core import LimbeckError
from limbeck.data import load
from limbeck.data.sources.folders import NAMES, Tree, find_layout, split_of
from limbeck.data.sources.images import common_size


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch):
    monkeypatch.delenv("LIMBECK_DATA", raising=False)


def sizes(data):
    return [len(split) for split in (data.train, data.validation, data.test)]


# names of splits


@pytest.mark.parametrize("place", ["set", "set.zip"])
@pytest.mark.parametrize("top", ["", "photos/"])
@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "Val", "TEST"),
        ("Train", "dev", "Test"),
        ("TRAINING", "Valid", "testing"),
        ("training", "VALIDATION", "Testing"),
    ],
)
def test_the_folders_of_splits_are_known_in_any_case(train, validation, test, top, place, tmp_path):
    names = {"train": train, "validation": validation, "test": test}
    counts = {"train": 5, "validation": 2, "test": 3}
    files = {}
    for split, name in names.items():
        files |= two_classes(f"{top}{name}/", counts[split])
    data = load("folder", path=tree(tmp_path / place, files))
    assert sizes(data) == [10, 4, 6]
    assert data.classes == ("ant", "cat")
    inside = f"{place}/{top}".rstrip("/")
    assert data.origins == {split: f"folder {name}/ of {inside}" for split, name in names.items()}
    assert {name.split("/")[-3] for name in data.test.names} == {test}


@given(data=st.data(), split=st.sampled_from(sorted(NAMES)))
def test_every_name_of_a_split_is_known_however_it_is_written(data, split):
    name = data.draw(st.sampled_from(NAMES[split]))
    capitals = data.draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    written = "".join(char.upper() if large else char for char, large in zip(name, capitals, strict=True))
    assert split_of(written) == split
    assert split_of(f"{written}2") is None
    if split != "train":
        files = [f"{top}/{kind}/1.png" for top in ("train", written) for kind in ("ant", "cat")]
        layout = find_layout(Tree("set", sorted(files)))
        assert layout == ("", {"train": "train", split: written})


ADVICE = "allowed are train/, test/ and, if there is one, validation/, each with class folders"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (two_classes("train/") | two_classes("val/") | two_classes("valid/"), "val/ and valid/ are both validation"),
        (two_classes("train/") | two_classes("test/") | two_classes("Test/"), "Test/ and test/ are both test"),
        (two_classes("train/") | two_classes("Training/"), "Training/ and train/ are both train"),
        (
            two_classes("train/") | two_classes("tests/"),
            r"tests/ beside train/ is not a split; allowed are train/, .* dev/",
        ),
        (two_classes("train/") | {"notes/x.txt": b"", "docs/": b""}, r"docs/ and 1 more beside train/ is not a split"),
        (two_classes("train/") | {"bus/1.png": picture()}, "bus/ beside train/ is not a split"),
        (two_classes("train/") | {"1.png": picture(), "2.png": picture()}, r"1.png and 1 more, in no class folder"),
        (two_classes("a/train/") | {"a/1.png": picture()}, "a/1.png, in no class folder"),
        (two_classes("train/") | {"Test/1.png": picture()}, "Test/1.png, in no class folder; allowed are train/"),
        (two_classes("train/") | two_classes("test/") | {"test/1.png": picture()}, "test/1.png, in no class folder"),
        ({"train/1.png": picture(), "test/1.png": picture()}, "test/1.png and 1 more, in no class folder"),
        ({"train/1.png": picture()}, "train/1.png, in no class folder"),
        (two_classes("train/") | {"Test/": b""}, "train/ and Test/ must .*; only train/ has ant, cat"),
        (
            two_classes("train/") | {"TEST/ant/1.png": picture(), "TEST/bee/1.png": picture()},
            "only train/ has cat; only TEST/ has bee",
        ),
        (two_classes() | two_classes("Test/"), f"no train/ beside Test; {ADVICE}"),
        (two_classes("val/"), f"no train/ beside val; {ADVICE}"),
        (
            {f"{kind}/{part}/1.png": picture() for kind in ("ant", "cat") for part in ("train", "Test")},
            f"class folder ant/ has folders in it with the names of splits; {ADVICE}",
        ),
        (
            two_classes("data/photos/train/") | two_classes("data/photos/val/"),
            "class folder data/photos/ .* names of splits",
        ),
    ],
)
@pytest.mark.parametrize("place", ["set", "set.zip"])
def test_what_cannot_be_told_to_be_a_split_is_refused_by_name(files, message, place, tmp_path):
    with pytest.raises(LimbeckError, match=message):
        load("folder", path=tree(tmp_path / place, files))


@pytest.mark.parametrize("name", ["train", "Train"])
def test_a_class_may_be_called_train_where_it_has_images_of_its_own(name, tmp_path):
    files = {f"{kind}/{i}.png": picture() for kind in ("bus", name) for i in range(5)}
    assert set(load("folder", path=tree(tmp_path / "set", files)).classes) == {"bus", name}


def test_hidden_folders_and_loose_files_that_are_no_images_may_lie_beside_train(tmp_path):
    beside = {".git/x.png": picture(), "__MACOSX/train/._1.png": b"", "@eaDir/x.png": picture(), "README.txt": b""}
    files = two_classes("train/", 5) | two_classes("test/", 5) | beside
    assert sizes(load("folder", path=tree(tmp_path / "set", files), validation=0)) == [10, 0, 10]


# origins


def test_every_split_says_where_it_came_from(tmp_path):
    path = tree(tmp_path / "set", two_classes())
    assert load("folder", path=path, seed=3, limit=5).origins == {
        "train": "the class folders of set, without the samples of test and validation; 5 of 14 kept by limit",
        "validation": "10 % of train, evenly over the classes, seed 3",
        "test": "20 % of the training samples, evenly over the classes, the same in every run",
    }
    data = load("folder", path=path, validation=4)
    assert data.origins["validation"] == "4 samples of train, evenly over the classes, seed 0"
    assert load("folder", path=path, validation=0).origins["validation"] == "none"
    train = load("digits").origins["train"]
    assert train.startswith("the 1,797 digits of scikit-learn, without the samples of test and validation")


def test_streamed_splits_say_the_same_as_those_in_memory(tmp_path):
    files = two_classes("train/", 5) | two_classes("Val/", 5) | {"train/cat/x.heic": b"", "train/cat/00.png": TURNED}
    path = tree(tmp_path / "photos", files)
    held, streamed = load("folder", path=path), load("folder", path=path, streaming=True, workers=0)
    assert held.origins == streamed.origins
    assert held.notes[0] == streamed.notes[0] == "1 file was skipped: 1 .heic (not an image format that is read)"
    assert held.notes[1].startswith("images of 2 different sizes are resized to 4 x 4")
    assert held.notes[1] == streamed.notes[1]
    assert held.notes[2] == "1 image was rotated or flipped according to their EXIF orientation"
    assert (
        streamed.notes[2]
        == "1 image was rotated or flipped according to their EXIF orientation, of the 20 that were checked"
    )


# what was skipped


@pytest.mark.parametrize("place", ["set", "set.zip"])
def test_files_that_are_skipped_are_counted_by_their_endings(place, tmp_path):
    extra = [f"cat/{i}.HEIC" for i in range(12)] + ["cat/a.txt", "ant/b.txt", "c.txt", "cat/Thumbs.db", "ant/LICENSE"]
    extra += ["cat/.hidden.png", "ant/.DS_Store", "ant/movie.mp4", "ant/x.zip", "__MACOSX/cat/._00.png", "loose.png"]
    files = two_classes() | dict.fromkeys(extra, b"")
    data = load("folder", path=tree(tmp_path / place, files))
    assert sum(sizes(data)) == 20
    assert data.notes == (
        "22 files were skipped: 12 .heic (not an image format that is read), 3 .txt, 1 .db, 1 .mp4, "
        "1 .png (in no class folder), 2 others, 2 hidden",
        "1 hidden folder was skipped",
    )


def test_nothing_is_said_where_nothing_was_skipped(tmp_path):
    assert load("folder", path=tree(tmp_path / "set", two_classes())).notes == ()


def test_a_link_that_leads_around_itself_is_said_to_be_skipped(tmp_path):
    path = tree(tmp_path / "set", two_classes())
    for name, target in (("up", ".."), ("root", "/"), ("self", ".")):
        (path / "cat" / name).symlink_to(target)
    data = load("folder", path=path)
    assert (sum(sizes(data)), data.notes) == (20, ("3 circular links were skipped",))


def test_classes_without_a_training_sample_are_named(tmp_path):
    files = two_classes("train/") | two_classes("test/")
    path = tree(tmp_path / "set", files)
    data = load("folder", path=path, limit=1, validation=0)
    assert data.notes == ("1 of 2 classes have no training sample: cat",)


# sizes and orientation


def oriented(size, orientation, value=100):
    exif = Image.Exif()
    exif[0x112] = orientation
    return encoded(picture(value, size=size), "png", exif=exif)


TURNED = oriented((8, 4), 6)


@pytest.mark.parametrize("streaming", [False, True])
def test_an_exif_orientation_is_followed_unless_it_is_left(streaming, tmp_path):
    black_above = numpy.zeros((6, 6), numpy.uint8)
    black_above[3:] = 255
    exif = Image.Exif()
    exif[0x112] = 6  # the left of the file is above
    path = tree(
        tmp_path / "set",
        {
            f"{part}/a/{i}.jpg": encoded(Image.fromarray(black_above.T), "jpeg", exif=exif)
            for part in ("train", "test")
            for i in "ab"
        },
    )
    options = {"streaming": streaming, "validation": 0, **({"workers": 0} if streaming else {})}
    followed = load("folder", path=path, **options)
    left = load("folder", path=path, exif_orientation=False, **options)
    images = [data.train.inputs[torch.tensor([0])][0, 0] for data in (followed, left)]
    assert torch.equal(images[0].gt(127), torch.from_numpy(black_above > 0))
    assert torch.equal(images[1].gt(127), torch.from_numpy(black_above.T > 0))
    assert len(followed.notes) == 1
    assert "rotated or flipped" in followed.notes[0]
    assert left.notes == ()
    assert followed.train.digest() != left.train.digest()


def test_images_of_different_sizes_are_cut_to_a_square_of_the_median_of_their_shorter_sides(tmp_path):
    draw = numpy.random.default_rng(0)
    shapes = [(40, 20), (30, 90), (25, 25), (10, 300), (33, 60)]
    pixels = [draw.integers(0, 256, (*shape, 3), dtype=numpy.uint8) for shape in shapes]
    files = {f"{part}/a/{i}.png": Image.fromarray(one) for i, one in enumerate(pixels) for part in ("train", "test")}
    path = tree(tmp_path / "set", files)
    data = load("folder", path=path, validation=0)
    assert data.shape == (3, 25, 25)
    assert data.notes == (
        "images of 5 different sizes are resized to 25 x 25, as no size is given: the shorter side is resized, the "
        "centre is cut out",
    )
    assert torch.equal(data.train.inputs[2], torch.from_numpy(pixels[2]).permute(2, 0, 1))  # untouched
    wide = Image.fromarray(pixels[1]).resize((75, 25), Image.Resampling.BILINEAR).crop((25, 0, 50, 25))
    assert torch.equal(data.train.inputs[1], torch.from_numpy(numpy.array(wide)).permute(2, 0, 1))
    streamed = load("folder", path=path, validation=0, streaming=True, workers=0)
    assert torch.equal(streamed.train.inputs[torch.arange(5)], data.train.inputs)


@pytest.mark.parametrize("size", [(6, 8), 5, (3, 40)])
def test_a_size_means_the_same_in_memory_and_streamed(size, tmp_path):
    draw = numpy.random.default_rng(0)
    shapes = [(40, 20), (30, 90), (6, 8), (5, 5), (7, 301)]
    files = {
        f"{part}/a/{i}.png": Image.fromarray(draw.integers(0, 256, (*shape, 3), dtype=numpy.uint8))
        for i, shape in enumerate(shapes)
        for part in ("train", "test")
    }
    path = tree(tmp_path / "set", files)
    held = load("folder", path=path, size=size, validation=0)
    streamed = load("folder", path=path, size=size, validation=0, streaming=True, workers=0)
    assert held.shape == (3, *((size, size) if size == 5 else size))
    assert torch.equal(streamed.train.inputs[torch.arange(5)], held.train.inputs)


def test_a_size_cuts_the_centre_out_of_other_sources_too():
    whole, wide = load("digits", validation=0), load("digits", size=(4, 8), validation=0)
    assert torch.equal(wide.train.inputs, whole.train.inputs[:, :, 2:6])
    assert torch.equal(load("digits", size=8, validation=0).train.inputs, whole.train.inputs)


def test_the_default_size_is_at_most_what_most_networks_are_made_for():
    assert common_size([(32, 32), (32, 32)]) == ((32, 32), [])
    assert common_size([(3000, 4000), (3000, 4000)])[0] == (3000, 4000)
    assert common_size([(32, 32), (3000, 4000), (4000, 3000)])[0] == (224, 224)
    assert common_size([(32, 32), (64, 70)])[0] == (32, 32)


@pytest.mark.parametrize("size", [0, (4, 0), (4, 4, 4), (4.5, 4), (True, "4"), (100_000, 100_000), -3])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(LimbeckError, match=r"size is .*; allowed are"):
        load("digits", size=size)


def test_images_that_do_not_fit_in_memory_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = tree(tmp_path / "set", two_classes(count=5))
    monkeypatch.setattr("limbeck.data.bounds._memory", lambda: 10 * 4 * 4 - 1)
    with pytest.raises(
        LimbeckError, match=r"10 images of 4 x 4 from .*set would take 160 bytes .* has 159: .* streaming"
    ):
        load("folder", path=path)
    with pytest.raises(LimbeckError, match="1,438 images of 9 x 9 would take 116,478 bytes"):
        load("digits", size=9, validation=0)
    assert sum(sizes(load("folder", path=path, size=3))) == 10


def test_large_images_of_different_sizes_are_brought_to_one_without_holding_them_all(tmp_path, monkeypatch):
    files = {f"a/{i}.png": picture(i, size=(40, 40 + (i == 9))) for i in range(10)}
    monkeypatch.setattr("limbeck.data.bounds._memory", lambda: 10 * 40 * 40 + 1)  # of one channel
    data = load("folder", path=tree(tmp_path / "set", files))
    assert data.shape == (1, 40, 40)
