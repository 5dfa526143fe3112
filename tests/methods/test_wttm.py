import math
from functools import partial

import pytest
import torch

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training
from limbeck.methods.kd import soft_loss
from limbeck.methods.wttm import transformed_loss, wttm
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant


def logits(n=4, k=5):
    return [3 * torch.randn(n, k, dtype=torch.float64) for _ in range(2)]


def planned(**options):
    data = arrays(torch.rand(12, 6), torch.arange(12) % 4)
    built = {role: build("mlp", classes=4, shape=(6,), hidden=[5]) for role in ("student", "teacher")}
    (stage,) = plan(partial(wttm, **options), built, data, Training(3, 4, sgd(lr=0.1), constant()))
    return stage


def softmax(row):
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("sample_weights", [True, False])
@pytest.mark.parametrize("n", [1, 4])
def test_is_the_formula_in_loops(n, sample_weights):
    student, teacher = logits(n)
    total = 0.0
    for mine, wanted in zip(student.tolist(), teacher.tolist(), strict=True):
        powers = [value**0.3 for value in softmax(wanted)]
        size = sum(powers)
        q = [power / size for power in powers]
        divergence = sum(b * math.log(b / a) for a, b in zip(softmax(mine), q, strict=True))
        total += divergence * (size if sample_weights else 1)
    value = transformed_loss(student, teacher, gamma=0.3, sample_weights=sample_weights)
    assert value.item() == pytest.approx(total / n, rel=1e-10)


def test_a_value_by_hand():
    """p_T = (0.8, 0.2) and gamma = 1/2: the powers are in the ratio 2 : 1, so q = (2/3, 1/3) and U = 3 sqrt(0.2)."""
    teacher = torch.tensor([[math.log(4.0), 0.0]])
    student = torch.zeros(1, 2)
    divergence = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert transformed_loss(student, teacher, gamma=0.5, sample_weights=False).item() == pytest.approx(divergence)
    assert transformed_loss(student, teacher, gamma=0.5).item() == pytest.approx(3 * math.sqrt(0.2) * divergence)


def test_without_an_exponent_it_is_kd():
    student, teacher = logits()
    assert transformed_loss(student, teacher, gamma=1.0).item() == pytest.approx(
        soft_loss(student, teacher, temperature=1.0).item(), rel=1e-10
    )
    assert transformed_loss(student, student, gamma=1.0).item() == pytest.approx(0)


def test_the_student_that_is_the_teacher_at_its_temperature_has_loss_0():
    _, teacher = logits()
    assert transformed_loss(teacher / 5, teacher, gamma=0.2).item() == pytest.approx(0)
    assert transformed_loss(teacher, teacher, gamma=0.2) > 0.1


@pytest.mark.parametrize("sample_weights", [True, False])
def test_the_gradient_is_that_of_the_value_and_none_is_the_teachers(sample_weights):
    student, teacher = (one.requires_grad_() for one in logits(3, 4))
    loss = partial(transformed_loss, gamma=0.4, sample_weights=sample_weights)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)
    loss(student, teacher).backward()
    assert teacher.grad is None


def test_stays_finite_for_huge_logits():
    student = torch.tensor([[1e3, -1e3, 0.0]], requires_grad=True)
    value = transformed_loss(student, torch.tensor([[-1e3, 1e3, 0.0]]), gamma=0.2)
    value.backward()
    assert value.isfinite()
    assert value.dtype == torch.float32
    assert student.grad.isfinite().all()


def test_options_reach_the_loss():
    stage = planned(gamma=0.5, sample_weights=False, soft=45.0, hard=0)
    assert {name: (term.reads, term.weight) for name, term in stage.terms.items()} == {
        "soft": ((Tap("student"), Tap("teacher")), 45.0)
    }
    student, teacher = logits()
    wanted = transformed_loss(student, teacher, gamma=0.5, sample_weights=False)
    assert stage.terms["soft"].loss(student, teacher).item() == wanted.item()


def test_an_exponent_of_0_is_refused():
    with pytest.raises(LimbeckError, match=r"gamma is 0\.0: it must be above 0"):
        planned(gamma=0.0)
