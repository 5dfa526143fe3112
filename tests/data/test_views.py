import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.core import LimbeckError
from limbeck.data import Augment
from limbeck.data.keys import Purpose, below, draw, key, mix
from limbeck.data.views import change, draws

EVERYTHING = Augment(crop=2, shift=1, flip=True, cutout=3)
MANY = torch.arange(50_000)


def pictures(count=40, channels=2, height=9, width=7, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 256, (count, channels, height, width), generator=generator).to(dtype)


def augment(images, index, *, options, seed, view):
    """The images as `Batches` changes those of this index."""
    return change(images, draws(index, options=options, seed=seed, view=view), options=options)


def chi_square(values, bins):
    counts = torch.bincount(values, minlength=bins).double()
    expected = len(values) / bins
    return float(((counts - expected) ** 2 / expected).sum())


def unlikely(degrees):
    """About six deviations above a chi-square's mean."""
    return degrees + 6 * (2 * degrees) ** 0.5


# keys


def test_mix_of_whole_numbers_and_of_tensors_is_the_same_bijection_of_32_bits():
    words = [0, 1, 2, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, *range(1000, 2000)]
    mixed = mix(torch.tensor(words)).tolist()
    assert mixed == [mix(word) for word in words]
    assert len(set(mixed)) == len(words)
    assert all(0 <= word < 2**32 for word in mixed)


def test_mix_changes_half_of_the_bits_when_one_changes():
    words = draw(torch.arange(2000), Purpose.SPLIT, 0)
    for bit in range(32):
        changed = mix(words) ^ mix(words ^ (1 << bit))
        share = torch.stack([(changed >> place) & 1 for place in range(32)]).double().mean(1)
        assert (share - 0.5).abs().max() < 0.06


def test_key_is_told_apart_by_every_part_and_by_their_order():
    parts = [(0,), (0, 0), (1, 0), (0, 1), (2**32, 0), (0, 2**32), (-1, 0), (0, -1)]
    assert len({key(*part) for part in parts}) == len(parts)


def test_draws_below_a_bound_stay_below_it():
    numbers = torch.tensor([0, 2**31, 2**32 - 1])
    assert below(numbers, 81).tolist() == [0, 40, 80]
    assert below(numbers, 2**31).tolist() == [0, 2**30, 2**31 - 1]


@pytest.mark.parametrize("bins", [2, 25, 81, 1024])
@pytest.mark.parametrize("purpose", [Purpose.CROP, Purpose.FLIP])
def test_draws_are_uniform_over_the_samples(bins, purpose):
    for seed, view in itertools.product((0, 1, 123456789), (0, 1, 199)):
        assert chi_square(below(draw(MANY, purpose, seed, view), bins), bins) < unlikely(bins - 1)


def test_draws_of_one_sample_are_uniform_over_the_views():
    for sample in (0, 7, 49_999):
        values = torch.cat([draw(torch.tensor([sample]), Purpose.CROP, 3, view) for view in range(2000)])
        assert chi_square(below(values, 25), 25) < unlikely(24)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((Purpose.CROP, 0, 0), (Purpose.SHIFT, 0, 0)),
        ((Purpose.CROP, 0, 0), (Purpose.FLIP, 0, 0)),
        ((Purpose.CROP, 0, 0), (Purpose.CROP, 0, 1)),
        ((Purpose.CROP, 0, 0), (Purpose.CROP, 1, 0)),
        ((Purpose.CROP, 0, 1), (Purpose.CROP, 1, 0)),
        ((Purpose.FLIP, 5, 6), (Purpose.FLIP, 6, 5)),
    ],
)
def test_draws_of_another_purpose_seed_or_view_are_independent(one, other):
    pairs = below(draw(MANY, *one), 16) * 16 + below(draw(MANY, *other), 16)
    assert chi_square(pairs, 256) < unlikely(255)


def test_draws_of_neighbouring_samples_are_independent():
    values = below(draw(MANY, Purpose.CROP, 0, 0), 16)
    assert chi_square(values[:-1] * 16 + values[1:], 256) < unlikely(255)


def test_another_view_is_no_reordering_of_the_same_draws():
    one, other = (draw(torch.arange(2**16), Purpose.CROP, 0, view) for view in (0, 1))
    assert len(set(one.tolist()) & set(other.tolist())) < 10  # by chance 1 in 2**32 for each of 2**32 pairs


# Augment


@pytest.mark.parametrize("option", ["crop", "shift", "cutout"])
def test_a_negative_length_is_refused(option):
    with pytest.raises(LimbeckError, match=f"augmentation {option} is -1"):
        Augment(**{option: -1})


# augment


@given(st.permutations(range(12)), st.lists(st.integers(1, 5), max_size=4))
def test_any_order_and_partition_of_the_samples_gives_the_same_bytes(order, sizes):
    images = pictures(12)
    whole = augment(images, torch.arange(12), options=EVERYTHING, seed=9, view=4)
    cuts = [0, *[cut for cut in itertools.accumulate(sizes) if cut < 12], 12]
    for start, stop in itertools.pairwise(cuts):
        index = torch.tensor(order[start:stop])
        part = augment(images[index], index, options=EVERYTHING, seed=9, view=4)
        assert torch.equal(part, whole[index])


def test_bytes_are_the_ones_recorded():
    # A change here changes every run and makes every store of teacher outputs useless.
    images = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5).repeat(3, 1, 1, 1)
    result = augment(images, torch.tensor([0, 1, 70_000]), options=EVERYTHING, seed=2**40 + 1, view=6)
    weights = torch.arange(25)
    assert (result.flatten(1) * weights).sum(1).tolist() == [1550, 900, 2489]


def test_floats_are_changed_as_bytes_are():
    index = torch.arange(40)
    result = augment(pictures(dtype=torch.float32), index, options=EVERYTHING, seed=0, view=0)
    assert result.dtype == torch.float32
    assert torch.equal(result, augment(pictures(), index, options=EVERYTHING, seed=0, view=0).float())


@pytest.mark.parametrize(
    "lay", [lambda x: x.contiguous(memory_format=torch.channels_last), lambda x: x.repeat(1, 1, 1, 2)[..., :7]]
)
def test_the_memory_format_changes_nothing(lay):
    options = {"index": torch.arange(40), "options": EVERYTHING, "seed": 3, "view": 1}
    images = lay(pictures())
    result = augment(images, **options)
    assert torch.equal(result, augment(pictures(), **options))
    assert torch.equal(images, pictures())


def test_no_images_are_changed_to_none():
    none = torch.arange(0)
    assert augment(pictures()[:0], none, options=EVERYTHING, seed=0, view=0).shape == (0, 2, 9, 7)


def test_the_input_is_left_as_it_was():
    images = pictures()
    augment(images, torch.arange(40), options=EVERYTHING, seed=0, view=0)
    assert torch.equal(images, pictures())


def test_no_generator_is_touched():
    state = torch.manual_seed(3).get_state()
    augment(pictures(), torch.arange(40), options=EVERYTHING, seed=0, view=0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("other", [{"seed": 1, "view": 0}, {"seed": 0, "view": 1}])
def test_another_seed_or_view_gives_other_images(other):
    images, index = pictures(), torch.arange(40)
    first = augment(images, index, options=EVERYTHING, seed=0, view=0)
    assert not torch.equal(first, augment(images, index, options=EVERYTHING, **other))


def moved(image, down, right):
    """The image moved in plain loops, black where nothing was."""
    result = torch.zeros_like(image)
    height, width = image.shape[1:]
    for row, column in itertools.product(range(height), range(width)):
        if 0 <= row - down < height and 0 <= column - right < width:
            result[:, row, column] = image[:, row - down, column - right]
    return result


@pytest.mark.parametrize("option", ["crop", "shift"])
def test_crop_and_shift_move_each_image_as_a_whole_and_fill_with_black(option):
    images = pictures(60)
    result = augment(images, torch.arange(60), options=Augment(**{option: 2}), seed=0, view=0)
    moves = list(itertools.product(range(-2, 3), repeat=2))
    seen = set()
    for before, after in zip(images, result, strict=True):
        fitting = [move for move in moves if torch.equal(moved(before, *move), after)]
        assert len(fitting) == 1
        seen.update(fitting)
    assert len(seen) > 15


def test_crop_of_4_covers_all_81_places_equally():
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 4, 4] = 1
    result = augment(image.expand(8100, -1, -1, -1), torch.arange(8100), options=Augment(crop=4), seed=0, view=0)
    places = result.flatten(1).int().argmax(1)
    assert (result.flatten(1).sum(1) == 1).all()
    assert len(set(places.tolist())) == 81
    assert chi_square(places, 81) < unlikely(80)


def test_crop_and_shift_are_drawn_separately():
    image = torch.zeros(500, 1, 9, 9, dtype=torch.uint8)
    image[:, 0, 4, 4] = 1
    places = [
        augment(image, torch.arange(500), options=options, seed=0, view=0).flatten(1).int().argmax(1)
        for options in (Augment(crop=2), Augment(shift=2))
    ]
    assert (places[0] == places[1]).double().mean() < 0.1


def test_flip_mirrors_half_of_the_images_left_to_right():
    images = pictures(2000, channels=1)
    result = augment(images, torch.arange(2000), options=Augment(flip=True), seed=0, view=0)
    flipped = (result == images.flip(3)).flatten(1).all(1)
    kept = (result == images).flatten(1).all(1)
    assert (flipped ^ kept).all()
    assert 900 < int(flipped.sum()) < 1100


def test_cutout_blacks_out_one_square_clipped_at_the_border():
    images = pictures(300, height=6, width=6)
    result = augment(images, torch.arange(300), options=Augment(cutout=3), seed=0, view=0)
    centres = set()
    for before, after in zip(images, result, strict=True):
        black = (after == 0).all(0)
        assert torch.equal(after, before * ~black)
        fitting = []
        for row, column in itertools.product(range(6), repeat=2):
            square = torch.zeros(6, 6, dtype=torch.bool)
            square[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
            fitting += [(row, column)] * torch.equal(square, black)
        assert len(fitting) == 1
        centres.update(fitting)
    assert len(centres) == 36


def test_cutout_of_an_even_side_has_that_side():
    result = augment(pictures(50, height=20, width=20), torch.arange(50), options=Augment(cutout=4), seed=0, view=0)
    assert int((result == 0).all(1).flatten(1).sum(1).max()) == 16


def test_features_cannot_be_augmented():
    with pytest.raises(LimbeckError, match=r"only images .* shape \(4, 3\)"):
        augment(torch.zeros(4, 3), torch.arange(4), options=Augment(flip=True), seed=0, view=0)


@pytest.mark.parametrize("option", ["crop", "shift", "cutout"])
def test_a_length_greater_than_the_image_is_refused(option):
    augment(pictures(), torch.arange(40), options=Augment(**{option: 7}), seed=0, view=0)
    with pytest.raises(LimbeckError, match="but the images are 9 x 7 pixels"):
        augment(pictures(), torch.arange(40), options=Augment(**{option: 8}), seed=0, view=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_bytes_are_the_same_on_another_device():
    images, index = pictures(), torch.arange(40)
    expected = augment(images, index, options=EVERYTHING, seed=3, view=5)
    result = augment(images.cuda(), index.cuda(), options=EVERYTHING, seed=3, view=5)
    assert torch.equal(result.cpu(), expected)
