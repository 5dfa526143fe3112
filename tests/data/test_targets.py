"""The targets of each task: what is accepted, and every refusal."""

import pytest
import torch

import limbeck
from limbeck.core import LimbeckError
from limbeck.data import Augment, Batches, Parts, Split, split_off
from limbeck.data.sources import as_data
from limbeck.data.targets import as_targets, check_targets, outputs_of

NAN, INF = float("nan"), float("inf")
MASK = torch.zeros(2, 4, 5, dtype=torch.uint8)

GOOD = {
    "multi_label": (torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 0.0]]), 3),
    "regression": (torch.tensor([[-1e9, 2.0], [3.0, 4.0]]), 2),
    "landmarks": (torch.randn(2, 6, 2), 6),
    "segmentation": (torch.tensor([[[0, 2, 255]], [[1, 0, 0]]], dtype=torch.uint8), 3),
}


@pytest.mark.parametrize("task", GOOD)
def test_targets_that_fit_their_task_are_kept_and_counted(task):
    targets, outputs = GOOD[task]
    assert torch.equal(as_targets(targets, task, None), targets)
    assert outputs_of(targets, task) == outputs
    check_targets("test", targets, task=task, outputs=outputs, size=tuple(targets.shape[1:]))


REFUSED = [
    (
        "multi_label",
        torch.zeros(2),
        3,
        r"float32 of shape \(2,\); allowed for multi_label is .*float32 of shape \(N, K\)",
    ),
    (
        "multi_label",
        torch.zeros(2, 4),
        3,
        r"of shape \(2, 4\); allowed for multi_label is torch.float32 of shape \(N, 3\)",
    ),
    ("multi_label", torch.zeros(2, 3).long(), 3, r"targets are torch.int64 of shape \(2, 3\)"),
    ("multi_label", torch.tensor([[0.0, 1.5]]), 2, r"target 1.5 of sample 0; allowed are numbers in \[0, 1\]"),
    ("multi_label", torch.tensor([[0.0, 1.0], [NAN, 0.0]]), 2, "target nan of sample 1; allowed are numbers in"),
    ("regression", torch.zeros(2, 3, 1), 3, r"allowed for regression is torch.float32 of shape \(N, D\)"),
    ("regression", torch.tensor([[1.0], [INF]]), 1, "target inf of sample 1; allowed are finite numbers"),
    ("landmarks", torch.zeros(2, 6), 6, r"of shape \(2, 6\); allowed for landmarks is .* \(N, L, 2\)"),
    ("landmarks", torch.zeros(2, 6, 3), 6, r"allowed for landmarks is torch.float32 of shape \(N, 6, 2\)"),
    ("landmarks", torch.full((1, 2, 2), NAN), 2, "target nan of sample 0; allowed are finite numbers"),
    ("segmentation", MASK[:, 0], 2, r"allowed for segmentation is torch.uint8 of shape \(N, H, W\)"),
    ("segmentation", MASK[:, :3], 2, r"allowed for segmentation is torch.uint8 of shape \(N, 4, 5\)"),
    ("segmentation", MASK.long(), 2, "targets are torch.int64"),
    ("segmentation", MASK + 2, 2, "target 2 of sample 0; allowed are 0 to 1, and 255 for pixels that do not count"),
    ("segmentation", MASK + 255, 2, "all pixels are 255, so none counts"),
]


@pytest.mark.parametrize(("task", "targets", "outputs", "message"), REFUSED)
def test_targets_that_do_not_fit_are_refused_with_what_is_allowed(task, targets, outputs, message):
    with pytest.raises(LimbeckError, match=f"^train: .*{message}"):
        check_targets("train", targets, task=task, outputs=outputs, size=(4, 5))


CONVERTED = [
    ("multi_label", torch.tensor([[True, False]]), torch.tensor([[1.0, 0.0]])),
    ("regression", torch.tensor([1, 2]), torch.tensor([[1.0], [2.0]])),
    ("regression", torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([[0.5]])),
    ("landmarks", torch.ones(1, 2, 2, dtype=torch.int16), torch.ones(1, 2, 2)),
    ("segmentation", torch.tensor([[[True, False]]]), torch.tensor([[[1, 0]]], dtype=torch.uint8)),
    ("segmentation", torch.tensor([[[3, 255]]]), torch.tensor([[[3, 255]]], dtype=torch.uint8)),
    ("segmentation", torch.tensor([[[3, 255]]], dtype=torch.uint16), torch.tensor([[[3, 255]]], dtype=torch.uint8)),
    ("segmentation", torch.zeros(0, 2, 2).long(), torch.zeros(0, 2, 2, dtype=torch.uint8)),
]


@pytest.mark.parametrize(("task", "values", "expected"), CONVERTED)
def test_numbers_of_other_types_are_converted(task, values, expected):
    found = as_targets(values, task, None)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("segmentation", torch.zeros(1, 2, 2), "targets are torch.float32; allowed for segmentation are integers"),
        ("segmentation", torch.full((1, 2, 2), -1), "targets are from -1 to -1; allowed for segmentation are 0 to 255"),
        ("segmentation", torch.full((1, 2, 2), 256), "targets are from 256 to 256"),
        ("regression", torch.zeros(2, dtype=torch.complex64), "complex64; allowed for regression are real numbers"),
    ],
)
def test_numbers_that_cannot_be_targets_are_refused(task, values, message):
    with pytest.raises(LimbeckError, match=message):
        as_targets(values, task, None)


def test_a_task_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(LimbeckError, match=r"there is no task 'regresion'.*regression"):
        limbeck.arrays(torch.zeros(9, 2), torch.zeros(9), task="regresion")


@pytest.mark.parametrize("task", GOOD)
def test_weights_of_samples_are_for_classification(task):
    inputs, targets = torch.rand(12, 3, 1, 3), GOOD[task][0][:1].expand(12, *GOOD[task][0].shape[1:])
    with pytest.raises(
        LimbeckError, match=f"weights of samples are for classification; the task of the data is {task}"
    ):
        limbeck.arrays(inputs, targets, task=task, weights=torch.ones(12), test=2, validation=2)


def test_arrays_name_the_outputs():
    points = limbeck.arrays(torch.rand(12, 4), torch.rand(12, 2, 2), task="landmarks", classes=["eye", "nose"])
    assert points.outputs == ("eye.x", "eye.y", "nose.x", "nose.y")
    numbers = limbeck.arrays(torch.rand(12, 4), torch.rand(12, 2), task="regression")
    assert numbers.outputs == numbers.classes == ("0", "1")


def test_datasets_and_sources_have_a_task():
    masks = torch.randint(3, (40, 4, 4))
    images = torch.rand(40, 1, 4, 4)
    pairs = torch.utils.data.TensorDataset(images, masks)
    for data in (
        limbeck.dataset(pairs, task="segmentation"),
        as_data(Parts(Split(images, masks.to(torch.uint8)), ("a", "b", "c"), task="segmentation")),
    ):
        assert (data.task, len(data.classes), data.train.targets.dtype) == ("segmentation", 3, torch.uint8)
        assert "at random" in data.origins["test"]
    with pytest.raises(LimbeckError, match="for targets of other shapes, give a task="):
        limbeck.dataset(pairs)


@pytest.mark.parametrize("task", GOOD)
def test_a_split_is_chosen_at_random_and_depends_only_on_the_seed(task):
    targets = GOOD[task][0][:1].expand(100, *GOOD[task][0].shape[1:])
    split = Split(torch.arange(100.0)[:, None], targets)
    rest, chosen = split_off(0.2, split, 3)
    assert (len(rest), len(chosen)) == (80, 20)
    assert sorted(torch.cat([rest.inputs, chosen.inputs]).flatten().tolist()) == list(range(100))
    assert torch.equal(split_off(0.2, split, 3)[1].inputs, chosen.inputs)
    assert not torch.equal(split_off(0.2, split, 4)[1].inputs, chosen.inputs)
    assert split.labels.tolist() == [0] * 100


# --- augmentation


def augmented(targets, inputs=None, **options):
    inputs = torch.randint(1, 255, (40, 1, 8, 6), dtype=torch.uint8) if inputs is None else inputs
    split = Split(inputs, targets)
    return Batches(split, batch_size=16, seed=5, mean=(0.0,), std=(1.0,), augment=Augment(**options))


@pytest.mark.parametrize(
    "options", [{"crop": 2}, {"shift": 3}, {"flip": True}, {"cutout": 3}, {"crop": 2, "flip": True, "cutout": 4}]
)
def test_a_mask_moves_with_its_image_and_what_is_filled_in_does_not_count(options):
    masks = torch.randint(1, 250, (40, 8, 6), dtype=torch.uint8)
    made = augmented(masks, inputs=masks[:, None], **options)  # the mask is the image
    moved, filled = 0, 0
    for batch in [*made(0), *made(1)]:
        pixels = (batch.inputs[:, 0] * 255).round().to(torch.uint8)
        inside = pixels != 0
        assert batch.targets.dtype == torch.uint8
        assert torch.equal(batch.targets[inside], pixels[inside])
        assert (batch.targets[~inside] == 255).all()
        filled += int((~inside).sum())
        moved += int((batch.targets != masks[batch.index]).sum())
    assert moved > 0
    assert (filled > 0) == (options != {"flip": True})


def test_a_mask_stays_without_augmentation_and_in_a_pass_in_order():
    masks = torch.randint(0, 250, (40, 8, 6), dtype=torch.uint8)
    made = augmented(masks, crop=2)
    assert torch.equal(torch.cat([batch.targets for batch in made.sweep()]), masks)


@pytest.mark.parametrize(("name", "value"), [("crop", 1), ("shift", 1), ("flip", True)])
def test_landmarks_refuse_what_moves_the_image(name, value):
    with pytest.raises(LimbeckError, match=f"augmentation {name} moves the images but not the landmarks; .* is cutout"):
        augmented(torch.rand(40, 2, 2), **{name: value})


def test_landmarks_and_numbers_are_not_changed():
    points, numbers = torch.rand(40, 2, 2), torch.rand(40, 3)
    for targets, options in ((points, {"cutout": 2}), (numbers, {"flip": True, "crop": 1})):
        for batch in augmented(targets, **options)(0):
            assert torch.equal(batch.targets, targets[batch.index])


@pytest.mark.parametrize("task", GOOD)
def test_balanced_needs_classes(task):
    targets = GOOD[task][0][:1].expand(8, *GOOD[task][0].shape[1:])
    with pytest.raises(LimbeckError, match="the targets are not classes"):
        Batches(Split(torch.rand(8, 2), targets), batch_size=4, seed=0, mean=(0,), std=(1,), balanced=True)


@pytest.mark.parametrize(
    ("targets", "task", "classes", "message"),
    [
        (torch.zeros(20, 3), "multi_label", ("a", "b"), "classes has 2 names, but the targets have 3 labels"),
        (torch.zeros(20, 3, 2), "landmarks", ("a", "b"), "classes has 2 names, but the targets have 3 points"),
        (torch.zeros(20, dtype=torch.int64), "multi_label", None, "one_hot converts class indices to labels"),
        (torch.zeros(20, 6), "landmarks", ("a", "b", "c"), r"targets.reshape\(-1, 3, 2\) converts rows of x0, y0"),
    ],
)
def test_arrays_of_another_shape_are_refused_with_the_way_to_convert_them(targets, task, classes, message):
    with pytest.raises(LimbeckError, match=message):
        limbeck.arrays(torch.zeros(20, 1, 8, 8), targets, task=task, classes=classes)
