"""Label smoothing, mixup, CutMix, unlabelled samples, sample weights and balanced classes."""

import math
from dataclasses import replace

import numpy
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup

from limbeck.core import Batch, LimbeckError
from limbeck.data import Augment, Batches, Split
from limbeck.data.soft_targets import SoftTargets, soft_targets
from limbeck.methods.alone import hard_loss

CLASSES = 5


def images(count=12, side=8):
    generator = torch.Generator().manual_seed(0)
    return Split(torch.rand(count, 3, side, side, generator=generator), torch.arange(count) % CLASSES)


def batches(split=None, **options):
    split = images() if split is None else split
    settings = {"batch_size": 4, "seed": 3, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    return Batches(split, **settings | options)


def mixes(**options):
    return batches(soft=SoftTargets(CLASSES, **options))


def logits(count=4):
    return torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_label_smoothing_gives_the_loss_of_torch():
    targets = torch.tensor([0, 4, 2, 2])
    rows = SoftTargets(CLASSES, label_smoothing=0.1).rows(targets, None)
    assert torch.equal(rows.argmax(1), targets)
    torch.testing.assert_close(
        hard_loss(logits(), rows.double()), F.cross_entropy(logits(), targets, label_smoothing=0.1), rtol=1e-6, atol=0
    )


def test_the_loss_with_rows_is_the_cross_entropy_in_plain_loops():
    rows = torch.rand(4, CLASSES, dtype=torch.float64)
    total = sum(
        -rows[n, k] * (logits()[n, k] - math.log(sum(math.exp(z) for z in logits()[n])))
        for n in range(4)
        for k in range(CLASSES)
    )
    torch.testing.assert_close(hard_loss(logits(), rows), total / rows.sum())
    assert torch.autograd.gradcheck(lambda z: hard_loss(z, rows), logits().requires_grad_())


def test_the_loss_counts_the_labelled_samples_only():
    targets = torch.tensor([1, -1, 3, -1])
    rows = SoftTargets(CLASSES).rows(targets, None)
    expected = F.cross_entropy(logits(), targets, ignore_index=-1)
    torch.testing.assert_close(hard_loss(logits(), rows), expected)


def test_a_batch_without_labels_has_the_loss_0_and_the_gradient_0():
    student = logits().float().requires_grad_()
    loss = hard_loss(student, SoftTargets(CLASSES, label_smoothing=0.1).rows(torch.full((4,), -1), None))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(student.grad, torch.zeros(4, CLASSES))


def test_sample_weights_give_a_weighted_mean():
    targets, weights = torch.tensor([1, 0, 3, 2]), torch.tensor([0.5, 2.0, 0.0, 1.0])
    rows = SoftTargets(CLASSES).rows(targets, weights)
    each = F.cross_entropy(logits(), targets, reduction="none")
    torch.testing.assert_close(hard_loss(logits(), rows), (weights * each).sum() / weights.sum())


def test_mixup_mixes_inputs_and_targets_with_the_batch_rolled_by_one():
    for plain, mixed in zip(mixes(label_smoothing=0.1)(2), mixes(label_smoothing=0.1, mixup=0.4)(2), strict=True):
        assert torch.equal(plain.index, mixed.index)
        share = ((mixed.targets - plain.targets.roll(1, 0)) / (plain.targets - plain.targets.roll(1, 0))).nanmedian()
        assert 0 < share < 1
        for made, one in ((mixed.inputs, plain.inputs), (mixed.targets, plain.targets)):
            torch.testing.assert_close(made, share * one + (1 - share) * one.roll(1, 0))
        torch.testing.assert_close(mixed.targets.sum(1), torch.ones(4))


def test_cutmix_cuts_one_box_whose_share_is_that_of_the_targets():
    for plain, mixed in zip(batches()(1), mixes(cutmix=1.0)(1), strict=True):
        own = (mixed.inputs == plain.inputs).all(1)
        other = (mixed.inputs == plain.inputs.roll(1, 0)).all(1)
        assert (own ^ other).all()
        assert all(torch.equal(place, own[0]) for place in own)
        rows, columns = other[0].any(1).nonzero(), other[0].any(0).nonzero()
        area = 0 if not len(rows) else int((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1))
        assert int(other[0].sum()) == area
        share = 1 - area / 64
        hot = F.one_hot(plain.targets, CLASSES).float()
        torch.testing.assert_close(mixed.targets, share * hot + (1 - share) * hot.roll(1, 0))


@pytest.mark.parametrize("options", [{"mixup": 0.3}, {"cutmix": 1.0}])
def test_a_pair_is_mixed_as_timm_mixes_it(options, monkeypatch):
    """timm mixes a batch with its reverse, which for two samples is the batch rolled by one."""
    whole, soft = images(2, side=32), SoftTargets(CLASSES, label_smoothing=0.1, **options)
    plain = Batch(whole.inputs, soft.rows(whole.targets, None), torch.arange(2), 0)
    compared = 0
    for number in range(20):
        made = soft.mixed(0, 0, number, plain)
        share = _share(made, plain)
        if options.get("cutmix"):
            changed = (made.inputs != plain.inputs).any(1)[0]
            rows, columns = (changed.any(by).nonzero().flatten() for by in (1, 0))
            if not len(rows) or min(rows[0], columns[0]) == 0 or max(rows[-1], columns[-1]) == 31:
                continue  # a box that the border clips has no known centre
            side = len(rows)
            centre = iter([int(rows[0]) + side // 2, int(columns[0]) + side // 2])
            monkeypatch.setattr(numpy.random, "randint", lambda *a, centre=centre, **k: next(centre))
            share = 1 - (side / 32 + 1e-6) ** 2
        monkeypatch.setattr(numpy.random, "beta", lambda *a, share=share: share)
        timms = Mixup(
            mixup_alpha=options.get("mixup", 0.0),
            cutmix_alpha=options.get("cutmix", 0.0),
            label_smoothing=0.1,
            num_classes=CLASSES,
        )
        inputs, targets = timms(whole.inputs.clone(), whole.targets)
        torch.testing.assert_close(made.inputs, inputs)
        torch.testing.assert_close(made.targets, targets)
        compared += 1
    assert compared >= 3


def _share(made, plain):
    return float((made.targets - plain.targets.flip(0))[0, 0] / (plain.targets - plain.targets.flip(0))[0, 0])


def test_with_both_alphas_each_batch_uses_one_of_the_two():
    kinds = []
    for epoch in range(10):
        for plain, mixed in zip(batches()(epoch), mixes(mixup=1.0, cutmix=1.0)(epoch), strict=True):
            cut = (mixed.inputs == plain.inputs) | (mixed.inputs == plain.inputs.roll(1, 0))
            kinds.append(bool(cut.all()))
    assert 8 <= sum(kinds) <= 22


def test_a_mixed_batch_is_a_function_of_seed_epoch_and_its_place_alone():
    made = mixes(mixup=0.4, cutmix=1.0)
    first = [batch.inputs for batch in made(1)]
    list(made(0))
    torch.manual_seed(9)
    assert all(torch.equal(one, batch.inputs) for one, batch in zip(first, made(1), strict=True))
    other = Batches(images(), batch_size=4, seed=4, mean=(0.0,) * 3, std=(1.0,) * 3, soft=made._soft)
    assert not torch.equal(first[0], next(iter(other(1))).inputs)
    assert not torch.equal(first[0], next(iter(made(2))).inputs)


def test_mixing_leaves_the_generators_as_they_were():
    numpy.random.seed(0)
    state, arrays = torch.manual_seed(3).get_state(), numpy.random.get_state()[1].copy()
    list(mixes(mixup=0.4, cutmix=1.0)(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert (numpy.random.get_state()[1] == arrays).all()


def test_inputs_are_mixed_after_they_are_augmented():
    augment = Augment(flip=True, crop=1)
    soft = SoftTargets(CLASSES, mixup=0.4)
    for plain, mixed in zip(batches(augment=augment)(0), batches(augment=augment, soft=soft)(0), strict=True):
        both = torch.stack([plain.inputs, plain.inputs.roll(1, 0)])
        assert (mixed.inputs >= both.amin(0) - 1e-6).all()
        assert (mixed.inputs <= both.amax(0) + 1e-6).all()
        assert mixed.view == plain.view


def test_a_pass_in_order_is_not_mixed():
    made, plain = mixes(mixup=0.4), batches()
    for one, other in ((made.sweep(), plain.sweep()), (made.view(1), plain.view(1))):
        assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("shape", [(6,), (2, 5)])
def test_features_and_signals_can_be_mixed_and_not_cut(shape):
    split, channels = Split(torch.rand(8, *shape), torch.arange(8) % CLASSES), 1 if len(shape) == 1 else shape[0]
    settings = {"batch_size": 4, "seed": 0, "mean": (0.0,) * channels, "std": (1.0,) * channels}
    (plain, *_) = Batches(split, **settings)(0)
    (mixed, *_) = Batches(split, **settings, soft=SoftTargets(CLASSES, mixup=4))(0)
    share = mixed.targets[0, plain.targets[0]]
    torch.testing.assert_close(mixed.inputs, share * plain.inputs + (1 - share) * plain.inputs.roll(1, 0))
    with pytest.raises(LimbeckError, match=r"cutmix is 1.0, but the inputs have shape \(8, .*\); allowed are \(N, C"):
        Batches(split, **settings, soft=SoftTargets(CLASSES, cutmix=1.0))


def test_a_batch_of_one_sample_cannot_be_mixed():
    with pytest.raises(LimbeckError, match=r"mixup and cutmix mixes .* batch_size is 1, it must be 2 or more"):
        batches(batch_size=1, soft=SoftTargets(CLASSES, mixup=1.0, cutmix=1.0))
    assert len(batches(batch_size=1, soft=SoftTargets(CLASSES, label_smoothing=0.1))) == 12


def test_targets_stay_class_indices_unless_something_asks_for_more():
    split = images()
    assert soft_targets(split, CLASSES) is None
    assert soft_targets(split, CLASSES, mixup=0.1).reasons == ("mixup",)
    some = replace(split, targets=split.targets.where(split.targets > 0, -1), weights=torch.ones(len(split)))
    assert soft_targets(some, CLASSES, label_smoothing=0.1).reasons == (
        "label_smoothing",
        "unlabelled samples",
        "sample weights",
    )


# balanced


def skewed():
    targets = torch.tensor([0] * 30 + [2] * 6 + [3] * 2)
    return Split(torch.rand(len(targets), 3, 8, 8), targets)


def test_balanced_draws_each_class_equally_often_up_to_one():
    made = batches(skewed(), balanced=True)
    for epoch in range(3):
        index = torch.cat([batch.index for batch in made(epoch)])
        counts = torch.bincount(skewed().targets[index], minlength=4).tolist()
        assert sorted(counts) == [0, 12, 13, 13]
        assert counts[1] == 0
        each = torch.bincount(index, minlength=38)
        assert each[:30].max() == 1
        assert each[30:36].max() - each[30:36].min() <= 1


def test_the_balanced_order_is_a_function_of_seed_and_epoch_and_not_of_the_batch_size():
    def order(epoch, **options):
        return torch.cat([batch.index for batch in batches(skewed(), balanced=True, **options)(epoch)])

    assert torch.equal(order(1), order(1, batch_size=2))
    assert not torch.equal(order(1), order(2))
    assert not torch.equal(order(1), order(1, seed=4))


def test_over_the_epochs_every_sample_of_a_large_class_is_drawn():
    made = batches(skewed(), balanced=True)
    assert len({int(place) for epoch in range(20) for batch in made(epoch) for place in batch.index}) == 38


def test_balanced_needs_a_label_for_every_sample():
    split = replace(images(), targets=torch.tensor([-1] * 3 + [1] * 9))
    with pytest.raises(LimbeckError, match="balanced draws samples by their class, but 3 samples are unlabelled"):
        batches(split, balanced=True)
