import math
from functools import partial

import pytest
import torch

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training
from limbeck.methods.kd import soft_loss
from limbeck.methods.standardised import kd_standardised, standardise, standardised_loss
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant

DEVIATIONS = ["population", "sample"]


def logits(n=4, k=5, scale=3.0):
    return [scale * torch.randn(n, k, dtype=torch.float64) for _ in range(2)]


def planned(**options):
    data = arrays(torch.rand(40, 3, 16, 16), torch.arange(40) % 4)
    networks = {"student": "resnet8", "teacher": "resnet14"}
    built = {role: build(name, classes=4, shape=(3, 16, 16)) for role, name in networks.items()}
    training = Training(epochs=3, batch_size=8, optimizer=sgd(lr=0.1), schedule=constant())
    (stage,) = plan(partial(kd_standardised, **options), built, data, training)
    return stage


def scores(row, deviation):
    mean = sum(row) / len(row)
    squares = sum((value - mean) ** 2 for value in row)
    if deviation == "population":
        return [(value - mean) / math.sqrt(squares / len(row)) for value in row]
    return [(value - mean) / (1e-7 + math.sqrt(squares / (len(row) - 1))) for value in row]


def softened(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("deviation", DEVIATIONS)
@pytest.mark.parametrize("n", [1, 4])
def test_is_the_formula_in_loops(deviation, n):
    student, teacher = logits(n)
    total = 0.0
    for mine, wanted in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = (softened(scores(row, deviation), 2.0) for row in (mine, wanted))
        total += sum(b * math.log(b / a) for a, b in zip(q, p, strict=True))
    value = standardised_loss(student, teacher, temperature=2.0, deviation=deviation).item()
    assert value == pytest.approx(4 * total / n, rel=1e-10)


def test_the_published_form_has_deviation_one():
    assert standardise(logits()[0]).std(dim=1, correction=0).tolist() == pytest.approx([1.0] * 4, rel=1e-12)


def test_the_authors_form_has_another_deviation():
    student, teacher = logits()
    published, code = (standardised_loss(student, teacher, temperature=2.0, deviation=form) for form in DEVIATIONS)
    assert published.item() != pytest.approx(code.item(), rel=1e-2)


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_ignores_the_scale_and_the_shift_of_each_samples_logits(deviation):
    student, teacher = logits()
    scale, shift = torch.rand(2, 4, 1, dtype=torch.float64) + 0.5
    moved = standardised_loss(scale * student + shift, teacher * 3 - 1, temperature=2.0, deviation=deviation)
    still = standardised_loss(student, teacher, temperature=2.0, deviation=deviation)
    assert moved.item() == pytest.approx(still.item(), rel=1e-6 if deviation == "sample" else 1e-10)
    assert still.item() != pytest.approx(soft_loss(student, teacher, temperature=2.0).item(), rel=1e-2)


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_the_gradient_is_that_of_the_value_and_none_is_the_teachers(deviation):
    student, teacher = (tensor.requires_grad_() for tensor in logits(3, 4))
    loss = partial(standardised_loss, temperature=2.5, deviation=deviation)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)
    loss(student, teacher).backward()
    assert teacher.grad is None


def test_the_gradient_keeps_the_mean_and_the_size_of_the_logits():
    student, teacher = logits()
    student.requires_grad_()
    standardised_loss(student, teacher, temperature=2.0).backward()
    assert student.grad.sum(dim=1).abs().max() < 1e-12
    assert (student.grad * student.detach()).sum(dim=1).abs().max() < 1e-12


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_is_zero_for_equal_inputs(deviation):
    student, _ = logits()
    assert standardised_loss(student, student, temperature=2.0, deviation=deviation).item() == pytest.approx(0)


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_stays_finite_for_huge_and_for_equal_logits(deviation):
    student = torch.tensor([[1e3, -1e3, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-1e3, 1e3, 0.0], [1.0, 2.0, 3.0]])
    value = standardised_loss(student, teacher, temperature=1.0, deviation=deviation)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_equal_logits_are_pulled_gently_in_the_published_form():
    student = torch.zeros(1, 3, requires_grad=True)
    standardised_loss(student, torch.tensor([[1.0, 2.0, 3.0]]), temperature=1.0).backward()
    assert 0 < student.grad.abs().max() < 1


def test_has_the_authors_terms_and_weights():
    stage = planned()
    assert stage.name == "kd_standardised"
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 0.1, "soft": 9.0}
    assert stage.terms["soft"].reads == (Tap("student"), Tap("teacher"))


def test_options_reach_the_loss():
    stage = planned(deviation="sample", temperature=3.0, hard=0)
    assert list(stage.terms) == ["soft"]
    student, teacher = logits()
    wanted = standardised_loss(student, teacher, temperature=3.0, deviation="sample")
    assert stage.terms["soft"].loss(student, teacher).item() == wanted.item()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"temperature": -1.0}, "temperature is -1.0: it must be above 0"), ({"hard": 0, "soft": 0}, "are all 0")],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)
