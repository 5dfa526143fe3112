"""The batches of several processes are parts of those of one process."""

import pytest
import torch

from limbeck.core import LimbeckError
from limbeck.data import Augment, Batches
from limbeck.data.dividing import part_of
from limbeck.data.soft_targets import SoftTargets
from limbeck.data.split import Split

IMAGES = torch.randint(0, 256, (23, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def batches(part=(0, 1), **options):
    split = Split(IMAGES, torch.arange(23) % 3)
    given = {"batch_size": 5, "seed": 1, "mean": (0.5,) * 3, "std": (0.2,) * 3, "augment": Augment(crop=1, flip=True)}
    return Batches(split, **given | options, part=part)


@pytest.mark.parametrize("total", [0, 1, 5, 8])
def test_the_parts_of_a_batch_are_all_of_it_in_order_and_differ_by_one(total):
    parts = [torch.arange(total)[part_of(total, number, 3)] for number in range(3)]
    assert torch.cat(parts).tolist() == list(range(total))
    sizes = [len(one) for one in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("options", [{}, {"soft": SoftTargets(3, mixup=0.4)}, {"shuffle": False}, {"batch_size": 9}])
@pytest.mark.parametrize("count", [2, 3])
def test_the_processes_together_see_the_batches_of_one_to_the_bit(count, options):
    passes = [list(batches((number, count), **options)(2)) for number in range(count)]
    whole = list(batches(**options)(2))
    assert {len(one) for one in passes} == {len(whole)}
    for batch, *parts in zip(whole, *passes, strict=True):
        for field in ("inputs", "targets", "index"):
            assert torch.equal(torch.cat([getattr(one, field) for one in parts]), getattr(batch, field))
        assert {one.total for one in parts} == {len(batch.index)}


@pytest.mark.parametrize("size", [2, 7])
def test_a_batch_of_fewer_samples_than_processes_is_refused(size):
    with pytest.raises(LimbeckError, match=r"a batch has [12] samples for 4 processes"):
        batches((0, 4), batch_size=size)  # of 23 samples


def test_the_sweep_is_divided_too():
    parts = [torch.cat([batch.index for batch in batches((number, 2)).sweep()]) for number in range(2)]
    assert sorted(torch.cat(parts).tolist()) == list(range(23))
