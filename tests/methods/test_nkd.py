import math
from functools import partial

import pytest
import torch

from limbeck.core import TARGETS, LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training
from limbeck.methods.nkd import label_loss, nkd
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant


def example(n=4, k=5):
    return *(2 * torch.randn(n, k, dtype=torch.float64) for _ in range(2)), torch.arange(n) % k


def planned(**options):
    data = arrays(torch.rand(12, 6), torch.arange(12) % 4)
    built = {role: build("mlp", classes=4, shape=(6,), hidden=[5]) for role in ("student", "teacher")}
    (stage,) = plan(partial(nkd, **options), built, data, Training(3, 4, sgd(lr=0.1), constant()))
    return stage


def softmax(row):
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("n", [1, 4])
def test_the_label_term_is_the_formula_in_loops(n):
    student, teacher, targets = example(n)
    rows = zip(student.tolist(), teacher.tolist(), targets.tolist(), strict=True)
    expected = sum(-softmax(theirs)[y] * math.log(softmax(mine)[y]) for mine, theirs, y in rows) / n
    assert label_loss(student, teacher, targets).item() == pytest.approx(expected, rel=1e-10)


def test_a_value_by_hand():
    """p_T = (3/4, 1/4) and p_S = (1/2, 1/2)."""
    value = label_loss(torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([0]))
    assert value.item() == pytest.approx(0.75 * math.log(2))


def test_the_other_term_is_the_authors_cross_entropy_without_the_teachers_entropy():
    """-T² sum over the other classes of N(p_T) log N(p_S), where N divides by the sum over the other classes."""
    student, teacher, targets = example()
    loss = planned(temperature=3.0).terms["nontarget"].loss
    total = entropy = 0.0
    for mine, theirs, y in zip(student.tolist(), teacher.tolist(), targets.tolist(), strict=True):
        p, q = (softmax([value / 3 for place, value in enumerate(row) if place != y]) for row in (theirs, mine))
        total -= 9 * sum(one * math.log(other) for one, other in zip(p, q, strict=True))
        entropy -= 9 * sum(one * math.log(one) for one in p)
    assert loss(student, teacher, targets).item() == pytest.approx((total - entropy) / 4, rel=1e-10)


@pytest.mark.parametrize("term", ["target", "nontarget"])
def test_the_gradient_is_that_of_the_value_and_none_is_the_teachers(term):
    student, teacher, targets = example(3, 4)
    student.requires_grad_()
    teacher.requires_grad_()
    loss = planned(temperature=2.0).terms[term].loss
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, targets), student)
    loss(student, teacher, targets).backward()
    assert teacher.grad is None


def test_of_equal_inputs_only_the_label_pulls():
    student, _, targets = example()
    terms = planned().terms
    assert terms["nontarget"].loss(student, student, targets).item() == pytest.approx(0)
    assert terms["target"].loss(student, student, targets) > 0


def test_stays_finite_for_huge_logits():
    student = torch.tensor([[1e3, -1e3, 0.0]], requires_grad=True)
    value = label_loss(student, torch.tensor([[-1e3, 1e3, 0.0]]), torch.tensor([1]))
    value.backward()
    assert value.item() == pytest.approx(2000)
    assert student.grad.isfinite().all()


def test_has_the_authors_terms_and_weights():
    terms = planned().terms
    assert {name: term.weight for name, term in terms.items()} == {"hard": 1.0, "target": 1.0, "nontarget": 1.5}
    assert terms["target"].reads == terms["nontarget"].reads == (Tap("student"), Tap("teacher"), TARGETS)


def test_a_temperature_of_0_is_refused():
    with pytest.raises(LimbeckError, match=r"temperature is 0\.0: it must be above 0"):
        planned(temperature=0.0)
