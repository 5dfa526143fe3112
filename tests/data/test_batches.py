import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.core import LimbeckError
from limbeck.data import Augment, Batches, Split, normalise
from limbeck.data.views import change, draws

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
        numbers = draws(batch.index, options=FLIP, seed=2, view=6)
        view = change(split.inputs[batch.index], numbers, options=FLIP)
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


# views


def by_index(found):
    """A pass's inputs by the samples' places."""
    return {int(place): one for batch in found for place, one in zip(batch.index, batch.inputs, strict=True)}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[place], other[place]) for place in one)


def test_with_a_number_of_views_the_epochs_take_turns_over_them():
    made, every = batches(10, augment=FLIP, views=3), batches(10, augment=FLIP)
    assert [next(made(epoch)).view for epoch in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [next(every(epoch)).view for epoch in (0, 5)] == [0, 5]
    assert order(made, 4) == order(every, 4) != order(made, 1)
    assert same(by_index(made(4)), by_index(every(1)))
    assert not same(by_index(made(4)), by_index(every(4)))


def test_the_seed_of_the_views_can_be_another_than_that_of_the_order():
    one, other, plain = (
        batches(50, augment=FLIP, view_seed=8),
        batches(50, augment=FLIP, view_seed=8, seed=1),
        batches(50),
    )
    assert order(one, 0) == order(plain, 0) != order(other, 0)
    assert same(by_index(one(2)), by_index(other(2)))
    assert same(by_index(one(2)), by_index(batches(50, augment=FLIP, seed=8)(2)))
    assert not same(by_index(one(2)), by_index(batches(50, augment=FLIP)(2)))


@given(
    count=st.integers(2, 40),
    sizes=st.tuples(st.integers(1, 45), st.integers(1, 45)),
    seed=st.integers(0, 2**32 - 1),
    view_seed=st.integers(0, 2**63),
    views=st.integers(1, 4),
    epoch=st.integers(0, 9),
    cuts=st.lists(st.integers(0, 40)),
)
def test_a_view_has_the_same_bytes_whatever_the_batch_size_order_and_part(
    count, sizes, seed, view_seed, views, epoch, cuts
):
    common = {"augment": Augment(crop=2, shift=1, flip=True, cutout=2), "view_seed": view_seed, "views": views}
    made = batches(count, **common, batch_size=sizes[0], seed=seed)
    builder = batches(count, **common, batch_size=sizes[1], seed=0)
    whole = by_index(builder.view(epoch % views))
    assert list(whole) == list(range(count))
    trained = by_index(made(epoch))
    assert len(trained) == made.samples
    assert all(torch.equal(one, whole[place]) for place, one in trained.items())
    ends = sorted({0, count, *(cut for cut in cuts if cut < count)})
    parts = [by_index(builder.view(epoch % views, start=a, stop=b)) for a, b in itertools.pairwise(ends)]
    assert same({place: one for part in parts for place, one in part.items()}, whole)


def test_a_view_comes_in_order_in_batches_from_its_start():
    seen = list(batches(10, augment=FLIP).view(2, start=3))
    assert [batch.index.tolist() for batch in seen] == [[3, 4, 5, 6], [7, 8, 9]]
    assert {batch.view for batch in seen} == {2}
    assert torch.equal(seen[1].targets, numbered(10).targets[7:])
    assert list(batches(10).view(0, start=10)) == []


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 3), (0, 11), (11, None)])
def test_a_part_of_a_view_that_is_not_there_is_refused_at_once(start, stop):
    with pytest.raises(LimbeckError, match=r"there are no samples .*; allowed are 0 to 10"):
        batches(10).view(0, start=start, stop=stop)


# few, and the memory format


@pytest.mark.parametrize(("count", "few"), [(10, 2), (1, 1), (0, 0)])
def test_few_are_the_first_inputs_unchanged(count, few):
    made = batches(count, augment=FLIP, mean=(0.3,), std=(0.5,), batch_size=1)
    assert torch.equal(made.example_inputs(), normalise(numbered(count).inputs[:few], (0.3,), (0.5,)))


def test_few_cannot_change_the_set():
    split = Split(torch.ones(6, 2), torch.zeros(6, dtype=torch.int64))
    made = Batches(split, batch_size=6, seed=0, mean=(0.0,), std=(1.0,))
    made.example_inputs().zero_()
    assert split.inputs.all()


def test_a_set_in_another_memory_format_gives_the_same_batches():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (11, 3, 6, 5), generator=generator, dtype=torch.uint8)
    options = {"batch_size": 4, "seed": 0, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "augment": FLIP}
    formats = (torch.channels_last, torch.contiguous_format)
    targets = torch.zeros(11, dtype=torch.int64)
    last, plain = (Batches(Split(inputs.contiguous(memory_format=one), targets), **options) for one in formats)
    passes = [[*made(3), *made.view(1), *made.sweep()] for made in (last, plain)]
    for one, other in zip(*passes, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert one.inputs.stride() == other.inputs.stride()
    assert torch.equal(last.example_inputs(), plain.example_inputs())


@pytest.mark.parametrize(("count", "made"), [(1, 8), (2, 4), (3, 3), (100, 1)])
def test_batches_that_are_made_together_are_those_made_alone(monkeypatch, count, made):
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.randint(0, 256, (23, 2, 6, 5), generator=generator, dtype=torch.uint8), torch.arange(23))
    options = {"batch_size": 3, "seed": 0, "mean": (0.1, 0.2), "std": (0.5, 0.6)}

    def passes(most):
        monkeypatch.setattr("limbeck.data.batches.TOGETHER", most)
        batches = Batches(split, **options, augment=Augment(flip=True, crop=1, cutout=2))
        return [list(one) for one in (batches(3), batches.view(1, start=2, stop=21), batches.sweep())]

    alone, several = passes(0), passes(count * 4 * 3 * 2 * 6 * 5)
    for one, other in zip(alone, several, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            fields = ("inputs", "targets", "index")
            assert all(torch.equal(getattr(mine, name), getattr(theirs, name)) for name in fields)
            assert (mine.inputs.stride(), mine.view) == (theirs.inputs.stride(), theirs.view)
    assert len({batch.inputs.untyped_storage().data_ptr() for batch in several[0]}) == made
