import math

import pytest
import torch

from limbeck.core import LimbeckError
from limbeck.evaluate.multi_label import multi_label_metrics


def drawn(samples=40, labels=5):
    return torch.randn(samples, labels), (torch.rand(samples, labels) < 0.3).float()


def average_precision(values, truth):
    """The mean over the positive samples of the precision at their rank; equal values have one rank."""
    total = 0.0
    for value in {value for value, right in zip(values, truth, strict=True) if right}:
        above = [right for other, right in zip(values, truth, strict=True) if other >= value]
        here = sum(right for other, right in zip(values, truth, strict=True) if other == value)
        total += here * sum(above) / len(above)
    return total / sum(truth)


def test_a_case_by_hand():
    # Label 0 is ranked right, wrong, right: (1 + 2/3) / 2. Label 1 is ranked wrong, wrong, right: 1/3.
    outputs = torch.tensor([[3.0, 2.0], [2.0, 1.0], [1.0, -1.0]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    found = multi_label_metrics(outputs, targets)
    assert found.mean_average_precision == pytest.approx((5 / 6 + 1 / 3) / 2, abs=1e-6)
    assert found.f1_macro == pytest.approx((2 * 2 / (3 + 2) + 0) / 2)
    assert found.f1_micro == pytest.approx(2 * 2 / (5 + 3))
    assert found.exact_match == 0
    assert found.samples == 3
    assert found.kl_to_teacher is None


def test_the_figures_are_those_of_loops():
    outputs, targets = drawn()
    outputs = (2 * outputs).round() / 2  # some are equal, and some are 0, which is not predicted
    teacher = torch.randn_like(outputs)
    found = multi_label_metrics(outputs, targets, teacher_logits=teacher)
    columns = list(zip(outputs.T.tolist(), targets.T.tolist(), strict=True))
    precisions = [average_precision(values, truth) for values, truth in columns]
    assert found.mean_average_precision == pytest.approx(sum(precisions) / 5, abs=1e-6)
    assert found.exact_match == pytest.approx(
        sum(
            all((value > 0) == (right == 1) for value, right in zip(row, truth, strict=True))
            for row, truth in zip(outputs.tolist(), targets.tolist(), strict=True)
        )
        / 40
    )
    scores, all_hits, all_marked, entropy, divergence = [], 0, 0, 0.0, 0.0
    for k, (values, truth) in enumerate(columns):
        hits = sum(value > 0 and right == 1 for value, right in zip(values, truth, strict=True))
        misses = sum((value > 0) != (right == 1) for value, right in zip(values, truth, strict=True))
        scores.append(2 * hits / (2 * hits + misses))
        all_hits, all_marked = all_hits + hits, all_marked + 2 * hits + misses
        for n, (value, right) in enumerate(zip(values, truth, strict=True)):
            q, p = 1 / (1 + math.exp(-value)), 1 / (1 + math.exp(-teacher[n, k].item()))
            entropy -= math.log(q if right else 1 - q) / 200
            divergence += (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))) / 200
    assert found.f1_macro == pytest.approx(sum(scores) / 5)
    assert found.f1_micro == pytest.approx(2 * all_hits / all_marked)
    assert found.cross_entropy == pytest.approx(entropy, rel=1e-12)
    assert found.kl_to_teacher == pytest.approx(divergence, rel=1e-12)


def test_the_average_precision_has_the_bits_of_torchmetrics():
    outputs = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    targets = (torch.arange(2000).view(500, 4) % 3 == 0).float()
    assert multi_label_metrics(outputs, targets).mean_average_precision == 0.3296355679631233  # torchmetrics 1.9.0


def test_a_label_that_no_sample_has_is_left_out_of_the_means():
    outputs, targets = drawn()
    targets[:, 1] = 0
    found, without = (multi_label_metrics(outputs[:, keep], targets[:, keep]) for keep in ([0, 1, 2], [0, 2]))
    assert found.mean_average_precision == without.mean_average_precision
    assert found.f1_macro == without.f1_macro
    assert found.f1_micro < without.f1_micro  # its false positives count here


def test_one_label_is_enough():
    assert multi_label_metrics(torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [0.0]])).f1_macro == 1


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.5), (100.0, 1e3)])
def test_the_ranking_of_logits_is_that_of_their_size_even_if_they_look_like_probabilities_or_saturate(scale, shift):
    outputs, targets = drawn()
    expected = multi_label_metrics(outputs, targets).mean_average_precision
    assert multi_label_metrics(scale * outputs + shift, targets).mean_average_precision == pytest.approx(expected)


def test_sure_networks_have_finite_figures():
    targets = torch.eye(4)
    found = multi_label_metrics(2000 * targets - 1000, targets, teacher_logits=1000 - 2000 * targets)
    assert (found.mean_average_precision, found.exact_match, found.cross_entropy) == (1, 1, 0)
    assert found.kl_to_teacher == pytest.approx(1000)


def test_a_split_in_which_no_sample_has_a_label_is_refused():
    with pytest.raises(LimbeckError, match="no test sample has a label"):
        multi_label_metrics(torch.zeros(3, 2), torch.zeros(3, 2), split="test")
