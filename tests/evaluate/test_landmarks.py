import math

import pytest
import torch

from limbeck.core import LimbeckError
from limbeck.evaluate import normalised_mean_error


def test_a_case_by_hand():
    """Face 1: errors 5 and 0 of size 10; face 2: errors 1 and 3 of size 2."""
    truth = torch.tensor([[[0.0, 0.0], [10.0, 0.0]], [[1.0, 1.0], [3.0, 1.0]]])
    predicted = torch.tensor([[[3.0, 4.0], [10.0, 0.0]], [[1.0, 2.0], [3.0, -2.0]]])
    found = normalised_mean_error(predicted, truth, torch.tensor([10.0, 2.0]))
    assert found == pytest.approx(((5 + 0) / 2 / 10 + (1 + 3) / 2 / 2) / 2)


def test_is_the_formula_in_loops_flat_or_not():
    predicted, truth, size = torch.randn(5, 7, 2), torch.randn(5, 7, 2), torch.rand(5) + 0.5
    total = 0.0
    for n in range(5):
        for point in range(7):
            total += math.dist(predicted[n, point].tolist(), truth[n, point].tolist()) / (7 * size[n].item())
    assert normalised_mean_error(predicted, truth, size) == pytest.approx(total / 5, rel=1e-12)
    assert normalised_mean_error(predicted.flatten(1), truth.flatten(1), size) == pytest.approx(total / 5, rel=1e-12)


def test_ignores_the_scale_of_the_image_and_where_the_face_is():
    predicted, truth, size = torch.randn(5, 7, 2), torch.randn(5, 7, 2), torch.rand(5) + 0.5
    value = normalised_mean_error(predicted, truth, size)
    moved = normalised_mean_error(256 * predicted + 30, 256 * truth + 30, 256 * size)
    assert moved == pytest.approx(value, rel=1e-4)


def test_is_zero_where_every_point_is_right():
    truth = torch.randn(1, 3, 2)
    assert normalised_mean_error(truth, truth, torch.ones(1)) == 0


@pytest.mark.parametrize(
    ("predicted", "truth", "size", "message"),
    [
        ((2, 3, 2), (2, 4, 2), (2,), r"points have shapes \(2, 3, 2\) and \(2, 4, 2\)"),
        ((2, 3, 2), (2, 3, 2), (3,), r"sizes \(3,\)"),
        ((2, 3, 2), (2, 3, 2), (), r"sizes \(\)"),
        ((2, 5), (2, 5), (2,), "at least one point"),
        ((0, 6), (0, 6), (0,), "at least one point"),
        ((2, 2, 3), (2, 2, 3), (2,), r"points have shape \(2, 2, 3\): allowed are"),
        ((2, 2, 2, 2), (2, 2, 2, 2), (2,), r"allowed are \(N, L, 2\) and \(N, 2L\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(predicted, truth, size, message):
    with pytest.raises(LimbeckError, match=message):
        normalised_mean_error(torch.ones(predicted), torch.ones(truth), torch.ones(size))


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan")])
def test_a_face_without_size_is_refused(size):
    with pytest.raises(LimbeckError, match="allowed are sizes above 0"):
        normalised_mean_error(torch.ones(2, 3, 2), torch.ones(2, 3, 2), torch.tensor([1.0, size]))


def test_a_prediction_that_is_no_number_is_refused():
    with pytest.raises(LimbeckError, match="a point is NaN or infinite"):
        normalised_mean_error(torch.full((1, 3, 2), float("nan")), torch.ones(1, 3, 2), torch.ones(1))
