import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.cache.encoding import class_indices, decode, deviation, encode, parts_of
from limbeck.cache.fingerprint import Format
from limbeck.core import LimbeckError, Tap

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TAP = Tap("teacher")


def stored(tensor, dtype="float32", top_k=None):
    return encode(TAP, tensor, Format(dtype, top_k), torch.arange(len(tensor)) + 40)


def again(tensor, dtype="float32", top_k=None):
    return decode(stored(tensor, dtype, top_k), tuple(tensor.shape[1:]))


def even_tail(row, top_k):
    """One row of the k largest logits with its tail even, by plain loops."""
    kept = sorted(range(len(row)), key=lambda place: (-row[place], place))[:top_k]
    mass = sum(math.exp(value) for place, value in enumerate(row) if place not in kept)
    even = math.log(mass / (len(row) - top_k))
    return [value if place in kept else even for place, value in enumerate(row)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 2), (6, 5)])
def test_a_tensor_comes_back_rounded_and_in_32_bits(dtype, shape):
    tensor = torch.randn(4, *shape)
    back = again(tensor, dtype)
    assert back.dtype == torch.float32
    assert torch.equal(back, tensor.to(DTYPES[dtype]).float())


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_the_largest_logits_come_back_with_an_even_tail(top_k):
    tensor = torch.randn(4, 6) * 3
    wanted = torch.tensor([even_tail(row, top_k) for row in tensor.tolist()])
    torch.testing.assert_close(again(tensor, top_k=top_k), wanted, rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(st.data())
def test_the_largest_probabilities_are_kept_and_the_rest_is_shared_evenly(data):
    classes = data.draw(st.integers(2, 40))
    top_k = data.draw(st.integers(1, classes - 1))
    scale = data.draw(st.sampled_from([0.0, 1.0, 30.0, 1e3]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    tensor = torch.randn(3, classes, generator=generator) * scale
    before, after = tensor.double().softmax(1), again(tensor, top_k=top_k).double().softmax(1)
    largest, others = before.sort(dim=1, descending=True, stable=True).indices.split([top_k, classes - top_k], 1)
    # float32 rounds logits of up to 4000 by 2e-4
    torch.testing.assert_close(after.gather(1, largest), before.gather(1, largest), rtol=5e-4, atol=1e-7)
    torch.testing.assert_close(after.sum(1), torch.ones(3, dtype=torch.float64))
    tail = after.gather(1, others)
    assert torch.equal(tail, tail[:, :1].expand_as(tail))


def test_keeping_all_classes_but_one_loses_nothing():
    tensor = torch.randn(4, 6)
    torch.testing.assert_close(again(tensor, top_k=5), tensor)


def test_of_equal_logits_the_first_classes_are_kept():
    assert stored(torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]), top_k=2)["classes"].tolist() == [[1, 2]]
    assert stored(torch.zeros(1, 5000), top_k=9)["classes"].tolist() == [list(range(9))]


@settings(deadline=None)
@given(st.integers(1, 29), st.integers(0, 99))
def test_the_largest_logits_are_those_of_a_stable_sort(top_k, seed):
    generator = torch.Generator().manual_seed(seed)
    few = torch.randint(-4, 5, (20, 30), generator=generator) * torch.tensor([-0.5, 1e-40, 3e38 / 4])[:, None, None]
    tensor = torch.cat([*few, torch.randn(20, 30, generator=generator)])  # many equal, denormal and -0.0; few equal
    wanted = tensor.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    assert torch.equal(stored(tensor, top_k=top_k)["classes"].long(), wanted)


def test_logits_at_the_end_of_the_range_give_no_nan():
    most = torch.finfo(torch.float32).max
    tensor = torch.tensor([[most, -most, 0.0, most], [-most, -most, -most, -most]])
    assert again(tensor, top_k=1).isfinite().all()
    assert again(torch.tensor([[65504.0, -65504.0, 1.0]]), "float16", top_k=1).isfinite().all()


@pytest.mark.parametrize(("classes", "dtype"), [(2**16, torch.int16), (2**16 + 1, torch.int32)])
def test_the_last_class_is_found_again_in_few_bits(classes, dtype):
    tensor = torch.zeros(1, classes)
    tensor[0, -1] = 5.0
    assert stored(tensor, top_k=1)["classes"].dtype == dtype
    assert class_indices(stored(tensor, top_k=1)["classes"]).tolist() == [[classes - 1]]
    assert again(tensor, top_k=1)[0].argmax() == classes - 1


@pytest.mark.parametrize(
    ("dtype", "top_k", "classes"), [("float16", None, 9), ("float16", 4, 9), ("float16", 4, 40_000)]
)
def test_the_parts_are_what_is_stored(dtype, top_k, classes):
    parts = parts_of(Format(dtype, top_k), (classes,))
    arrays = stored(torch.randn(3, classes), dtype, top_k)
    assert {part.name: (part.dtype, part.shape) for part in parts} == {
        name: (array.dtype, tuple(array.shape[1:])) for name, array in arrays.items()
    }
    assert [part.row_bytes for part in parts] == [array[0].nbytes for array in (arrays[part.name] for part in parts)]


@pytest.mark.parametrize("shape", [(4,), (3,), (9, 2), ()])
def test_more_logits_than_there_are_or_of_maps_are_refused(shape):
    with pytest.raises(LimbeckError, match=r"top_k is 4 for a tensor of .* allowed is 1 to classes - 1"):
        parts_of(Format(top_k=4), shape)


@pytest.mark.parametrize(("dtype", "most"), [("float16", 65504.0), ("bfloat16", 3.3895e38)])
def test_a_number_beyond_the_dtype_is_refused_and_its_sample_named(dtype, most):
    assert again(torch.tensor([[most, -most]]), dtype).isfinite().all()
    with pytest.raises(LimbeckError, match=rf"teacher of sample 41 reaches .* and {dtype} ends at .* store it as"):
        stored(torch.tensor([[1.0, 2.0], [1.0, -1.01 * most]] if dtype == "float16" else [[1.0], [3.4e38]]), dtype)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("top_k", [None, 1])
def test_what_is_no_number_is_refused_and_its_sample_named(value, top_k):
    with pytest.raises(LimbeckError, match="teacher of sample 42 holds a NaN or an infinite number"):
        stored(torch.tensor([[0.0, 1.0], [0.0, 1.0], [value, 1.0]]), top_k=top_k)


def test_whole_numbers_are_refused():
    with pytest.raises(LimbeckError, match=r"teacher gives torch\.int64: a store holds floating numbers"):
        stored(torch.ones(2, 3, dtype=torch.int64))


def within(arrays, fresh, dtype="float32", top_k=None, precision="32"):
    away, allowed = deviation(arrays, fresh, Format(dtype, top_k), precision)
    assert away.shape == allowed.shape == fresh.shape[:1]
    return (away <= allowed).tolist()


@settings(deadline=None)
@given(
    st.sampled_from(list(DTYPES)), st.sampled_from([None, 1, 4]), st.sampled_from([0.0, 1e-7, 1.0, 1e4]), st.integers(0)
)
def test_what_was_stored_deviates_by_no_more_than_rounding(dtype, top_k, scale, seed):
    fresh = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed % 2**63)) * scale
    assert within(stored(fresh, dtype, top_k), fresh, dtype, top_k) == [True] * 3


@pytest.mark.parametrize(("dtype", "step"), [("float32", 4e-5), ("float16", 1.1e-3), ("bfloat16", 8.5e-3)])
def test_a_step_more_than_rounding_is_too_far(dtype, step):
    fresh = torch.tensor([[1.0, 0.5], [1.0, 0.25]])
    moved = fresh.clone()
    moved[1, 0] += step
    assert within(stored(moved, dtype), fresh, dtype) == [True, False]


@pytest.mark.parametrize(("precision", "share"), [("32", 1.5e-5), ("tf32", 3.9e-3), ("bf16", 3.1e-2)])
def test_two_forwards_may_differ_by_a_share_of_the_largest_number(precision, share):
    fresh = torch.tensor([[8.0, 0.0], [0.0, 8.0]])
    moved = fresh + torch.tensor([[0.0, 8 * share], [8 * 1.1 * share, 0.0]])
    assert within(stored(moved), fresh, precision=precision) == [True, False]


def test_a_tie_may_be_broken_otherwise_but_a_lesser_logit_is_not_kept_for_a_greater():
    fresh = torch.tensor([[3.0, 1.0, 1.000001, 0.0], [3.0, 1.0, 1.1, 0.0]])
    other = fresh.clone()
    other[:, 1] += 0.2  # class 1 was the second largest
    arrays = stored(other, top_k=2)
    arrays["values"][:, 1] = 1.0
    arrays["values"][:, 2] = ((fresh[:, 2].exp() + 1) / 2).log()
    assert arrays["classes"].tolist() == [[0, 1], [0, 1]]
    assert within(arrays, fresh, top_k=2) == [True, False]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_of_the_largest_logits_each_and_the_tail_are_compared(place):
    fresh = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    arrays = stored(fresh, top_k=2)
    arrays["values"][0, place] += 1e-3
    assert within(arrays, fresh, top_k=2) == [False]
