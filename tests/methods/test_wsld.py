import math
from functools import partial

import pytest
import torch

from limbeck.core import TARGETS, LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training
from limbeck.methods.wsld import sample_weights, weighted_soft_loss, wsld
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant


def logits(n=4, k=5, scale=3.0):
    student, teacher = (scale * torch.randn(n, k, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.arange(n) % k


def planned(**options):
    data = arrays(torch.rand(40, 3, 16, 16), torch.arange(40) % 4)
    networks = {"student": "resnet8", "teacher": "resnet14"}
    built = {role: build(name, classes=4, shape=(3, 16, 16)) for role, name in networks.items()}
    training = Training(epochs=3, batch_size=8, optimizer=sgd(lr=0.1), schedule=constant())
    (stage,) = plan(partial(wsld, **options), built, data, training)
    return stage


def softened(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def weights(student, teacher, targets):
    found = []
    for mine, theirs, label in zip(student.tolist(), teacher.tolist(), targets.tolist(), strict=True):
        ours, wanted = (-math.log(softened(row, 1.0)[label]) for row in (mine, theirs))
        found.append(1 - math.exp(-ours / (wanted + 1e-7)))
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("n", [1, 4])
def test_is_the_formula_in_loops(temperature, n):
    given = logits(n)
    total = 0.0
    for weight, mine, theirs in zip(weights(*given), given[0].tolist(), given[1].tolist(), strict=True):
        q, p = softened(mine, temperature), softened(theirs, temperature)
        total -= weight * sum(b * math.log(a) for a, b in zip(q, p, strict=True))
    value = weighted_soft_loss(*given, temperature=temperature).item()
    assert value == pytest.approx(temperature**2 * total / n, rel=1e-10)


def test_the_weight_is_small_where_the_student_is_better_and_near_one_where_it_is_worse():
    student = torch.tensor([[9.0, 0.0], [0.0, 9.0], [1.0, 0.0]])
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    better, worse, alike = sample_weights(student, teacher, torch.zeros(3, dtype=torch.int64)).tolist()
    assert better < 0.001
    assert worse > 0.999
    assert alike == pytest.approx(1 - math.exp(-1), rel=1e-5)


def test_the_gradient_is_that_of_the_value_with_the_weights_held():
    student, teacher, targets = logits(3, 4)
    held = sample_weights(student, teacher, targets)
    leaf, other = student.clone().requires_grad_(), student.clone().requires_grad_()
    weighted_soft_loss(leaf, teacher, targets).backward()
    p = (teacher / 2).softmax(1)
    (-4 * (held[:, None] * p * (other / 2).log_softmax(1)).sum() / 3).backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-10, atol=1e-14)
    assert not sample_weights(leaf, teacher, targets).requires_grad


def test_no_gradient_reaches_the_teacher():
    student, teacher, targets = logits()
    teacher.requires_grad_()
    weighted_soft_loss(student.requires_grad_(), teacher, targets).backward()
    assert teacher.grad is None


def test_the_gradient_is_zero_for_equal_inputs():
    student, _, targets = logits()
    leaf = student.clone().requires_grad_()
    weighted_soft_loss(leaf, student, targets).backward()
    assert leaf.grad.abs().max() < 1e-14


def test_ignores_the_order_of_classes_and_samples():
    student, teacher, targets = logits()
    classes, samples = torch.randperm(5), torch.randperm(4)
    moved = weighted_soft_loss(
        student[samples][:, classes], teacher[samples][:, classes], classes.argsort()[targets[samples]]
    )
    assert moved.item() == pytest.approx(weighted_soft_loss(student, teacher, targets).item(), rel=1e-10)


@pytest.mark.parametrize("label", [0, 1])
def test_stays_finite_for_huge_logits(label):
    student = torch.tensor([[1e3, -1e3, 0.0]], requires_grad=True)
    value = weighted_soft_loss(student, torch.tensor([[-1e3, 1e3, 0.0]]), torch.tensor([label]), temperature=1.0)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_has_the_authors_terms_and_weights():
    stage = planned()
    assert stage.name == "wsld"
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 1.0, "soft": 2.5}
    assert stage.terms["soft"].reads == (Tap("student"), Tap("teacher"), TARGETS)


def test_options_reach_the_loss():
    stage = planned(temperature=3.0, hard=0)
    given = logits()
    wanted = weighted_soft_loss(*given, temperature=3.0)
    assert stage.terms["soft"].loss(*given).item() == wanted.item()
    assert list(stage.terms) == ["soft"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"temperature": 0.0}, "temperature is 0.0: it must be above 0"), ({"hard": 0, "soft": 0}, "are all 0")],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)
