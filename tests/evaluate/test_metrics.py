import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from limbeck.core import Batch, LimbeckError
from limbeck.evaluate import metrics, predict


def split_of(inputs: Tensor, targets: Tensor, size: int) -> list[Batch]:
    index = torch.arange(len(inputs))
    parts = zip(inputs.split(size), targets.split(size), index.split(size), strict=True)
    return [Batch(*part, 0) for part in parts]


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def slow_ece(rows: list[list[float]], targets: list[int], bins: int = 15) -> float:
    kept: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, target in zip(rows, targets, strict=True):
        confidence = max(row)
        kept[min(int(confidence * bins), bins - 1)].append((confidence, row.index(confidence) == target))
    total = 0.0
    for inside in filter(None, kept):
        mean = sum(confidence for confidence, _ in inside) / len(inside)
        right = sum(hit for _, hit in inside) / len(inside)
        total += abs(mean - right) * len(inside) / len(rows)
    return total


class Fails(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        raise RuntimeError("broken")


class Gives(nn.Module):
    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, inputs: Tensor) -> object:
        return self.output


def test_predicts_every_batch_in_order_without_gradients_as_if_in_one():
    network = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    inputs = torch.randn(7, 4)
    logits = predict(network, split_of(inputs, torch.zeros(7).long(), 3))
    assert torch.allclose(logits, inputs @ network[0].weight.T + network[0].bias, atol=1e-6)
    assert not logits.requires_grad


def test_predictions_are_in_32_bits_whatever_the_network_gives():
    logits = predict(nn.Linear(4, 3).bfloat16(), split_of(torch.randn(2, 4).bfloat16(), torch.zeros(2).long(), 2))
    assert logits.dtype == torch.float32


def test_predicting_leaves_every_training_flag_and_batchnorm_buffer_as_it_was():
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout())
    network[2].eval()
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    predict(network, split_of(torch.randn(6, 4), torch.zeros(6).long(), 2))
    assert [module.training for module in network.modules()] == [True, True, True, False]
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in network.named_buffers())


def test_training_flags_come_back_after_an_error():
    network = nn.Sequential(nn.Dropout().eval(), Fails())
    with pytest.raises(RuntimeError, match="broken"):
        predict(network, split_of(torch.randn(2, 4), torch.zeros(2).long(), 2))
    assert [module.training for module in network.modules()] == [True, False, True]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ((torch.zeros(2, 3),), "tuple"),
        (torch.zeros(2), r"\(2,\) for 2 samples"),
        (torch.zeros(2, 3, 1), r"\(2, 3, 1\)"),
        (torch.zeros(3, 3), r"\(3, 3\)"),
    ],
)
def test_an_output_that_is_not_logits_is_refused_and_named(output, message):
    with pytest.raises(LimbeckError, match=message):
        predict(Gives(output), split_of(torch.randn(2, 4), torch.zeros(2).long(), 2))


def test_predicting_nothing_is_refused():
    with pytest.raises(LimbeckError, match="empty"):
        predict(nn.Linear(4, 3), [])


def test_accuracy_errors_and_cross_entropy_are_those_of_a_loop():
    logits, targets = torch.randn(40, 5), torch.randint(5, (40,))
    figures = metrics(logits, targets)
    rows = logits.tolist()
    errors = sum(row.index(max(row)) != target for row, target in zip(rows, targets.tolist(), strict=True))
    entropy = -sum(math.log(softmax(row)[target]) for row, target in zip(rows, targets.tolist(), strict=True)) / 40
    assert 0 < errors < 40
    assert figures.errors == errors
    assert figures.samples == 40
    assert figures.accuracy == (40 - errors) / 40
    assert figures.cross_entropy == pytest.approx(entropy, abs=1e-12)
    assert [type(value) for value in (figures.accuracy, figures.errors, figures.samples)] == [float, int, int]


def test_of_equal_logits_the_first_is_the_prediction():
    assert metrics(torch.zeros(3, 4), torch.tensor([0, 1, 3])).errors == 2


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_calibration_error_is_that_of_a_loop_over_fifteen_bins(scale):
    logits, targets = torch.randn(200, 4) * scale, torch.randint(4, (200,))
    expected = slow_ece([softmax(row) for row in logits.tolist()], targets.tolist())
    assert expected > 0.05
    assert metrics(logits, targets).ece == pytest.approx(expected, abs=1e-6)


def test_logits_between_0_and_1_are_not_taken_for_probabilities():
    logits, targets = torch.rand(50, 3), torch.randint(3, (50,))
    expected = slow_ece([softmax(row) for row in logits.tolist()], targets.tolist())
    assert metrics(logits, targets).ece == pytest.approx(expected, abs=1e-6)


def test_the_calibration_error_has_the_bits_of_torchmetrics():
    logits = 3 * torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    assert metrics(logits, torch.arange(500) % 4).ece == 0.5365254878997803  # torchmetrics 1.9.0


def test_a_run_does_not_wait_for_libraries_of_figures():
    program = """
import sys
import limbeck.experiment.run
slow = sorted({"matplotlib", "torchvision", "sklearn", "scipy.stats"} & set(sys.modules))
assert not slow, slow
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_full_confidence_shares_the_bin_of_nearly_full_confidence():
    # 0.95 and right, 1.0 and wrong: apart they miss by (0.05 + 1) / 2, in one bin by |0.975 - 0.5|.
    logits = torch.tensor([[math.log(19.0), 0.0], [1000.0, 0.0]])
    assert metrics(logits, torch.tensor([0, 1])).ece == pytest.approx(0.475, abs=1e-6)


def test_a_sure_and_right_network_has_no_calibration_error():
    figures = metrics(torch.eye(3) * 1000, torch.arange(3))
    assert figures.ece == pytest.approx(0, abs=1e-6)
    assert figures.cross_entropy == 0


def test_agreement_and_kl_are_those_of_a_loop_from_teacher_to_student():
    student, teacher, targets = torch.randn(30, 4), torch.randn(30, 4), torch.randint(4, (30,))
    figures = metrics(student, targets, teacher_logits=teacher)
    same, divergence = 0, 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        same += ours.index(max(ours)) == theirs.index(max(theirs))
        pairs = zip(softmax(theirs), softmax(ours), strict=True)
        divergence += sum(p * math.log(p / q) for p, q in pairs) / 30
    assert 0 < same < 30
    assert figures.agreement == pytest.approx(same / 30, abs=1e-12)
    assert figures.kl_to_teacher == pytest.approx(divergence, abs=1e-12)


def test_a_student_equal_to_its_teacher_agrees_fully():
    logits = torch.randn(9, 3)
    figures = metrics(logits, torch.zeros(9).long(), teacher_logits=logits + 5)
    assert figures.agreement == 1
    assert figures.kl_to_teacher == pytest.approx(0, abs=1e-6)


def test_without_a_teacher_nothing_is_said_of_one():
    figures = metrics(torch.randn(3, 2), torch.zeros(3).long())
    assert (figures.agreement, figures.kl_to_teacher) == (None, None)


@pytest.mark.parametrize(
    ("logits", "targets", "teacher", "message"),
    [
        (
            torch.full((2, 3), math.nan),
            torch.zeros(2).long(),
            None,
            "the network returns NaN or infinite logits for all 2 samples",
        ),
        (torch.zeros(2, 3), torch.zeros(2).long(), torch.zeros(2, 4), r"\(2, 4\), the network's \(2, 3\)"),
        (
            torch.zeros(2, 3),
            torch.zeros(2).long(),
            torch.full((2, 3), math.inf),
            "the teacher returns NaN or infinite logits for all 2 samples",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(logits, targets, teacher, message):
    with pytest.raises(LimbeckError, match=message):
        metrics(logits, targets, teacher_logits=teacher)


def test_errors_name_the_network_the_split_and_the_sample():
    logits, targets = torch.zeros(400, 3), torch.zeros(400).long()
    logits[5, 1] = math.nan
    files = [f"train/cat/{number}.png" for number in range(400)]
    message = r"the teacher returns NaN or infinite logits for 1 of 400 test samples \(0\.2%\), the first is number 5"
    with pytest.raises(LimbeckError, match=message + r" \(train/cat/5\.png\)"):
        metrics(logits, targets, name="teacher", split="test", files=files)
    with pytest.raises(LimbeckError, match="the student returns a tuple"):
        predict(Pair(), [batch(2)], name="student")


class Pair(nn.Module):
    def forward(self, inputs):
        return inputs, inputs


def batch(count):
    return Batch(torch.zeros(count, 3), torch.zeros(count).long(), torch.arange(count), 0)
