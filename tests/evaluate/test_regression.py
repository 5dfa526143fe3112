import math

import pytest
import torch

from limbeck.evaluate.regression import regression_metrics


def test_a_case_by_hand():
    # Number 0: errors 1, -1 and sums of squares 2, 2. Number 1: errors 0, 3 and 9, 8.
    found = regression_metrics(torch.tensor([[1.0, 4.0], [1.0, 3.0]]), torch.tensor([[0.0, 4.0], [2.0, 0.0]]))
    assert found.rmse == pytest.approx(math.sqrt(11 / 4))
    assert found.mean_absolute_error == 5 / 4
    assert found.r2 == pytest.approx(((1 - 2 / 2) + (1 - 9 / 8)) / 2)
    assert found.samples == 2
    assert found.rmse_to_teacher is None


def test_the_figures_are_those_of_loops():
    outputs, targets, teacher = torch.randn(3, 20, 4)
    found = regression_metrics(outputs, targets, teacher_logits=teacher)
    squares = absolute = to_teacher = r2 = 0.0
    for d in range(4):
        mean = sum(targets[:, d].tolist()) / 20
        errors = [outputs[n, d].item() - targets[n, d].item() for n in range(20)]
        squares += sum(error**2 for error in errors) / 80
        absolute += sum(abs(error) for error in errors) / 80
        to_teacher += sum((outputs[n, d].item() - teacher[n, d].item()) ** 2 for n in range(20)) / 80
        spread = sum((targets[n, d].item() - mean) ** 2 for n in range(20))
        r2 += (1 - sum(error**2 for error in errors) / spread) / 4
    assert found.rmse == pytest.approx(math.sqrt(squares), rel=1e-12)
    assert found.mean_absolute_error == pytest.approx(absolute, rel=1e-12)
    assert found.r2 == pytest.approx(r2, rel=1e-12)
    assert found.rmse_to_teacher == pytest.approx(math.sqrt(to_teacher), rel=1e-12)


@pytest.mark.parametrize(("scale", "shift"), [(1e-4, 0.0), (1.0, 1e5), (1e6, 0.0)])
def test_r2_ignores_the_units(scale, shift):
    outputs, targets = torch.randn(2, 20, 3).double()
    expected = regression_metrics(outputs, targets).r2
    assert regression_metrics(scale * outputs + shift, scale * targets + shift).r2 == pytest.approx(expected)


def test_a_network_that_predicts_the_mean_has_an_r2_of_0():
    targets = torch.randn(20, 3).double()
    assert regression_metrics(targets.mean(dim=0).expand(20, 3), targets).r2 == pytest.approx(0)


@pytest.mark.parametrize("samples", [1, 5])
def test_there_is_no_r2_if_a_number_is_the_same_in_all_samples(samples):
    targets = torch.randn(samples, 2)
    targets[:, 1] = 0.1
    assert regression_metrics(torch.randn(samples, 2), targets).r2 is None
