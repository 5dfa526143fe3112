import math
from functools import partial

import pytest
import torch

from limbeck.methods.dist import inter_loss, intra_loss
from limbeck.methods.distributions import divergence
from limbeck.methods.dkd import nontarget_loss, target_loss
from limbeck.methods.kd import soft_loss
from limbeck.methods.logits import logits_loss
from limbeck.methods.mlkd import batch_loss, category_loss, instance_loss
from limbeck.methods.mutual import mutual_loss
from limbeck.methods.nst import selectivity_loss
from limbeck.methods.pkt import probability_loss
from limbeck.methods.srrl import softmax_regression_loss
from limbeck.methods.standardised import standardised_loss
from limbeck.methods.wsld import weighted_soft_loss

TEMPERATURES = (1.0, 20.0, 100.0, 1000.0)
# a number like these is the size of the teacher's logits, and how far the student's are from them
APART = ((3.0, 1e-2), (3.0, 1e-4), (3.0, 3.0), (1e3, 0.1), (1e4, 1e4))


def with_several(student, teacher, temperature):
    return soft_loss(student, teacher, teacher + 0.01, 1.001 * teacher, temperature=temperature)


def labelled(loss):
    def value(student, teacher, temperature):
        return loss(student, teacher, torch.arange(len(student)) % student.shape[1], temperature=temperature)

    return value


def at_one(loss):
    return lambda student, teacher, temperature: loss(student, teacher, temperatures=(temperature,))


LOSSES = {
    "soft": soft_loss,
    "several teachers": with_several,
    "mutual": mutual_loss,
    "standardised": standardised_loss,
    "standardised by the sample": partial(standardised_loss, deviation="sample"),
    "target": labelled(target_loss),
    "nontarget": labelled(nontarget_loss),
    "weighted": labelled(weighted_soft_loss),
    "instance": at_one(instance_loss),
    "batch": at_one(batch_loss),
    "category": at_one(category_loss),
    "inter": inter_loss,
    "intra": intra_loss,
    "srrl": lambda student, teacher, temperature: softmax_regression_loss(student, teacher, form="kl"),
    "cross-entropy": lambda student, teacher, temperature: softmax_regression_loss(student, teacher, form="ce"),
    "logits": lambda student, teacher, temperature: logits_loss(student, teacher, centre=True),
}


def pair(size, apart, classes, n=16):
    teacher = size * torch.randn(n, classes)
    return teacher + apart * torch.randn(n, classes), teacher


def value_and_gradient(loss, student, teacher, temperature):
    leaf = student.clone().requires_grad_()
    value = loss(leaf, teacher, temperature=temperature)
    value.backward()
    return value, leaf.grad


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_loss_on_logits_and_its_gradient_are_those_of_64_bits_at_every_temperature(loss, temperature):
    for classes in (2, 10, 300):
        for size, apart in APART:
            student, teacher = pair(size, apart, classes)
            got, gradient = value_and_gradient(loss, student, teacher, temperature)
            true, exact = value_and_gradient(loss, student.double(), teacher.double(), temperature)
            assert (got.dtype, gradient.dtype) == (torch.float32, torch.float32)
            assert got.item() >= 0
            assert got.item() == pytest.approx(true.item(), rel=1e-2, abs=1e-20), (classes, size, apart)
            assert (gradient - exact).norm() <= 1e-2 * exact.norm() + 1e-7, (classes, size, apart)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_student_that_is_its_teacher_has_a_loss_of_exactly_0_and_no_gradient(temperature):
    student, _ = pair(3.0, 0.0, 10)
    value, gradient = value_and_gradient(soft_loss, student, student.clone(), temperature)
    assert value.item() == 0
    assert gradient.abs().max() <= 1e-12
    assert value_and_gradient(soft_loss, student, student + 4.0, temperature)[0].item() >= 0


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_bf16_logits_give_the_value_of_their_numbers_in_32_bits(temperature):
    student, teacher = (one.bfloat16() for one in pair(3.0, 0.1, 10))
    value, gradient = value_and_gradient(soft_loss, student, teacher, temperature)
    true, _ = value_and_gradient(soft_loss, student.double(), teacher.double(), temperature)
    assert (value.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    assert value.item() == pytest.approx(true.item(), rel=1e-6)


def test_the_divergence_is_the_formula_in_loops():
    student, teacher = (one[0].tolist() for one in pair(2.0, 1.0, 4, n=1))

    def softened(row):
        powers = [math.exp(value / 3) for value in row]
        return [power / sum(powers) for power in powers]

    expected = sum(p * math.log(p / q) for p, q in zip(softened(teacher), softened(student), strict=True))
    (got,) = divergence(torch.tensor([student]).double(), torch.tensor([teacher]).double(), temperature=3.0)
    assert got.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("factor", [None, 0.7])
@pytest.mark.parametrize("members", [1, 3])
def test_the_gradient_is_that_of_the_value(members, factor):
    student, *teachers = (2 * torch.randn(3, 4, dtype=torch.float64) for _ in range(members + 1))

    def value(logits):
        return divergence(logits, *teachers, temperature=2.5, factor=factor)

    assert torch.autograd.gradcheck(value, student.requires_grad_())


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("width", [16, 512])
def test_the_probabilities_of_neighbours_are_those_of_64_bits_near_the_teacher(form, width):
    for apart in (1.0, 1e-2, 1e-3):
        teacher = torch.randn(32, width).relu() + 0.1
        student = teacher + apart * torch.randn(32, width)
        got = probability_loss(student, teacher, form=form)
        true = probability_loss(student.double(), teacher.double(), form=form)
        assert got.dtype == torch.float32
        assert got.item() == pytest.approx(true.item(), rel=1e-2)


@pytest.mark.parametrize("kernel", ["polynomial", "linear", "gaussian"])
def test_the_discrepancy_of_maps_is_not_negative_and_that_of_64_bits_near_the_teacher(kernel):
    teacher = torch.randn(4, 64, 6, 6).relu()
    assert selectivity_loss(teacher + 1e-6, teacher, kernel=kernel).item() >= 0
    for apart in (1.0, 1e-2):
        student = (teacher + apart * torch.randn_like(teacher)).relu()
        got = selectivity_loss(student, teacher, kernel=kernel)
        true = selectivity_loss(student.double(), teacher.double(), kernel=kernel)
        assert got.dtype == torch.float32
        assert got.item() == pytest.approx(true.item(), rel=1e-2)


def test_a_second_derivative_is_refused_because_it_would_be_wrong():
    student, teacher = pair(1.0, 1.0, 4)
    value = divergence(student.requires_grad_(), teacher, factor=1.0)
    with pytest.raises(RuntimeError, match="not differentiable twice"):
        torch.autograd.grad(value, student, create_graph=True)
