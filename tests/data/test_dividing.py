import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data import Batches, Split
from limbeck.data.dividing import batch_sizes


@given(count=st.integers(0, 5000), most=st.integers(1, 600))
def test_no_batch_is_of_one_sample_where_more_can_be_had(count, most):
    sizes = batch_sizes(count, most)
    assert sum(sizes) == count
    assert all(1 <= size <= most for size in sizes)
    assert len(sizes) == -(-count // most)  # no more batches than need be
    if count > 1 and most > 2:
        assert 1 not in sizes
    if count % most != 1:
        assert sizes == [most] * (count // most) + [count % most] * (count % most > 0)


@pytest.mark.parametrize(
    ("count", "most", "sizes"),
    [
        (501, 500, [251, 250]),
        (400, 399, [200, 200]),
        (1001, 500, [500, 251, 250]),
        (1000, 500, [500, 500]),
        (502, 500, [500, 2]),
        (1, 500, [1]),
        (4, 3, [2, 2]),
        (3, 2, [2, 1]),  # there is no other way
        (3, 1, [1, 1, 1]),
        (0, 5, []),
    ],
)
def test_the_last_two_batches_share_evenly_where_one_sample_would_be_left(count, most, sizes):
    assert batch_sizes(count, most) == sizes


def made(count, **options):
    split = Split(torch.arange(float(count))[:, None], torch.zeros(count, dtype=torch.int64))
    return Batches(split, **{"seed": 0, "mean": (0.0,), "std": (1.0,)} | options)


def sizes(found):
    return [len(batch.targets) for batch in found]


@pytest.mark.parametrize("together", [0, 2**18])
def test_evaluation_sweeps_and_views_have_no_batch_of_one(together, monkeypatch):
    monkeypatch.setattr("limbeck.data.batches.TOGETHER", together)
    batches = made(501, batch_size=500, shuffle=False)
    assert sizes(batches(0)) == sizes(batches.sweep()) == sizes(batches.view(3)) == [251, 250]
    assert sizes(batches.view(0, start=100, stop=401)) == [301]
    assert len(batches) == 2
    assert torch.cat([batch.inputs for batch in batches.sweep()]).flatten().tolist() == list(range(501))
    training = made(400, batch_size=399)
    assert sizes(training.sweep()) == [200, 200]
    assert sizes(training(0)) == [399]  # in training the single sample is left out, another one in each epoch


@given(count=st.integers(2, 200), most=st.integers(2, 50), together=st.integers(0, 3000))
def test_a_pass_is_cut_the_same_however_many_batches_are_made_together(count, most, together):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.data.batches.TOGETHER", together)
        batches = made(count, batch_size=most)
        assert sizes(batches.sweep()) == batch_sizes(count, most)
        assert sizes(batches(1)) == batch_sizes(batches.samples, most)
        index = torch.cat([batch.index for batch in batches.sweep()])
        assert index.tolist() == list(range(count))
