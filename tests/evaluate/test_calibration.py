import math

import pytest
import torch

from limbeck.evaluate import metrics
from limbeck.evaluate.calibration import TEMPERATURES, calibration, fit_temperature, reliability


def drawn(samples, classes=3, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(samples, classes, generator=generator)
    return logits, torch.randint(0, classes, (samples,), generator=generator)


def slow_bins(logits, targets):
    kept = [[] for _ in range(15)]
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        powers = [math.exp(value - max(row)) for value in row]
        confidence = max(powers) / sum(powers)
        kept[min(int(confidence * 15), 14)].append((confidence, row.index(max(row)) == target))
    return kept


def with_confidence(confidence, samples, correct):
    """Logits of two classes and targets: so many samples have this confidence, and so many of them are correct."""
    logits = torch.tensor([[math.log(confidence / (1 - confidence)), 0.0]], dtype=torch.float64).expand(samples, 2)
    return logits, torch.tensor([0] * correct + [1] * (samples - correct))


def test_the_bins_are_those_of_a_slow_loop():
    logits, targets = drawn(200)
    found = reliability(logits, targets)
    for one, inside in zip(found.bins, slow_bins(logits, targets), strict=True):
        assert one.samples == len(inside)
        if inside:
            assert one.confidence == pytest.approx(sum(confidence for confidence, _ in inside) / len(inside))
            assert one.accuracy == pytest.approx(sum(hit for _, hit in inside) / len(inside))
        else:
            assert one.confidence is one.accuracy is None


def test_the_error_is_that_of_the_bins_and_of_the_metrics():
    logits, targets = drawn(500)
    found = reliability(logits, targets)
    summed = sum(one.samples * abs(one.confidence - one.accuracy) for one in found.bins if one.samples)
    assert found.ece == pytest.approx(summed / 500, abs=1e-6)
    assert (found.ece, found.cross_entropy) == (metrics(logits, targets).ece, metrics(logits, targets).cross_entropy)


def test_a_perfectly_calibrated_network_has_no_error_and_the_temperature_1():
    first, second = with_confidence(0.75, 100, 75), with_confidence(0.9, 100, 90)
    logits, targets = (torch.cat(pair) for pair in zip(first, second, strict=True))
    assert reliability(logits, targets).ece == pytest.approx(0, abs=1e-6)
    assert fit_temperature(logits, targets) == pytest.approx(1, abs=1e-4)


def test_logits_that_are_three_times_too_large_get_the_temperature_3_and_lose_their_error():
    logits, targets = with_confidence(0.75, 100, 75)
    found = calibration(3 * logits, targets, (3 * logits, targets))
    assert found.before.ece == pytest.approx(27 / 28 - 0.75, abs=1e-6)  # the odds 3 to 1 become 27 to 1
    assert found.temperature == pytest.approx(3, abs=1e-3)
    assert found.after.ece == pytest.approx(0, abs=1e-3)


def test_no_temperature_of_a_fine_grid_is_better():
    logits, targets = drawn(300, scale=5.0)
    fitted = fit_temperature(logits, targets)

    def cross_entropy(temperature):
        return torch.nn.functional.cross_entropy(logits.double() / temperature, targets).item()

    low, high = (math.log(end) for end in TEMPERATURES)
    grid = [math.exp(low + (high - low) * step / 400) for step in range(401)]
    assert cross_entropy(fitted) <= min(map(cross_entropy, grid)) + 1e-6


def test_the_temperature_is_that_of_the_validation_split_whatever_the_test_split():
    validation, test = drawn(100), drawn(100, seed=1)
    found = calibration(*test, validation)
    assert found.temperature == fit_temperature(*validation) != fit_temperature(*test)
    assert found.after == reliability(test[0].double() / found.temperature, test[1])
    assert calibration(test[0], 2 - test[1], validation).temperature == found.temperature


def test_without_a_validation_split_there_is_no_temperature():
    logits, targets = drawn(20)
    found = calibration(logits, targets)
    assert (found.temperature, found.after) == (None, None)
    assert found.before == reliability(logits, targets)


def test_without_errors_on_the_validation_split_there_is_no_temperature_and_otherwise_it_stays_in_its_range():
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
    assert fit_temperature(logits, torch.tensor([0, 1])) is None
    assert fit_temperature(logits, torch.tensor([1, 0])) == pytest.approx(TEMPERATURES[1], rel=1e-3)


def test_a_confidence_of_exactly_1_is_in_the_last_bin():
    found = reliability(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), torch.tensor([0, 0]))
    assert found.bins[-1].samples == 2
    assert (found.bins[-1].confidence, found.bins[-1].accuracy) == (1.0, 0.5)
    assert found.ece == pytest.approx(0.5)
