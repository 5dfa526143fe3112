import math
from functools import partial

import pytest
import torch

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training
from limbeck.methods.dist import correlation, dist, inter_loss, intra_loss
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant

LOSSES = [inter_loss, intra_loss]


def logits(n=4, k=5, scale=3.0):
    return [scale * torch.randn(n, k, dtype=torch.float64) for _ in range(2)]


def planned(classes=4, **options):
    data = arrays(torch.rand(40, 3, 16, 16), torch.arange(40) % classes)
    networks = {"student": "resnet8", "teacher": "resnet14"}
    built = {role: build(name, classes=classes, shape=(3, 16, 16)) for role, name in networks.items()}
    training = Training(epochs=3, batch_size=8, optimizer=sgd(lr=0.1), schedule=constant())
    (stage,) = plan(partial(dist, **options), built, data, training)
    return stage


def softened(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def pearson(one, other):
    first, second = sum(one) / len(one), sum(other) / len(other)
    product = sum((a - first) * (b - second) for a, b in zip(one, other, strict=True))
    lengths = [math.sqrt(sum((a - m) ** 2 for a in row)) for row, m in ((one, first), (other, second))]
    return product / (lengths[0] * lengths[1] + 1e-8)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_is_the_formula_in_loops(loss, temperature):
    student, teacher = logits()
    ours, theirs = ([softened(row, temperature) for row in one.tolist()] for one in (student, teacher))
    if loss is intra_loss:
        ours, theirs = list(zip(*ours, strict=True)), list(zip(*theirs, strict=True))
    values = [pearson(one, other) for one, other in zip(ours, theirs, strict=True)]
    wanted = temperature**2 * (1 - sum(values) / len(values))
    assert loss(student, teacher, temperature=temperature).item() == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_square_of_the_temperature_can_be_left_out(loss):
    student, teacher = logits()
    with_it, without = (loss(student, teacher, temperature=3.0, temperature_squared=form) for form in (True, False))
    assert with_it.item() == pytest.approx(9 * without.item(), rel=1e-12)


def test_correlation_ignores_scale_and_shift_and_turns_with_the_sign():
    one, other = logits()
    base = correlation(one, other)
    torch.testing.assert_close(correlation(2 * one + 1, 0.5 * other - 3), base, rtol=1e-7, atol=0)
    torch.testing.assert_close(correlation(-one, other), -base, rtol=1e-12, atol=0)
    assert correlation(one, one).tolist() == pytest.approx([1.0] * 4, rel=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_the_value_and_none_is_the_teachers(loss):
    student, teacher = (tensor.requires_grad_() for tensor in logits(3, 4))
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, temperature=2.0), student)
    loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("loss", LOSSES)
def test_ignores_the_order_of_classes_and_samples(loss):
    student, teacher = logits()
    classes, samples = torch.randperm(5), torch.randperm(4)
    moved = loss(student[samples][:, classes], teacher[samples][:, classes])
    assert moved.item() == pytest.approx(loss(student, teacher).item(), rel=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_is_zero_for_equal_inputs_up_to_the_constant_beside_the_norms(loss):
    student, _ = logits()
    assert 0 <= loss(student, student).item() < 1e-5


def test_of_one_sample_the_classes_are_constant_and_without_gradient():
    student, teacher = logits(1)
    value = intra_loss(student.requires_grad_(), teacher, temperature=2.0)
    value.backward()
    assert value.item() == 4
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_stays_finite_for_huge_and_for_equal_logits(loss):
    student = torch.tensor([[1e3, -1e3, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    value = loss(student, torch.tensor([[-1e3, 1e3, 0.0], [5.0, 5.0, 5.0]]))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_has_the_papers_terms_and_weights():
    stage = planned()
    assert stage.name == "dist"
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 1.0, "inter": 2.0, "intra": 2.0}
    assert stage.terms["inter"].reads == stage.terms["intra"].reads == (Tap("student"), Tap("teacher"))


def test_options_reach_both_losses():
    stage = planned(temperature=4.0, temperature_squared=False, hard=0)
    student, teacher = logits()
    for name, loss in (("inter", inter_loss), ("intra", intra_loss)):
        wanted = loss(student, teacher, temperature=4.0, temperature_squared=False)
        assert stage.terms[name].loss(student, teacher).item() == wanted.item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
        ({"hard": 0, "inter": 0, "intra": 0}, "are all 0"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)


def test_of_two_classes_the_term_inter_teaches_next_to_nothing_which_is_said():
    student, teacher = logits(k=2)
    inter_loss(student.requires_grad_(), teacher).backward()
    assert student.grad.norm() < 1e-5
    (note,) = planned(classes=2).notes
    assert note == "dist: with 2 classes every correlation is 1 or -1, so the term 'inter' has no effect"
    assert planned(classes=2, inter=0).notes == ()
    assert planned().notes == ()
