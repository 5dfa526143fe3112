import math

import pytest
import torch

from limbeck.core import LimbeckError
from limbeck.evaluate import normalised_mean_error
from limbeck.evaluate.landmarks import landmark_metrics


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


def faces():
    return torch.rand(30, 8) + torch.arange(8.0), (torch.rand(30, 8) + torch.arange(8.0)).reshape(30, 4, 2)


@pytest.mark.parametrize("eyes", [None, (3, 1)])
def test_the_figures_are_those_of_a_loop(eyes):
    outputs, targets = faces()
    outputs = targets.flatten(1) + 1.5 * torch.rand(30, 1) * torch.randn(30, 8)  # errors on both sides of 0.10
    teacher = torch.randn(30, 8)
    found = landmark_metrics(outputs, targets, teacher_logits=teacher, eyes=eyes)
    errors, to_teacher = [], 0.0
    for n in range(30):
        points = targets[n].tolist()
        if eyes is None:
            xs, ys = zip(*points, strict=True)
            size = math.hypot(max(xs) - min(xs), max(ys) - min(ys))
        else:
            size = math.dist(points[eyes[0]], points[eyes[1]])
        predicted, theirs = outputs[n].reshape(4, 2).tolist(), teacher[n].reshape(4, 2).tolist()
        errors.append(sum(math.dist(predicted[k], points[k]) for k in range(4)) / 4 / size)
        to_teacher += sum(math.dist(predicted[k], theirs[k]) for k in range(4)) / 4 / size / 30
    assert 0 < found.failure_rate < 1
    assert found.nme == pytest.approx(sum(errors) / 30, rel=1e-12)
    assert found.failure_rate == pytest.approx(sum(error > 0.1 for error in errors) / 30)
    steps = [sum(error <= 0.1 * (step + 0.5) / 10000 for error in errors) / 30 for step in range(10000)]
    assert found.auc == pytest.approx(sum(steps) / 10000, abs=1e-4)
    assert found.nme_to_teacher == pytest.approx(to_teacher, rel=1e-12)
    assert found.samples == 30


def test_the_ends_of_the_scale():
    targets = torch.tensor([[[0.0, 0.0], [6.0, 8.0]]])  # of size 10 by either rule
    right = landmark_metrics(targets.flatten(1), targets)
    assert (right.nme, right.failure_rate, right.auc, right.nme_to_teacher) == (0, 0, 1, None)
    wrong = landmark_metrics(targets.flatten(1) + 50, targets)
    assert (wrong.failure_rate, wrong.auc) == (1, 0)
    half = landmark_metrics(targets.flatten(1) + torch.tensor([0.5, 0.0, 0.5, 0.0]), targets, eyes=(0, 1))
    assert (half.nme, half.failure_rate, half.auc) == (pytest.approx(0.05), 0, pytest.approx(0.5))


@pytest.mark.parametrize("eyes", [(0, 4), (-1, 2), (1, 1)])
def test_eyes_that_are_not_two_points_are_refused(eyes):
    outputs, targets = faces()
    with pytest.raises(LimbeckError, match=r"allowed are two different indices from 0 to 3"):
        landmark_metrics(outputs, targets, eyes=eyes)


def test_a_face_of_equal_points_is_refused():
    outputs, targets = faces()
    targets[3] = 1
    with pytest.raises(LimbeckError, match=r"the smallest size is 0\.0"):
        landmark_metrics(outputs, targets)
