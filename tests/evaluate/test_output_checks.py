import math

import pytest
import torch

from limbeck.core import LimbeckError
from limbeck.evaluate import outputs as module
from limbeck.evaluate.landmarks import landmark_metrics
from limbeck.evaluate.multi_label import multi_label_metrics
from limbeck.evaluate.outputs import check_outputs, chunk
from limbeck.evaluate.regression import regression_metrics
from limbeck.evaluate.segmentation import segmentation_metrics

METRICS = {
    multi_label_metrics: (torch.zeros(4, 6), torch.ones(4, 6)),
    regression_metrics: (torch.zeros(4, 6), torch.ones(4, 6)),
    landmark_metrics: (torch.zeros(4, 6), torch.arange(24.0).reshape(4, 3, 2)),
    segmentation_metrics: (torch.zeros(4, 3, 2, 2), torch.zeros(4, 2, 2).long()),
}


@pytest.mark.parametrize("metrics", METRICS)
def test_every_task_checks_the_network_and_the_teacher_and_names_the_sample(metrics):
    outputs, targets = METRICS[metrics]
    bad = outputs.clone()
    bad.flatten(1)[2, -1] = math.nan
    files = [f"{number}.png" for number in range(4)]
    message = r"returns NaN or infinite outputs for 1 of 4 test samples \(25.0%\), the first is number 2 \(2\.png\)"
    with pytest.raises(LimbeckError, match="the student " + message):
        metrics(bad, targets, name="student", split="test", files=files)
    with pytest.raises(LimbeckError, match="the teacher " + message):
        metrics(outputs, targets, teacher_logits=bad, split="test", files=files)
    with pytest.raises(LimbeckError, match=r"the teacher returns outputs \(3, "):
        metrics(outputs, targets, teacher_logits=outputs[:3])
    with pytest.raises(LimbeckError, match=r"the student returns outputs \(3, .*with at least one sample"):
        metrics(outputs[:3], targets, name="student")
    with pytest.raises(LimbeckError, match=r"the network returns outputs \(0, .*with at least one sample"):
        metrics(outputs[:0], targets[:0])


@pytest.mark.parametrize("limit", [1, 10, 10**6])
def test_every_chunk_is_checked(limit, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", limit)
    outputs = torch.zeros(5, 2, 2)
    check_outputs(outputs, (5, 2, 2))
    outputs[4, 1, 1] = -math.inf
    with pytest.raises(LimbeckError, match=r"1 of 5 samples .*, the first is number 4$"):
        check_outputs(outputs, (5, 2, 2))


def test_a_network_that_fails_everywhere_is_told_so():
    with pytest.raises(LimbeckError, match="for all 2 samples: its weights are probably not finite"):
        check_outputs(torch.full((2, 3), math.inf), (2, 3))


def test_a_chunk_is_bounded_and_never_empty(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 100)
    assert [chunk(torch.zeros(10, size)) for size in (1, 10, 30, 101)] == [100, 10, 3, 1]
