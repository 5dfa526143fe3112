"""Checks of the data: images in two splits, classes without samples, the range of the inputs."""

from dataclasses import replace

import numpy
import pytest
import torch
from torch import nn

import limbeck
from limbeck.core import LimbeckError
from limbeck.data import Data, Split
from limbeck.experiment.data_checks import check_range, check_splits
from limbeck.models import Ensemble
from limbeck.models.inputs import Bridge


def data(test, *, validation=20, classes=2):
    generator = torch.Generator().manual_seed(0)

    def split(name, count):
        inputs = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
        return Split(inputs, torch.arange(count) % 2, tuple(f"{name}/{place}.png" for place in range(count)))

    parts = {name: split(name, count) for name, count in (("train", 40), ("validation", validation), ("test", test))}
    return Data(**parts, classes=tuple("abcdef"[:classes]), mean=(0.0,), std=(1.0,))


def test_of_splits_that_share_nothing_there_is_nothing_to_say():
    assert check_splits(data(100)) == []


def test_of_samples_that_are_not_images_it_is_said_that_they_are_not_compared():
    vectors = limbeck.arrays(torch.rand(40, 3), torch.arange(40) % 2)
    (note,) = check_splits(vectors)
    assert (note.check, note.skipped) == ("overlap", True)


def test_a_shared_image_is_a_note_below_1_percent_and_a_refusal_from_then_on():
    large, small = data(101), data(100)
    for one in (large, small):
        one.test.inputs[3] = one.train.inputs[5]
    (note,) = check_splits(large)
    told = "images of other splits: test/3.png (test) and train/5.png (train)"
    assert note.said == f"1 of 101 test images (0.99%) is identical to {told}"
    with pytest.raises(LimbeckError, match=r"1 of 100 test images \(1.00%\) is identical .*--allow overlap"):
        check_splits(small)
    (note,) = check_splits(small, allow=("overlap",))
    assert note.said.endswith("as allowed")
    assert "--allow overlap" in note.refusal


def test_a_copy_with_another_brightness_counts_too():
    one = data(50)
    one.test.inputs[3] = (0.9 * one.train.inputs[5] + 12).byte()
    with pytest.raises(LimbeckError, match=r"is nearly identical to .*test/3\.png .*pair \(the test split is 20 %\)"):
        check_splits(replace(one, origins={"test": "20 %"}))


POINTS = [(0.5, 0.9), (1.4, -1.0)], [(0.1, 0.2), (7.0, 0.3)]


@pytest.mark.parametrize("unit", [1, 8])
def test_points_far_outside_the_image_are_a_note_with_the_first_file_in_pixels_and_in_shares(unit):
    one, points = data(50), torch.tensor(POINTS) * unit
    splits = {name: replace(getattr(one, name), targets=points[[0] * 20]) for name in ("train", "validation")}
    few = {name: part.select(torch.arange(20)) for name, part in splits.items()}
    test = replace(one.test.select(torch.arange(3)), targets=points[[0, 1, 1]])
    found = check_splits(replace(one, **few, test=test, task="landmarks", classes=("a", "b")))
    assert [note.said for note in found if not note.skipped] == [
        "test: 2 points are far outside the image, first in test/1.png"
    ]


def test_a_training_image_in_the_validation_split_is_a_note():
    one = data(50)
    one.validation.inputs[2] = one.train.inputs[0]
    (note,) = check_splits(one)
    assert (
        "1 of 20 validation images (5.00%) is identical to training images: validation/2.png (validation) and"
        in note.said
    )


def test_classes_without_a_sample_are_named_for_every_split_that_could_have_them():
    said = [note.said for note in check_splits(data(50, validation=2, classes=3))]
    assert said == [
        "1 of 3 classes have no training sample: c",
        "the validation split has fewer samples than classes",
        "1 of 3 classes have no test sample: c",
    ]


@pytest.mark.parametrize("streaming", [None, False, True])
@pytest.mark.parametrize(("factor", "count"), [(1.0, 0), (255.0, 1)])
def test_floating_images_beyond_the_described_range_are_a_note(tmp_path, factor, count, streaming):
    if streaming is None:
        given = limbeck.arrays(torch.rand(20, 3, 4, 4) * factor, torch.arange(20) % 2, normalise=False)
    else:
        for place in range(20):
            file = tmp_path / "ab"[place % 2] / f"{place}.npy"
            file.parent.mkdir(exist_ok=True)
            numpy.save(file, factor * numpy.random.default_rng(place).random((3, 4, 4)))
        given = limbeck.load("folder", path=tmp_path, streaming=streaming, normalise=False)
    teacher, student = nn.Flatten(), nn.Flatten()
    Bridge(limbeck.Input("imagenet", "imagenet"), given.shape, given.mean, given.std).install(teacher)
    found = check_range({"student": student, "teacher": teacher}, given)
    assert len(found) == count
    if found:
        assert found[0].said.startswith("the teacher is described with values from 0 to 1 before its normalisation")


def test_the_description_of_a_member_of_an_ensemble_counts():
    given = limbeck.arrays(torch.rand(20, 3, 4, 4) * 255, torch.arange(20) % 2, normalise=False)
    members = [nn.Flatten(), nn.Flatten()]
    Bridge(limbeck.Input("imagenet", "imagenet"), given.shape, given.mean, given.std).install(members[1])
    (note,) = check_range({"teacher": Ensemble(members, "arithmetic")}, given)
    assert note.said.startswith("the teacher is described with values from 0 to 1")
