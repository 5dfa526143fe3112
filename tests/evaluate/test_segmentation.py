import math

import pytest
import torch

from limbeck.core import LimbeckError
from limbeck.evaluate import outputs as module
from limbeck.evaluate.segmentation import segmentation_metrics


def of_classes(predicted, classes):
    """Logits whose largest is that of the class."""
    return torch.nn.functional.one_hot(torch.tensor(predicted), classes).movedim(-1, 1).float()


def test_a_case_by_hand():
    # Class 0: 1 of the union of 2. Class 1: 1 of 3. Class 2 is only predicted: 0 of 1. Of 3 no place counts.
    found = segmentation_metrics(
        of_classes([[[0, 1, 1]], [[1, 2, 3]]], 5), torch.tensor([[[0, 0, 1]], [[255, 1, 255]]])
    )
    assert found.miou == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)
    assert found.accuracy == 2 / 4
    assert found.samples == 2
    assert found.agreement is None


@pytest.mark.parametrize("limit", [1, 2 * 4 * 5 * 6, 10**6])
def test_the_figures_are_those_of_loops_whatever_the_size_of_a_chunk(limit, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", limit)
    outputs, teacher = torch.randn(2, 7, 4, 5, 6)
    targets = torch.randint(4, (7, 5, 6))
    targets[torch.rand(7, 5, 6) < 0.2] = 255
    found = segmentation_metrics(outputs, targets, teacher_logits=teacher)
    both, either, entropy, right, counted, same = [0] * 4, [0] * 4, 0.0, 0, 0, 0
    for n, y, x in torch.cartesian_prod(torch.arange(7), torch.arange(5), torch.arange(6)).tolist():
        logits, target = outputs[n, :, y, x].tolist(), int(targets[n, y, x])
        prediction = logits.index(max(logits))
        same += prediction == int(teacher[n, :, y, x].argmax())
        if target == 255:
            continue
        counted, right = counted + 1, right + (prediction == target)
        entropy -= logits[target] - math.log(sum(math.exp(logit) for logit in logits))
        for k in range(4):
            both[k] += prediction == k == target
            either[k] += k in (prediction, target)
    assert found.miou == pytest.approx(sum(b / e for b, e in zip(both, either, strict=True)) / 4)
    assert found.accuracy == pytest.approx(right / counted)
    assert found.cross_entropy == pytest.approx(entropy / counted, rel=1e-12)
    assert found.agreement == pytest.approx(same / 210)


def test_targets_that_are_all_ignored_are_refused():
    with pytest.raises(LimbeckError, match="no place of the test targets counts"):
        segmentation_metrics(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 255), split="test")


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5), (1, 3, 4, 4), (2, 3, 4, 4, 1), (2, 0, 4, 4)])
def test_outputs_that_do_not_fit_the_targets_are_refused(shape):
    with pytest.raises(LimbeckError, match=r"the network returns outputs \(.*\): allowed for these targets are \(2, "):
        segmentation_metrics(torch.zeros(shape), torch.zeros(2, 4, 4).long())
