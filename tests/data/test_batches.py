import pytest
import torch

from limbeck.core import LimbeckError
from limbeck.data import Augment, Batches, Split, augment, normalise

FLIP = Augment(flip=True, crop=1)


def numbered(count):
    """Images whose first pixel is their place."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    inputs[:, 0, 0, 0] = torch.arange(count)
    return Split(inputs, torch.arange(count) % 3)


def batches(count=10, **options):
    return Batches(numbered(count), **{"batch_size": 4, "seed": 0, "mean": (0.0,), "std": (1.0,)} | options)


def order(made, epoch):
    return torch.cat([batch.index for batch in made(epoch)]).tolist()


def test_an_epoch_has_every_sample_once_and_the_last_batch_may_be_smaller():
    made = batches(10)
    assert [len(batch.targets) for batch in made(0)] == [4, 4, 2]
    assert sorted(order(made, 0)) == list(range(10))
    assert (len(made), made.samples) == (3, 10)


def test_inputs_and_targets_belong_to_the_index():
    split = numbered(10)
    for batch in batches(10, mean=(0.3,), std=(0.5,))(0):
        assert torch.equal(batch.targets, split.targets[batch.index])
        assert torch.equal(batch.inputs, normalise(split.inputs[batch.index], (0.3,), (0.5,)))
        assert batch.inputs.dtype == torch.float32


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    made = batches(50)
    first = order(made, 3)
    order(made, 4)
    torch.manual_seed(7)
    assert order(made, 3) == order(batches(50), 3) == first
    assert first != order(made, 4)
    assert first != order(batches(50, seed=1), 3)


def test_the_order_does_not_change_with_the_batch_size():
    assert order(batches(50, batch_size=5), 1) == order(batches(50, batch_size=25), 1)


def test_no_generator_is_touched():
    state = torch.manual_seed(3).get_state()
    order(batches(augment=FLIP), 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_last_batch_of_one_sample_is_left_out_when_shuffling():
    made = batches(9)
    assert [len(batch.targets) for batch in made(0)] == [4, 4]
    assert (len(made), made.samples) == (2, 8)
    left_out = {next(iter(set(range(9)) - set(order(made, epoch)))) for epoch in range(40)}
    assert len(left_out) > 5


def test_single_samples_are_kept_when_the_batch_size_is_one():
    made = batches(3, batch_size=1)
    assert sorted(order(made, 0)) == [0, 1, 2]
    assert (len(made), made.samples) == (3, 3)


def test_without_shuffle_all_samples_come_in_order_unchanged_as_view_0():
    split = numbered(9)
    made = batches(9, shuffle=False, augment=FLIP)
    assert order(made, 5) == list(range(9))
    assert (len(made), made.samples) == (3, 9)
    seen = list(made(5))
    assert {batch.view for batch in seen} == {0}
    torch.testing.assert_close(torch.cat([batch.inputs for batch in seen]), split.inputs / 255)


def test_an_epoch_is_the_view_that_its_images_are_augmented_as():
    split = numbered(10)
    for batch in batches(10, augment=FLIP, seed=2)(6):
        assert batch.view == 6
        view = augment(split.inputs[batch.index], batch.index, options=FLIP, seed=2, view=6)
        torch.testing.assert_close(batch.inputs, view / 255)


def test_features_come_as_they_are_and_cannot_be_changed_through_a_batch():
    split = Split(torch.arange(12.0).view(6, 2), torch.zeros(6, dtype=torch.int64))
    made = Batches(split, batch_size=6, seed=0, mean=(0.0,), std=(1.0,), shuffle=False)
    batch = next(made(0))
    assert torch.equal(batch.inputs, split.inputs)
    batch.inputs.zero_()
    assert split.inputs.any()


def test_an_empty_split_has_no_batches():
    for shuffle in (True, False):
        made = batches(0, shuffle=shuffle)
        assert list(made(0)) == []
        assert (len(made), made.samples) == (0, 0)


def test_a_single_sample_cannot_be_shuffled_into_batches():
    assert len(batches(1, shuffle=False)) == 1
    with pytest.raises(LimbeckError, match="a single sample cannot be shuffled"):
        batches(1)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(LimbeckError, match="the batch size is 0; allowed are 1 and greater"):
        batches(batch_size=0)


def test_a_mean_that_does_not_fit_is_refused_at_once():
    with pytest.raises(LimbeckError, match="2 means and 1 deviations"):
        batches(mean=(0.0, 0.0))


def test_features_cannot_be_augmented_and_are_refused_at_once():
    split = Split(torch.zeros(6, 2), torch.zeros(6, dtype=torch.int64))
    with pytest.raises(LimbeckError, match="only images"):
        Batches(split, batch_size=2, seed=0, mean=(0.0,), std=(1.0,), augment=FLIP)
    assert len(Batches(split, batch_size=2, seed=0, mean=(0.0,), std=(1.0,), augment=FLIP, shuffle=False)) == 3


def test_batches_live_on_the_device_given():
    made = batches(4, device="meta", shuffle=False)
    batch = next(made(0))
    assert {batch.inputs.device.type, batch.targets.device.type, batch.index.device.type} == {"meta"}
