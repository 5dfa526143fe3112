import copy

import pytest
import torch
from torch import nn

from limbeck.core import LimbeckError
from limbeck.data import normalise
from limbeck.models.inputs import LUMA, STATISTICS, Bridge, Input, as_deployed, resized

MEAN, STD = (0.2, 0.5, 0.7), (0.1, 0.3, 0.2)


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (4, 3, 12, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def bridged(pixels, statistics=(MEAN, STD), **expected):
    """A normalised batch through the bridge."""
    bridge = Bridge(Input(**expected), pixels.shape[1:], *statistics)
    return bridge.convert(normalise(pixels, *statistics))


def close(one, other):
    assert one.shape == other.shape
    torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


def test_other_statistics_give_what_the_network_alone_would_get(pixels):
    close(bridged(pixels, mean="imagenet", std="imagenet"), normalise(pixels, *STATISTICS["imagenet"]))
    close(bridged(pixels, mean=(0.1, 0.2, 0.3), std=0.5), normalise(pixels, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5)))


def test_a_range_of_255_gives_the_pixels(pixels):
    torch.testing.assert_close(bridged(pixels, range=255.0), pixels.float(), rtol=1e-5, atol=1e-4)


def test_named_statistics_are_scaled_with_the_range(pixels):
    close(bridged(pixels, mean="imagenet", std="imagenet", range=255.0), normalise(pixels, *STATISTICS["imagenet"]))


def test_statistics_in_numbers_are_of_values_up_to_the_range(pixels):
    expected = pixels.float() - torch.tensor([103.5, 116.0, 123.0]).view(1, 3, 1, 1)
    found = bridged(pixels, mean=(103.5, 116.0, 123.0), std=1.0, range=255.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_bgr_reverses_the_channels_and_the_statistics_are_in_the_networks_order(pixels):
    found = bridged(pixels, channels="bgr", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    close(found, normalise(pixels.flip(1), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)))


def test_bgr_without_statistics_is_the_normalised_batch_reversed(pixels):
    close(bridged(pixels, channels="bgr"), normalise(pixels, MEAN, STD).flip(1))


def test_colour_becomes_grey_by_the_luma(pixels):
    grey = sum(weight * pixels[:, [channel]].double() / 255 for channel, weight in enumerate(LUMA))
    close(bridged(pixels, channels="gray", mean=0.4, std=0.2), ((grey - 0.4) / 0.2).float())


def test_grey_is_repeated_and_each_channel_has_its_own_statistics(pixels):
    grey = pixels[:, :1]
    found = bridged(grey, ((0.3,), (0.2,)), channels="rgb", mean="imagenet", std="imagenet")
    close(found, normalise(grey.expand(-1, 3, -1, -1), *STATISTICS["imagenet"]))


def test_another_size_is_the_resized_view(pixels):
    found = bridged(pixels, size=6, mean="none", std="none")
    close(found, resized(pixels.float() / 255, (6, 6)))


def test_the_resized_image_covers_the_size_and_is_not_stretched():
    image = torch.zeros(1, 1, 8, 16)
    image[..., 4:12] = 1.0  # the centre that is left
    assert torch.equal(resized(image, (8, 8)), torch.ones(1, 1, 8, 8))
    assert resized(torch.zeros(1, 3, 7, 5), (11, 4)).shape == (1, 3, 11, 4)


def test_the_size_of_the_data_is_left_alone(pixels):
    assert torch.equal(resized(pixels.float(), (12, 16)), pixels.float())


def test_vectors_have_one_mean_or_one_for_all():
    inputs = torch.randn(5, 7)
    close(Bridge(Input(mean=0.5, std=2.0), (7,), (0.1,), (0.3,)).convert((inputs - 0.1) / 0.3), (inputs - 0.5) / 2)


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        (Input(), False),
        (Input(mean=MEAN, std=STD), False),
        (Input(mean=MEAN, std=STD, size=(12, 16)), False),
        (Input(mean=MEAN, std=STD, channels="rgb"), False),
        (Input(channels="bgr"), True),
        (Input(channels="gray"), True),
        (Input(size=6), True),
        (Input(range=255.0), True),
        (Input(mean=MEAN, std=(0.1, 0.3, 0.25)), True),
    ],
)
def test_a_bridge_says_whether_it_changes_anything(pixels, expected, changes):
    assert Bridge(expected, pixels.shape[1:], MEAN, STD).changes == changes


def test_the_hook_converts_before_the_network_and_its_copies(pixels):
    network = nn.Flatten()
    bridge = Bridge(Input(mean="imagenet", std="imagenet"), pixels.shape[1:], MEAN, STD)
    handle = bridge.install(network)
    batch = normalise(pixels, MEAN, STD)
    wanted = normalise(pixels, *STATISTICS["imagenet"]).flatten(1)
    close(network(batch), wanted)
    close(copy.deepcopy(network)(batch), wanted)
    with as_deployed([network]):
        assert torch.equal(network(batch), batch.flatten(1))
    handle.remove()
    assert torch.equal(network(batch), batch.flatten(1))


def test_a_batch_in_64_bits_stays_so(pixels):
    bridge = Bridge(Input(mean="imagenet", std="imagenet"), pixels.shape[1:], MEAN, STD)
    exact = bridge.convert(normalise(pixels, MEAN, STD).double())
    assert exact.dtype == torch.float64
    assert bridge.convert(normalise(pixels, MEAN, STD)).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": 0.5}, "a mean and a std, or neither"),
        ({"mean": "imagnet", "std": "imagenet"}, "mean is 'imagnet': did you mean 'imagenet'"),
        ({"mean": 0.5, "std": 0.0}, "std is 0.0: allowed are finite numbers greater than 0"),
        ({"mean": float("nan"), "std": 1.0}, "finite numbers"),
        ({"channels": "rbg"}, "channels is 'rbg': did you mean 'rgb'"),
        ({"range": 0.0}, "range is 0.0: allowed are numbers greater than 0"),
        ({"range": float("nan")}, "range is nan"),
        ({"size": 0}, "size is 0: allowed are a height and a width of at least 1"),
        ({"size": (4, 4, 4)}, "size is"),
    ],
)
def test_an_input_that_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        Input(**options)


@pytest.mark.parametrize(
    ("expected", "shape", "message"),
    [
        (Input(mean=(0.1, 0.2), std=0.5), (3, 4, 4), "has 2 means or deviations for 3 channels"),
        (Input(size=8), (7,), "is an image, but the samples have shape"),
        (Input(channels="rgb"), (4, 8, 8), "the data has 4; allowed are 1 and 3"),
    ],
)
def test_an_input_that_does_not_fit_the_data_is_refused(expected, shape, message):
    channels = shape[0] if len(shape) == 3 else 1
    with pytest.raises(LimbeckError, match=message):
        Bridge(expected, shape, (0.5,) * channels, (0.5,) * channels)
