import pytest
import torch
from torch import Tensor, nn

from limbeck.evaluate import metrics
from limbeck.evaluate.bias import best_shift, bias_study, shift_bias


def too_low(by: float, seed: int, samples: int = 90) -> tuple[Tensor, Tensor]:
    """Right classes lead by 1 to 2 logits before class 2 is lowered, so that a shift of ``by`` makes all right."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(samples) % 3
    logits = torch.zeros(samples, 3)
    logits[torch.arange(samples), targets] = 1 + torch.rand(samples, generator=generator)
    logits[:, 2] -= by
    return logits, targets


def slow_errors(logits: Tensor, targets: Tensor, classes: list[int], delta: float) -> int:
    errors = 0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        moved = [value + delta * (number in classes) for number, value in enumerate(row)]
        errors += moved.index(max(moved)) != target
    return errors


def test_shifting_equals_changing_the_bias_of_the_classifier():
    network, inputs = nn.Linear(4, 5), torch.randn(6, 4)
    shifted = shift_bias(network(inputs).detach(), [1, 3], 2.5)
    with torch.no_grad():
        network.bias[1] += 2.5
        network.bias[3] += 2.5
        assert torch.allclose(shifted, network(inputs), atol=1e-6)


def test_shifting_leaves_the_given_logits_as_they_are():
    logits = torch.zeros(2, 3)
    assert shift_bias(logits, (0,), 1.0).tolist() == [[1, 0, 0]] * 2
    assert logits.tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize("classes", [[2], [0, 2]])
def test_the_best_shift_is_that_of_a_loop_over_the_grid(classes):
    logits, targets = torch.randn(40, 4, dtype=torch.float64) * 2, torch.randint(4, (40,))
    grid = [number / 10 for number in range(-100, 101)]
    best = min(grid, key=lambda delta: (slow_errors(logits, targets, classes, delta), abs(delta), delta))
    assert best_shift(logits, targets, classes) == pytest.approx(best)


def test_the_best_shift_undoes_a_bias_that_is_too_low():
    logits, targets = too_low(3.05, seed=0)
    assert slow_errors(logits, targets, [2], 0.0) == 30
    delta = best_shift(logits, targets, [2])
    assert 3.05 - 1.1 < delta < 3.05
    assert slow_errors(logits, targets, [2], delta) == 0
    assert slow_errors(logits, targets, [2], delta - 0.1) > 0


def test_the_best_shift_undoes_a_bias_that_is_too_high():
    logits, targets = too_low(-3.05, seed=0)
    delta = best_shift(logits, targets, [2])
    assert -3.05 < delta < -3.05 + 1.1
    assert slow_errors(logits, targets, [2], delta) == 0


def test_among_equally_good_shifts_the_one_nearest_to_zero_is_taken():
    logits, targets = too_low(0.0, seed=0)
    assert best_shift(logits, targets, [2]) == 0


def test_of_two_equally_good_and_near_shifts_the_smaller_is_taken():
    # Right below -0.5 and above 0.5 only: one sample each way.
    logits = torch.tensor([[0.55, 0.0], [0.0, 0.55], [0.0, -0.55], [-0.55, 0.0]])
    targets = torch.tensor([1, 0, 1, 0])
    errors = {delta: slow_errors(logits, targets, [1], delta) for delta in (-0.6, -0.5, 0.0, 0.5, 0.6)}
    assert errors[-0.6] == errors[0.6] < errors[-0.5] == errors[0.0] == errors[0.5]
    assert best_shift(logits, targets, [1]) == -0.6


def test_the_grid_has_both_ends_and_no_floating_drift():
    logits, targets = torch.tensor([[0.0, -9.95], [0.0, -9.95]]), torch.tensor([1, 1])
    assert best_shift(logits, targets, [1]) == 10.0
    assert best_shift(torch.tensor([[0.0, 9.95], [0.0, 30.0]]), torch.tensor([0, 1]), [1]) == -10.0
    assert best_shift(torch.tensor([[0.0, -0.25]]), torch.tensor([1]), [1]) == 0.3
    assert best_shift(torch.tensor([[0.0, 0.25], [0.0, 30.0]]), torch.tensor([0, 1]), [1]) == -0.3


def test_the_study_recovers_most_of_the_class_with_the_shift_chosen_on_validation():
    validation, test = too_low(3.05, seed=1), too_low(3.05, seed=2)
    study = bias_study(validation, test, (2,))
    assert study["classes"] == [2]
    assert study["before"] == {"errors": 30, "errors_on_classes": 30, "samples_of_classes": 30, "share_right": 0.0}
    tuned = study["validation_tuned"]
    assert tuned["delta"] == best_shift(*validation, [2])
    assert tuned["errors"] == slow_errors(*test, [2], tuned["delta"]) <= 2
    assert tuned["share_right"] == (30 - tuned["errors_on_classes"]) / 30 > 0.9


def test_the_study_counts_on_test_and_chooses_the_oracle_there_only():
    validation, test = too_low(3.05, seed=1), too_low(6.05, seed=2)
    study = bias_study(validation, test, [2])
    assert study["validation_tuned"]["errors"] == 30
    assert study["test_tuned"]["errors"] == 0
    assert study["test_tuned"]["delta"] == best_shift(*test, [2])
    assert study["test_tuned"]["share_right"] == 1


def test_errors_on_the_classes_are_a_part_of_all_errors():
    logits, targets = torch.randn(80, 5), torch.randint(5, (80,))
    before = bias_study((logits, targets), (logits, targets), [1, 4])["before"]
    chosen = [number for number, target in enumerate(targets.tolist()) if target in (1, 4)]
    assert before["errors"] == metrics(logits, targets).errors
    assert before["samples_of_classes"] == len(chosen)
    assert before["errors_on_classes"] == slow_errors(logits[chosen], targets[chosen], [], 0.0)
    assert 0 < before["errors_on_classes"] < before["errors"]
