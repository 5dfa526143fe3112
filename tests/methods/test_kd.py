import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from limbeck.core import LimbeckError, Setup, Tap
from limbeck.methods.alone import hard_loss
from limbeck.methods.kd import PRESETS, kd, soft_loss
from limbeck.schedules import constant

SETUP = Setup(
    epochs=3,
    optimizer=lambda parameters: None,
    schedule=constant(),
    shape=lambda tap: (),
    module=lambda source, layer: None,
    below=lambda tap: (),
    outline=lambda source: None,
    networks=("student", "teacher"),
    classes=5,
    targets=torch.zeros(4, dtype=torch.int64),
    batch_size=4,
)


def logits(n=4, k=5, scale=3.0):
    return scale * torch.randn(n, k, dtype=torch.float64), scale * torch.randn(n, k, dtype=torch.float64)


def softened(row, temperature):
    powers = [math.exp(value / temperature) for value in row.tolist()]
    return [power / sum(powers) for power in powers]


def loop(student, teachers, temperature):
    """Eq. 1 and the KL divergence, one number at a time."""
    total = 0.0
    for n in range(len(student)):
        q = softened(student[n], temperature)
        members = [softened(teacher[n], temperature) for teacher in teachers]
        for k in range(len(q)):
            p = sum(member[k] for member in members) / len(members)
            total += p * (math.log(p) - math.log(q[k]))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_is_the_formula_in_loops(temperature):
    student, teacher = logits()
    assert soft_loss(student, teacher, temperature=temperature).item() == pytest.approx(
        loop(student, [teacher], temperature), rel=1e-12
    )


def test_several_teachers_are_averaged_as_probabilities():
    student, first = logits()
    second = logits()[0]
    assert soft_loss(student, first, second, temperature=2.0).item() == pytest.approx(
        loop(student, [first, second], 2.0), rel=1e-12
    )


def test_averaging_over_elements_divides_by_the_classes():
    student, teacher = logits()
    batch, elements = (soft_loss(student, teacher, temperature=3.0, average=a) for a in ("batch", "elements"))
    assert elements.item() == pytest.approx(batch.item() / 5, rel=1e-12)


def test_the_square_of_the_temperature_can_be_left_out():
    student, teacher = logits()
    with_it, without = (soft_loss(student, teacher, temperature=3.0, temperature_squared=s) for s in (True, False))
    assert with_it.item() == pytest.approx(9 * without.item(), rel=1e-12)


def test_probabilities_are_softened_instead_of_logits_if_asked_for():
    student, teacher = torch.randn(2, 5, 4)
    mistaken = soft_loss(student, teacher, temperature=10.0, teacher_softmax=True)
    assert mistaken == soft_loss(student, teacher.softmax(dim=1), temperature=10.0)
    assert mistaken != soft_loss(student, teacher, temperature=10.0)


def test_has_the_gradient_of_cross_entropy_with_soft_targets():
    student, teacher = logits()
    one, other = student.clone().requires_grad_(), student.clone().requires_grad_()
    soft_loss(one, teacher, temperature=4.0).backward()
    (16 * F.cross_entropy(other / 4, (teacher / 4).softmax(1))).backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-14)


def test_keeps_the_size_of_the_gradient_when_the_temperature_rises():
    student, teacher = logits()
    sizes = []
    for temperature in (20.0, 40.0):
        leaf = student.clone().requires_grad_()
        soft_loss(leaf, teacher, temperature=temperature).backward()
        sizes.append(leaf.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


@pytest.mark.parametrize(("temperature", "bound"), [(10, 0.3), (20, 0.16), (100, 0.032), (1000, 0.0032)])
def test_tends_to_centred_logit_matching(temperature, bound):
    """Spec 6.1, Eq. 4: T² dC/dz -> ((z - mean z) - (v - mean v)) / N, with an error of order 1/T."""
    student, teacher = logits(64, 10, scale=2.0)
    leaf = student.clone().requires_grad_()
    value = soft_loss(leaf, teacher, temperature=float(temperature))
    value.backward()
    difference = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    limit = difference / (10 * 64)
    error = ((leaf.grad - limit).norm() / limit.norm()).item()
    assert error < bound
    assert value.item() == pytest.approx(difference.square().sum().item() / (2 * 10 * 64), rel=2 * bound)


def test_the_error_of_the_limit_falls_as_one_over_the_temperature():
    student, teacher = logits(64, 10, scale=2.0)
    errors = []
    for temperature in (1e3, 1e4):
        leaf = student.clone().requires_grad_()
        soft_loss(leaf, teacher, temperature=temperature).backward()
        difference = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
        errors.append((leaf.grad - difference / 640).norm().item())
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)


def test_the_gradient_is_that_of_the_value():
    student, teacher = logits(3, 4)
    assert torch.autograd.gradcheck(lambda s: soft_loss(s, teacher, temperature=2.5), student.requires_grad_())


def test_no_gradient_reaches_the_teachers():
    student, teacher = logits()
    teacher.requires_grad_()
    soft_loss(student.requires_grad_(), teacher, temperature=4.0).backward()
    assert teacher.grad is None


def test_is_zero_for_equal_distributions():
    student, _ = logits()
    assert soft_loss(student, student + 7.0, temperature=4.0).item() == pytest.approx(0, abs=1e-12)


def test_ignores_the_order_of_classes_and_samples():
    student, teacher = logits()
    classes, samples = torch.randperm(5), torch.randperm(4)
    moved = soft_loss(student[samples][:, classes], teacher[samples][:, classes], temperature=4.0)
    assert moved.item() == pytest.approx(soft_loss(student, teacher, temperature=4.0).item(), rel=1e-12)


def test_stays_finite_for_huge_logits_and_one_sample():
    student = torch.tensor([[1e3, -1e3, 0.0]], requires_grad=True)
    value = soft_loss(student, torch.tensor([[-1e3, 1e3, 0.0]]), temperature=1.0)
    value.backward()
    assert value.item() == pytest.approx(2000)
    assert student.grad.isfinite().all()


def test_has_one_stage_with_the_hard_and_the_soft_term():
    (stage,) = kd(SETUP)
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 0.1, "soft": 0.9}
    assert stage.terms["soft"].reads == (Tap("student"), Tap("teacher"))
    assert stage.epochs == 3
    assert stage.learns == ("student",)


def test_a_zero_weight_leaves_its_term_out():
    (stage,) = kd(SETUP, hard=0)
    assert list(stage.terms) == ["soft"]


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(LimbeckError, match="weights hard and soft are all 0"):
        kd(SETUP, hard=0, soft=0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    with pytest.raises(LimbeckError, match="it must be above 0"):
        kd(SETUP, temperature=temperature)


def test_reads_the_named_layers():
    (stage,) = kd(SETUP, student_layer="head", teacher_layer="members.0.head")
    assert stage.terms["soft"].reads == (Tap("student", "head"), Tap("teacher", "members.0.head"))


def test_reads_every_member_of_an_ensemble():
    members = (Tap("teacher", "members.0"), Tap("teacher", "members.1"))
    setup = replace(SETUP, teacher_logits=members)
    (stage,) = kd(setup)
    assert stage.terms["soft"].reads == (Tap("student"), *members)


def objective(preset, student, teacher, targets):
    """A preset's whole objective, at the beginning of its stage."""
    from limbeck.options import call, fill

    (stage,) = call(
        {"kd": kd}, fill({"kd": kd}, {"name": "kd", "preset": preset}, kind="method", presets={"kd": PRESETS}), SETUP
    )
    values = {Tap("student"): student, Tap("teacher"): teacher, Tap("batch", "targets"): targets}
    total = 0.0
    for term in stage.terms.values():
        weight = term.weight(0.0) if callable(term.weight) else term.weight
        total += weight * term.loss(*(values[tap] for tap in term.reads)).item()
    return total


@pytest.mark.parametrize(
    ("preset", "temperature", "hard", "soft"),
    [
        ("hinton_mnist", 20, 0.1, 20**2),
        ("fitnet_eq2", 3, 1, 4),
        ("tf2_demo", 10, 0.1, 0.9 * 10**2),
        ("repdistiller", 4, 0.1, 0.9 * 4**2),
        ("at_repo", 4, 0.1, 2 * 0.9 * 4**2 / 5),
        ("kd_methods_tf", 4, 0.7, 0.3),
    ],
)
def test_the_presets_are_those_of_the_specification(preset, temperature, hard, soft):
    """Spec section 1: the factors on the two plain terms, cross-entropy and KL summed over classes, batch mean."""
    student, teacher = logits()
    targets = torch.tensor([0, 2, 1, 4])
    divergence = loop(student, [teacher], temperature) / temperature**2
    expected = hard * hard_loss(student, targets).item() + soft * divergence
    assert objective(preset, student, teacher, targets) == pytest.approx(expected, rel=1e-9)


def test_every_preset_is_tested():
    assert set(PRESETS) == {"hinton_mnist", "fitnet_eq2", "tf2_demo", "repdistiller", "at_repo", "kd_methods_tf"}
