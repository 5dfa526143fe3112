import re
from dataclasses import replace

import numpy
import pytest
import torch

from limbeck.core import LimbeckError
from limbeck.data import Batches, Data, Split, arrays, normalise, split_off
from limbeck.data.scaling import measure


def labelled(*counts, shape=(1, 2, 2)):
    targets = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    inputs = torch.arange(len(targets)).view(-1, *[1] * len(shape)).expand(-1, *shape).to(torch.uint8)
    return Split(inputs, targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(5))])


def data(**changes):
    train = labelled(4, 4)
    values = {
        "train": train,
        "validation": train.select(torch.arange(0)),
        "test": train,
        "classes": ("a", "b"),
        "mean": (0.0,),
        "std": (1.0,),
    }
    return Data(**values | changes)


def features(values, targets=None):
    return Split(torch.tensor(values), torch.zeros(len(values), dtype=torch.int64) if targets is None else targets)


# Split


def test_samples_without_a_label_stay_in_the_rest_when_a_split_is_divided():
    split = labelled(6, 6)
    some = replace(split, targets=split.targets.where(torch.arange(12) > 3, -1))
    rest, part = split_off(0.5, some, 0)
    assert len(part) == 4
    assert int((rest.targets < 0).sum()) == 4
    assert (part.targets >= 0).all()


def test_weights_go_with_their_samples():
    split = replace(labelled(3, 2), weights=torch.arange(5.0))
    assert split.select(torch.tensor([4, 1])).weights.tolist() == [4, 1]
    assert split.digest() != replace(split, weights=torch.ones(5)).digest() != labelled(3, 2).digest()


def test_select_takes_the_places_in_the_order_given():
    chosen = labelled(3, 3).select(torch.tensor([4, 1]))
    assert chosen.inputs[:, 0, 0, 0].tolist() == [4, 1]
    assert len(chosen) == 2


def test_without_drops_the_classes_and_keeps_the_other_labels():
    split = labelled(3, 2, 4)
    kept = split.without([1])
    assert sorted(kept.targets.tolist()) == [0, 0, 0, 2, 2, 2, 2]
    assert torch.equal(kept.inputs, split.inputs[split.targets != 1])


def test_without_no_classes_keeps_everything():
    assert len(labelled(3, 2).without([])) == 5


def test_names_go_with_their_samples():
    split = replace(labelled(3, 2), names=tuple("abcde"))
    assert split.select(torch.tensor([4, 1])).names == ("e", "b")
    kept = split.without([1])
    assert kept.names == tuple("abcde"[place] for place in kept.inputs[:, 0, 0, 0].tolist())
    assert labelled(3).select(torch.tensor([0])).names is None
    assert labelled(3).transform is None


# digest


def test_the_digest_is_the_one_recorded():
    # A change here makes every store of teacher outputs useless.
    inputs = torch.arange(3000, dtype=torch.uint8).view(1500, 1, 1, 2)
    assert Split(inputs, torch.arange(1500)).digest() == "5dab104407e5cc348e55be4c7cc281dc"


def test_the_digest_knows_types_shapes_order_inputs_and_targets():
    split = Split(torch.arange(48, dtype=torch.float32).view(4, 3, 2, 2), torch.tensor([0, 1, 1, 0]))
    changed = split.inputs.clone()
    changed[3, 2, 1, 1] += 1
    others = [
        split.select(torch.tensor([0, 2, 1, 3])),
        split.select(torch.arange(3)),
        replace(split, inputs=changed),
        replace(split, targets=torch.tensor([0, 1, 1, 1])),
        replace(split, inputs=split.inputs.to(torch.uint8)),
        replace(split, inputs=split.inputs.view(4, 3, 4, 1)),
        replace(split, inputs=split.inputs.view(torch.int32)),
    ]
    assert len({split.digest(), *(other.digest() for other in others)}) == 8


def test_the_digest_knows_neither_names_nor_memory_formats():
    split = Split(torch.arange(48, dtype=torch.float32).view(4, 3, 2, 2), torch.tensor([0, 1, 1, 0]))
    last = split.inputs.contiguous(memory_format=torch.channels_last)
    assert replace(split, inputs=last, names=tuple("abcd")).digest() == split.digest()


# Data


def test_data_may_have_an_empty_validation_split_and_knows_its_shape():
    assert data().shape == (1, 2, 2)


@pytest.mark.parametrize("name", ["train", "test"])
def test_data_refuses_an_empty_train_or_test_split(name):
    with pytest.raises(LimbeckError, match=f"the {name} split is empty"):
        data(**{name: labelled(4, 4).select(torch.arange(0))})


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(2, 2, 2, 2, 2), torch.zeros(2, dtype=torch.int64), r"test: inputs have shape \(2, 2, 2, 2, 2\)"),
        (
            torch.zeros(2, 1, 2, 3),
            torch.zeros(2, dtype=torch.int64),
            r"test: a sample has shape \(1, 2, 3\); allowed is that of train",
        ),
        (torch.zeros(2, 1, 2, 2).int(), torch.zeros(2, dtype=torch.int64), r"test: inputs are torch.int32; allowed"),
        (torch.zeros(2, 1, 2, 2), torch.zeros(2), "test: targets are torch.float32"),
        (torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, dtype=torch.int64), r"targets are torch.int64 of shape \(2, 1\)"),
        (torch.zeros(2, 1, 2, 2), torch.zeros(3, dtype=torch.int64), "test: 2 inputs, but 3 targets"),
        (
            torch.zeros(2, 1, 2, 2),
            torch.tensor([0, 2]),
            "test: target 2 of sample 1 is not a class; allowed are 0 to 1",
        ),
        (torch.zeros(2, 1, 2, 2), torch.tensor([-1, 0]), "test: target -1 of sample 0 is not a class"),
    ],
)
def test_data_refuses_what_does_not_fit_and_names_the_split(inputs, targets, message):
    with pytest.raises(LimbeckError, match=message):
        data(test=Split(inputs, targets))


def test_data_counts_values_that_are_not_finite_and_names_the_first_sample():
    bad = torch.zeros(4, 1, 2, 2)
    bad[2, 0, 1, 0], bad[2, 0, 0, 1], bad[3] = float("nan"), float("inf"), float("-inf")
    with pytest.raises(LimbeckError, match="test: 6 values are NaN or infinite, the first in sample 2"):
        data(test=Split(bad, torch.zeros(4, dtype=torch.int64)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.0, 0.0)}, "2 means and 1 deviations"),
        ({"std": ()}, "1 means and 0 deviations"),
        ({"std": (0.0,)}, "allowed are numbers greater than 0"),
        ({"std": (float("nan"),)}, "allowed are numbers greater than 0"),
    ],
)
def test_data_refuses_a_mean_or_deviation_that_does_not_fit(changes, message):
    with pytest.raises(LimbeckError, match=message):
        data(**changes)


# normalise and measure


def test_normalise_follows_the_formula_for_bytes():
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 2.0)
    result = normalise(images, mean, std)
    assert result.dtype == torch.float32
    for channel in range(3):
        expected = (images[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(result[:, channel].double(), expected, rtol=1e-5, atol=1e-6)


def test_normalise_does_not_divide_floats_by_255_and_leaves_the_input_alone():
    values = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    result = normalise(values, (1.0,), (2.0,))
    assert result.tolist() == [[0.0, 0.5], [1.0, 2.0]]
    assert values.tolist() == [[1.0, 2.0], [3.0, 5.0]]


def test_normalise_with_zero_and_one_only_scales_bytes():
    assert normalise(torch.tensor([[0, 255]], dtype=torch.uint8), (0.0,), (1.0,)).tolist() == [[0.0, 1.0]]
    half = torch.tensor([[0.5, 7.0]], dtype=torch.float16)
    assert torch.equal(normalise(half, (0.0,), (1.0,)), half.float())


def test_normalise_refuses_the_wrong_number_of_channels():
    with pytest.raises(LimbeckError, match=r"1 means and 1 deviations for inputs of shape .*; allowed are 3 of each"):
        normalise(torch.zeros(1, 3, 2, 2), (0.0,), (1.0,))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_measured_values_normalise_to_mean_0_and_deviation_1(dtype):
    images = torch.randint(0, 256, (1500, 2, 3, 3), dtype=torch.uint8)
    images[:, 1] //= 4
    images = images.to(dtype)
    normal = normalise(images, *measure(images)).double()
    for channel in range(2):
        assert abs(normal[:, channel].mean()) < 1e-5
        assert abs(normal[:, channel].std(correction=0) - 1) < 1e-5


@pytest.mark.parametrize("inputs", [torch.full((7, 1, 3, 3), 77, dtype=torch.uint8), torch.full((7, 3), 0.1)])
def test_a_constant_channel_has_deviation_1(inputs):
    assert measure(inputs)[1] == (1.0,)


def test_features_have_a_single_mean_over_all_of_them():
    mean, std = measure(torch.tensor([[1.0, 3.0], [5.0, 7.0]]))
    assert mean == (4.0,)
    assert std == pytest.approx((5**0.5,))


# split_off


@pytest.mark.parametrize(("size", "count"), [(7, 7), (0, 0), (30, 30), (0.25, 8), (0.0, 0), (0.99, 30)])
def test_split_off_divides_into_two_parts_of_the_size_asked_for(size, count):
    split = labelled(10, 10, 10)
    rest, part = split_off(size, split, seed=0)
    assert len(part) == count
    places = torch.cat([rest.inputs, part.inputs])[:, 0, 0, 0].tolist()
    assert sorted(places) == list(range(30))
    assert torch.equal(part.targets, split.targets[part.inputs[:, 0, 0, 0].long()])


def test_split_off_is_as_even_over_the_classes_as_whole_numbers_allow():
    _, part = split_off(10, labelled(50, 30, 15, 5), seed=3)
    assert torch.bincount(part.targets, minlength=4).tolist() == [5, 3, 2, 0]
    _, part = split_off(0.2, labelled(50, 30, 15, 5), seed=3)
    assert torch.bincount(part.targets).tolist() == [10, 6, 3, 1]


def test_split_off_keeps_the_order_of_the_samples():
    for part in split_off(9, labelled(10, 10), seed=1):
        places = part.inputs[:, 0, 0, 0].tolist()
        assert places == sorted(places)


def test_split_off_depends_on_its_seed_alone():
    split = labelled(20, 20)
    torch.manual_seed(1)
    first = split_off(10, split, seed=4)[1].inputs
    state = torch.manual_seed(2).get_state()
    again = split_off(10, split, seed=4)[1].inputs
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, split_off(10, split, seed=5)[1].inputs)


def test_split_off_chooses_every_sample_of_a_class_equally_often():
    split = labelled(10, 10)
    chosen = sum(
        torch.bincount(split_off(4, split, seed=s)[1].inputs[:, 0, 0, 0].int(), minlength=20) for s in range(500)
    )
    expected = 500 * 4 / 20
    assert ((chosen - expected) ** 2 / expected).sum() < 45  # chi-square of 19 degrees, p < 0.001


@pytest.mark.parametrize("size", [21, -1, 1.0, -0.1, float("nan")])
def test_split_off_refuses_a_size_out_of_range(size):
    with pytest.raises(
        LimbeckError, match=f"cannot split off {re.escape(repr(size))} of 20 samples; allowed are a count"
    ):
        split_off(size, labelled(10, 10), seed=0)


def test_split_off_nothing_of_nothing_is_nothing():
    empty = labelled(1).select(torch.arange(0))
    assert [len(part) for part in split_off(0.5, empty, seed=0)] == [0, 0]


# arrays


def test_arrays_splits_and_measures_numpy_images():
    rng = numpy.random.default_rng(0)
    images, labels = rng.integers(0, 256, (100, 6, 5), dtype=numpy.uint8), numpy.arange(100) % 4
    made = arrays(images, labels)
    assert (len(made.train), len(made.validation), len(made.test)) == (72, 8, 20)
    assert made.shape == (1, 6, 5)
    assert made.train.inputs.dtype == torch.uint8
    assert made.classes == ("0", "1", "2", "3")
    assert torch.bincount(made.test.targets).tolist() == [5, 5, 5, 5]
    assert (made.mean, made.std) == measure(made.train.inputs)


def test_arrays_makes_any_float_float32_and_copies_it():
    values = numpy.zeros((10, 3))
    made = arrays(values, [0, 1] * 5, validation=0)
    values[:] = 1
    assert made.train.inputs.dtype == torch.float32
    assert not made.train.inputs.any()
    assert len(made.validation) == 0


def test_arrays_copies_tensors_and_detaches_them():
    values = torch.zeros(10, 3, requires_grad=True)
    made = arrays(values, torch.arange(10) % 2, test_set=(values, torch.zeros(10).bool()))
    assert not made.test.inputs.requires_grad
    with torch.no_grad():
        values += 1
    assert not made.test.inputs.any()


def test_arrays_takes_read_only_and_reversed_numpy_arrays():
    values = numpy.arange(20, dtype=numpy.float32).reshape(10, 2)
    values.setflags(write=False)
    made = arrays(values[::-1], numpy.zeros(10, int), test=2, validation=0, normalise=False)
    assert sorted(torch.cat([made.train.inputs, made.test.inputs])[:, 0].tolist()) == list(range(0, 20, 2))


def test_arrays_uses_the_test_set_given_and_ignores_the_test_share():
    made = arrays(numpy.zeros((10, 2)), [0] * 10, test=0.9, validation=2, test_set=(numpy.ones((3, 2)), [1, 0, 1]))
    assert (len(made.train), len(made.validation), len(made.test)) == (8, 2, 3)
    assert made.test.inputs.all()
    assert made.classes == ("0", "1")


def test_arrays_without_normalise_has_mean_0_and_deviation_1():
    made = arrays(numpy.random.default_rng(0).random((10, 2, 4, 4)), [0] * 10, normalise=False)
    assert (made.mean, made.std) == ((0.0, 0.0), (1.0, 1.0))


def test_arrays_takes_whole_float_targets_and_names():
    made = arrays(numpy.zeros((4, 2)), numpy.array([0.0, 1.0, 1.0, 0.0]), test=1, validation=0, classes=["no", "yes"])
    assert made.train.targets.dtype == torch.int64
    assert made.classes == ("no", "yes")


AGES = numpy.arange(400.0) % 80


@pytest.mark.parametrize("ages", [AGES, torch.tensor(AGES).float(), torch.tensor(AGES).half(), list(AGES), AGES + 0.5])
def test_arrays_does_not_take_floats_for_class_indices(ages):
    with pytest.raises(
        LimbeckError, match=r"targets are torch.float\d\d, .* not class indices; .*targets.astype\(int\)"
    ):
        arrays(numpy.zeros((400, 2)), ages)
    with pytest.raises(LimbeckError, match=r"targets are torch.float\d\d"):
        arrays(numpy.zeros((400, 2)), AGES.astype(int), test_set=(numpy.zeros((400, 2)), ages))


def test_arrays_takes_floats_for_class_indices_where_the_classes_are_named():
    names = [str(age) for age in range(80)]
    made = arrays(numpy.zeros((400, 2)), AGES, classes=names)
    assert torch.equal(made.train.targets, arrays(numpy.zeros((400, 2)), AGES.astype(int)).train.targets)


def test_arrays_takes_bools_for_two_classes():
    assert arrays(numpy.zeros((20, 2)), numpy.arange(20) % 2 == 1).classes == ("0", "1")


@pytest.mark.parametrize("labels", [[1001, 5003] * 10, [2**62] * 20, range(20), [0, 2**40] * 10])
def test_arrays_refuses_more_classes_than_training_samples_unless_they_are_named(labels):
    message = r"targets up to \d+ are [\d,]+ classes, but there are \d+ training samples: .* numpy.unique"
    with pytest.raises(LimbeckError, match=message):
        arrays(numpy.zeros((20, 2)), list(labels))
    with pytest.raises(LimbeckError, match=message):
        arrays(numpy.zeros((20, 2)), [0] * 20, test_set=(numpy.zeros((20, 2)), list(labels)))
    if max(labels) < 20:
        assert len(arrays(numpy.zeros((20, 2)), list(labels), classes=[str(label) for label in labels]).classes) == 20


def test_arrays_uses_samples_without_a_label_for_training_only_and_counts_them():
    data = arrays(torch.arange(40.0)[:, None], torch.tensor([0, 1, -1, -1] * 10), validation=2)
    assert (len(data.train), len(data.validation), len(data.test)) == (34, 2, 4)
    assert data.classes == ("0", "1")
    assert int((data.train.targets < 0).sum()) == 20
    assert data.notes == ("20 of 34 training samples are unlabelled",)


def test_arrays_keeps_the_weight_of_each_sample():
    data = arrays(torch.arange(20.0)[:, None], torch.arange(20) % 2, weights=numpy.arange(20))
    assert torch.equal(data.train.weights, data.train.inputs[:, 0])
    assert arrays(torch.zeros(20, 2), torch.arange(20) % 2).train.weights is None


def test_arrays_says_which_classes_have_no_training_sample():
    made = arrays(numpy.zeros((40, 2)), [1, 2, 5, 5] * 10)
    assert made.notes == ("3 of 6 classes have no training sample: 0, 3, 4",)
    many = arrays(numpy.zeros((40, 2)), [0, 19] * 20)
    assert many.notes == ("18 of 20 classes have no training sample: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...",)
    assert arrays(numpy.zeros((40, 2)), [0, 1] * 20).notes == ()


def test_arrays_says_where_each_split_came_from():
    values, labels = numpy.zeros((40, 2)), [0, 1] * 20
    assert arrays(values, labels, seed=4, validation=5).origins == {
        "train": "the remaining given samples",
        "validation": "5 samples of train, evenly over the classes, seed 4",
        "test": "20 % of the given samples, evenly over the classes, seed 4",
    }
    given = arrays(values, labels, validation=0, test_set=(values, labels)).origins
    assert given == {"train": "given", "validation": "none", "test": "given as test_set"}


def test_data_made_of_splits_alone_says_nothing():
    assert (data().origins, data().notes) == ({}, ())


def test_arrays_differs_by_seed_and_repeats_with_it():
    values, labels = numpy.arange(40.0).reshape(40, 1), [0] * 40
    first, again, other = (arrays(values, labels, seed=seed).test.inputs for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_signals_have_a_mean_for_each_channel():
    values = numpy.stack([numpy.zeros((20, 9)), numpy.random.default_rng(0).normal(3, 2, (20, 9))], axis=1)
    made = arrays(values, numpy.arange(20) % 2, signals=True)
    assert made.shape == (2, 9)
    assert made.mean == pytest.approx((0, made.train.inputs[:, 1].double().mean().item()))
    first = next(iter(Batches(made.train, batch_size=4, seed=0, mean=made.mean, std=made.std).sweep())).inputs
    expected = (made.train.inputs[:4, 1] - made.mean[1]) / made.std[1]
    torch.testing.assert_close(first[:, 1], expected)
    with pytest.raises(LimbeckError, match=r"inputs have shape \(20, 9\); allowed are \(N, C, L\), N samples first"):
        arrays(values[:, 0], numpy.arange(20) % 2, signals=True)


@pytest.mark.parametrize(("kind", "white"), [("uint16", 65_535), ("bool", 1), ("float64", 7)])
def test_arrays_of_other_types_become_float32_and_those_of_16_bits_are_divided_by_white(kind, white):
    images = numpy.full((10, 5, 3, 2), white, dtype=kind)
    made = arrays(images, numpy.arange(10) % 2, normalise=False)
    assert made.train.inputs.dtype == torch.float32
    assert made.train.inputs.unique().tolist() == [7 if kind == "float64" else 1]
    assert made.shape == (5, 3, 2)


@pytest.mark.parametrize(
    ("inputs", "targets", "options", "message"),
    [
        (numpy.zeros((4, 2), dtype=numpy.int64), [0] * 4, {}, "inputs are torch.int64; allowed are uint8"),
        (numpy.zeros((4, 2), dtype=numpy.uint16), [0] * 4, {}, "inputs are torch.uint16; allowed are uint8"),
        (numpy.zeros((4, 8, 8, 3)), [0] * 4, {}, r"looks like \(N, H, W, C\).*transpose\(0, 3, 1, 2\)"),
        (numpy.zeros(4), [0] * 4, {}, r"inputs have shape \(4,\); allowed are"),
        (numpy.float32(1), [0], {}, r"inputs have shape \(\); allowed are"),
        ([["a"]], [0], {}, "the inputs are not an array"),
        ([[1.0], [1.0, 2.0]], [0], {}, "the inputs are not an array"),
        (numpy.zeros((4, 2)), [0] * 3, {}, "4 inputs, but 3 targets"),
        (numpy.zeros((4, 2)), [[0]] * 4, {}, r"targets have shape \(4, 1\); allowed is \(N,\)"),
        (numpy.zeros((4, 2)), [0, 1, 0.5, 1], {"classes": "ab"}, "target 0.5 of sample 2 is not a class index"),
        (
            numpy.zeros((4, 2)),
            [0, float("nan"), 0, 1],
            {"classes": "ab"},
            "target nan of sample 1 is not a class index",
        ),
        (
            numpy.zeros((4, 2)),
            [0, -2, 0, 1],
            {},
            "target -2 of sample 1 is not a class; .* 0 to 1, and -1 for no label",
        ),
        (numpy.zeros((4, 2)), [1, -1, 1, -1], {}, "targets are -1 and 1, but -1 means no label; allowed are 0 and 1"),
        (numpy.zeros((4, 2)), [0, 1] * 2, {"weights": [1, 1]}, r"float32 of shape \(2,\); allowed .* of shape \(4,\)"),
        (
            numpy.zeros((4, 2)),
            [0, 1] * 2,
            {"weights": [1, 1, -1, 1]},
            "the given arrays: weight -1.0 of sample 2; allowed are",
        ),
        (numpy.zeros((4, 2)), [0, 1] * 2, {"test_set": (numpy.zeros((1, 2)), [-1])}, "target -1 of sample 0 is not a"),
        (numpy.zeros((4, 2)), [0j, 1j, 0j, 1j], {"classes": "ab"}, "targets are torch.complex128, the first"),
        (numpy.zeros((4, 2)), [[0, 1]] * 4, {}, r"one class index a sample; targets.argmax\(1\) converts rows"),
        (numpy.zeros((4, 2)), [0, 2**40, 0, 1], {"classes": "ab"}, "target 1099511627776 of sample 1 is not a class"),
        (numpy.zeros((4, 2)), [0, 1, 0, 1], {"classes": ["a"], "test": 2}, "is not a class; allowed are 0 to 0"),
        (numpy.zeros((4, 2)), [0, 1, 0, 1], {"test": 0}, "the test split is empty"),
        (numpy.zeros((4, 2)), [0, 1, 0, 1], {"test": 4}, "the train split is empty"),
        (numpy.zeros((0, 2)), [], {}, "the train split is empty"),
        (
            numpy.full((9, 2), numpy.nan),
            [0] * 9,
            {"test": 3},
            r"the given arrays: 18 values are NaN or infinite, the first in sample 0",
        ),
    ],
)
def test_arrays_refuses_what_it_cannot_take_and_says_why(inputs, targets, options, message):
    with pytest.raises(LimbeckError, match=message):
        arrays(inputs, targets, **options)
