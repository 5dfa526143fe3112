import math

import pytest
import torch

from limbeck.core import LimbeckError
from limbeck.evaluate.corruptions import CORRUPTIONS, STRENGTHS, corrupt


@pytest.fixture
def images():
    return torch.rand(3, 3, 12, 10)


def slow_blur(image, deviation):
    """One channel, reflected at the borders, pixel by pixel."""
    height, width = image.shape
    radius = int(4 * deviation + 0.5)

    def reflected(place, side):
        place = abs(place)
        return 2 * (side - 1) - place if place >= side else place

    weights = {step: math.exp(-0.5 * (step / deviation) ** 2) for step in range(-radius, radius + 1)}
    total = sum(weights.values()) ** 2
    return torch.tensor(
        [
            [
                sum(
                    weights[y] * weights[x] * image[reflected(row + y, height), reflected(column + x, width)].item()
                    for y in weights
                    for x in weights
                )
                / total
                for column in range(width)
            ]
            for row in range(height)
        ]
    )


def test_blur_is_that_of_slow_loops(images):
    found = corrupt(images, "gaussian_blur", 2)
    low, high = images.min(), images.max()
    assert torch.allclose(found[1, 2], slow_blur(images[1, 2], 0.6), atol=1e-5)
    assert found.min() >= low
    assert found.max() <= high


def test_contrast_moves_each_channel_towards_its_mean(images):
    found = corrupt(images, "contrast", 5)
    for image, its in zip(images, found, strict=True):
        for channel, corrupted in zip(image, its, strict=True):
            mean = sum(channel.flatten().tolist()) / channel.numel()
            assert torch.allclose(corrupted, mean + 0.15 * (channel - mean), atol=1e-6)


def test_noise_has_the_deviation_of_the_paper_and_stays_in_range():
    grey = torch.full((20, 1, 32, 32), 128, dtype=torch.uint8)
    noise = [corrupt(grey, "gaussian_noise", strength) - 128 / 255 for strength in STRENGTHS]
    assert [one.std().item() for one in noise] == pytest.approx([0.04, 0.06, 0.08, 0.09, 0.10], rel=0.02)
    assert abs(noise[0].mean().item()) < 1e-3
    black = corrupt(torch.zeros_like(grey), "gaussian_noise", 5)
    assert (black.min(), black.max() <= 1) == (0, True)


def test_the_noise_of_strengths_has_one_shape():
    grey = torch.full((2, 1, 32, 32), 128, dtype=torch.uint8)
    one, other = (corrupt(grey, "gaussian_noise", strength) - 128 / 255 for strength in (1, 3))
    assert torch.allclose(other, 2 * one, atol=1e-6)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_stronger_corruption_changes_more(images, kind):
    changes = [(corrupt(images, kind, strength) - images).square().sum() for strength in STRENGTHS]
    assert changes == sorted(changes)
    assert changes[0] > 0


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_bytes_are_corrupted_as_their_255th_parts(kind):
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    images[0, 0, 0, :2] = torch.tensor([0, 255])
    before = images.clone()
    assert torch.allclose(corrupt(images, kind, 3), corrupt(images / 255, kind, 3), atol=1e-6)
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_floats_are_corrupted_in_their_own_range(images, kind):
    found = corrupt(40 * images - 7, kind, 4)
    assert torch.allclose(found, 40 * corrupt(images, kind, 4) - 7, atol=1e-4)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 16, 2, 5), (1, 3, 40, 7), (1, 1, 70, 3)])
def test_images_of_any_size_and_channels_keep_their_shape(kind, shape):
    found = corrupt(torch.rand(shape).double(), kind, 5)
    assert (found.shape, found.dtype) == (shape, torch.float32)
    assert found.isfinite().all()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_constant_images_stay_as_they_are(kind):
    images = torch.full((2, 3, 6, 6), 0.3)
    assert torch.allclose(corrupt(images, kind, 5), images, atol=1e-6)


@pytest.mark.parametrize(
    ("side", "noise", "blur", "contrast"),
    [(32, 0.04, 0.4, 0.75), (33, 0.04, 0.5, 0.4), (64, 0.04, 0.5, 0.4), (65, 0.08, 1, 0.4)],
)
def test_images_are_corrupted_as_in_the_benchmark_of_their_size(side, noise, blur, contrast):
    halves = torch.zeros(1, 1, 5, side, dtype=torch.uint8)
    halves[..., side // 2 :] = 255
    mean = halves.double().mean() / 255
    assert corrupt(halves, "contrast", 1).max().item() == pytest.approx(mean + contrast * (1 - mean))
    weights = [math.exp(-0.5 * (step / blur) ** 2) for step in range(-5, 6)]
    assert corrupt(halves, "gaussian_blur", 1)[0, 0, 2, side // 2].item() == pytest.approx(
        sum(weights[5:]) / sum(weights), abs=1e-3
    )
    grey = torch.full((1, 3, side, side), 128, dtype=torch.uint8)
    assert corrupt(grey, "gaussian_noise", 1).std().item() == pytest.approx(noise, rel=0.1)


def test_the_same_seed_gives_the_same_noise_and_leaves_the_generator_alone(images):
    state = torch.get_rng_state()
    first, second, other = (corrupt(images, "gaussian_noise", 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("shape", [(4, 9), (2, 3, 9), (0, 3, 8, 8)])
def test_what_is_no_image_is_an_error(shape):
    with pytest.raises(LimbeckError, match="cannot be corrupted: allowed are images"):
        corrupt(torch.rand(shape), "contrast", 1)


def test_an_unknown_corruption_or_strength_is_an_error(images):
    with pytest.raises(LimbeckError, match="there is no corruption 'contrasts': did you mean 'contrast'"):
        corrupt(images, "contrasts", 1)
    for strength in (0, 6):
        with pytest.raises(LimbeckError, match=f"the strength is {strength}: allowed are 1 to 5"):
            corrupt(images, "contrast", strength)
