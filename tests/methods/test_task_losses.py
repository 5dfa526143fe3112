import math

import pytest
import torch
from torch.autograd import gradcheck

from limbeck.methods.kd import soft_loss
from limbeck.methods.task_losses import (
    binary_cross_entropy,
    binary_soft_loss,
    l2,
    output_distance,
    places_cross_entropy,
    places_soft_loss,
    smooth_l1,
    wing,
)

TEMPERATURES = [0.5, 1.0, 4.0]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def binary_divergence(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_the_binary_cross_entropy_is_a_sum_over_labels_and_a_mean_over_samples():
    outputs, targets = torch.randn(4, 3).double(), torch.tensor([[0.0, 1.0, 0.3]]).double().expand(4, 3)
    expected = 0.0
    for row, truth in zip(outputs.tolist(), targets.tolist(), strict=True):
        for value, p in zip(row, truth, strict=True):
            expected -= (p * math.log(sigmoid(value)) + (1 - p) * math.log(1 - sigmoid(value))) / 4
    assert binary_cross_entropy(outputs, targets).item() == pytest.approx(expected)


def by_number(loss, outputs, targets):
    errors = (outputs - targets.reshape(outputs.shape)).flatten().tolist()
    return sum(loss(abs(error)) for error in errors) / len(errors)


NUMBERS = {
    "l2": (l2, lambda e: e**2),
    "smooth L1": (smooth_l1, lambda e: e**2 / 2 if e < 1 else e - 1 / 2),
    "smooth L1 with beta": (
        lambda outputs, targets: smooth_l1(outputs, targets, beta=3.0),
        lambda e: e**2 / 6 if e < 3 else e - 3 / 2,
    ),
    "wing": (wing, lambda e: 10 * math.log(1 + e / 2) if e < 10 else e - (10 - 10 * math.log(1 + 10 / 2))),
    "wing with w and eps": (
        lambda outputs, targets: wing(outputs, targets, w=2.0, eps=0.5),
        lambda e: 2 * math.log(1 + e / 0.5) if e < 2 else e - (2 - 2 * math.log(1 + 2 / 0.5)),
    ),
}


@pytest.mark.parametrize(("loss", "formula"), NUMBERS.values(), ids=NUMBERS)
def test_losses_of_numbers_are_their_formulas_also_for_points(loss, formula):
    outputs, targets = (8 * torch.randn(2, 5, 6)).double()
    expected = by_number(formula, outputs, targets)
    assert loss(outputs, targets).item() == pytest.approx(expected)
    assert loss(outputs, targets.reshape(5, 3, 2)).item() == pytest.approx(expected)
    assert gradcheck(lambda student: loss(student, targets), outputs.clone().requires_grad_())


@pytest.mark.parametrize("loss", [l2, smooth_l1, wing])
def test_losses_of_numbers_are_0_with_no_gradient_where_all_is_right(loss):
    outputs = torch.randn(3, 4, requires_grad=True)
    value = loss(outputs, outputs.detach())
    value.backward()
    assert value.item() == 0
    assert outputs.grad.abs().max() == 0


@pytest.mark.parametrize("loss", [l2, smooth_l1, wing])
def test_targets_of_another_size_are_not_broadcast(loss):
    with pytest.raises(RuntimeError, match="shape"):
        loss(torch.zeros(3, 4), torch.zeros(3, 1))


def test_wing_is_continuous_where_its_parts_meet():
    below, above = (wing(torch.tensor([[error]]).double(), torch.zeros(1, 1)).item() for error in (10 - 1e-9, 10.0))
    assert above == pytest.approx(below, abs=1e-8)


def test_the_cross_entropy_of_places_is_the_mean_over_those_that_count():
    outputs, targets = torch.randn(2, 3, 4, 5).double(), torch.randint(3, (2, 4, 5))
    targets[torch.rand(2, 4, 5) < 0.4] = 255
    values = []
    for n, y, x in (targets != 255).nonzero().tolist():
        logits = outputs[n, :, y, x].tolist()
        values.append(math.log(sum(math.exp(one) for one in logits)) - logits[targets[n, y, x]])
    assert 0 < len(values) < 40
    assert places_cross_entropy(outputs, targets).item() == pytest.approx(sum(values) / len(values))


def test_without_a_place_that_counts_the_loss_is_0_with_a_gradient_of_0():
    outputs = torch.randn(2, 3, 4, 5, requires_grad=True)
    value = places_cross_entropy(outputs, torch.full((2, 4, 5), 255))
    value.backward()
    assert value.item() == 0
    assert torch.equal(outputs.grad, torch.zeros_like(outputs))


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("count", [1, 3])
def test_the_binary_soft_loss_is_that_of_a_loop(count, temperature, squared):
    student, *teachers = torch.randn(1 + count, 4, 3).double()
    expected = 0.0
    for n in range(4):
        for k in range(3):
            p = sum(sigmoid(teacher[n, k].item() / temperature) for teacher in teachers) / count
            expected += binary_divergence(p, sigmoid(student[n, k].item() / temperature)) / 4
    expected *= temperature**2 if squared else 1
    found = binary_soft_loss(student, *teachers, temperature=temperature, temperature_squared=squared)
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("count", [1, 3])
def test_the_soft_loss_of_places_is_the_mean_over_the_places_of_that_of_classes(count, temperature):
    student, *teachers = torch.randn(1 + count, 2, 3, 4, 5).double()
    values = [
        soft_loss(*(one[n : n + 1, :, y, x] for one in (student, *teachers)), temperature=temperature).item()
        for n in range(2)
        for y in range(4)
        for x in range(5)
    ]
    found = places_soft_loss(student, *teachers, temperature=temperature)
    assert found.item() == pytest.approx(sum(values) / 40)
    plain = places_soft_loss(student, *teachers, temperature=temperature, temperature_squared=False)
    assert plain.item() == pytest.approx(found.item() / temperature**2)


def test_the_output_distance_is_to_the_mean_of_the_teachers():
    student, first, second = torch.randn(3, 4, 6).double()
    squares = [
        (student[n, d].item() - (first[n, d].item() + second[n, d].item()) / 2) ** 2 for n in range(4) for d in range(6)
    ]
    assert output_distance(student, first, second).item() == pytest.approx(sum(squares) / 24)


def test_at_a_temperature_of_1_a_sure_teacher_is_as_good_as_the_labels():
    student, targets = torch.randn(4, 3), (torch.rand(4, 3) < 0.5).float()
    soft = binary_soft_loss(student, 200 * targets - 100, temperature=1.0)
    assert soft.item() == pytest.approx(binary_cross_entropy(student, targets).item())


SOFT = {
    "binary": (lambda *logits: binary_soft_loss(*logits, temperature=3.0), (4, 3)),
    "distance": (output_distance, (4, 3)),
    "places": (lambda *logits: places_soft_loss(*logits, temperature=3.0), (2, 3, 2, 2)),
}


@pytest.mark.parametrize(("loss", "shape"), SOFT.values(), ids=SOFT)
def test_soft_losses_teach_only_the_student(loss, shape):
    student, first, second = (torch.randn(shape).double().requires_grad_() for _ in range(3))
    assert gradcheck(lambda logits: loss(logits, first.detach(), second.detach()), student)
    loss(student, first, second).backward()
    assert student.grad is not None
    assert (first.grad, second.grad) == (None, None)
    assert loss(student, student.detach()).item() == 0


@pytest.mark.parametrize("loss", [binary_soft_loss, places_soft_loss])
def test_a_high_temperature_has_its_limit_in_32_bits(loss):
    # T² KL tends to a quadratic form: (difference)² / 8 for a label, variance over the classes / 2 for a place
    student, teacher = torch.randn(2, 4, 3, 2, 2)
    leaf = student.clone().requires_grad_()
    value = loss(leaf, teacher, temperature=1e4)
    value.backward()
    difference = student.double() - teacher.double()
    if loss is binary_soft_loss:
        expected, slope = difference.square().sum() / 8 / 4, difference / 4 / 4
    else:
        expected = difference.var(dim=1, correction=0).mean() / 2
        slope = (difference - difference.mean(dim=1, keepdim=True)) / 3 / 16
    assert (value.dtype, leaf.grad.dtype) == (torch.float32, torch.float32)
    assert value.item() == pytest.approx(expected.item(), rel=1e-3)
    assert torch.allclose(leaf.grad.double(), slope, rtol=1e-3, atol=1e-5)
    assert loss(student, student, temperature=1e4).item() == 0


@pytest.mark.parametrize("loss", [binary_soft_loss, places_soft_loss])
def test_logits_beyond_every_probability_have_a_finite_loss(loss):
    student = torch.full((1, 2, 1, 1), -1e4, requires_grad=True)
    value = loss(student, torch.tensor([1e4, -1e4]).reshape(1, 2, 1, 1), temperature=1.0)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
