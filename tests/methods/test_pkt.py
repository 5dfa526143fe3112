import math
from functools import partial

import pytest
import torch

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training
from limbeck.methods.pkt import PRESETS, pkt, probability_loss
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant

FORMS = ["code", "paper"]


def features(n=5):
    return torch.randn(n, 4, dtype=torch.float64), torch.randn(n, 6, dtype=torch.float64)


def planned(batch_size=8, **options):
    data = arrays(torch.rand(40, 3, 16, 16), torch.arange(40) % 4)
    small, large = (build(name, classes=4, shape=(3, 16, 16)) for name in ("resnet8", "resnet14"))
    training = Training(epochs=3, batch_size=batch_size, optimizer=sgd(lr=0.1), schedule=constant())
    (stage,) = plan(partial(pkt, **options), {"student": small, "teacher": large}, data, training)
    return stage


def loop(student, teacher, form):
    """One number at a time, without the code's epsilon."""

    def similarity(one, other):
        product = sum(a * b for a, b in zip(one, other, strict=True))
        return (product / math.hypot(*one) / math.hypot(*other) + 1) / 2

    def probabilities(feature):
        points = feature.flatten(1).tolist()
        count = range(len(points))
        allowed = [[j for j in count if form == "code" or j != i] for i in count]
        rows = [{j: similarity(points[i], points[j]) for j in allowed[i]} for i in count]
        return [{j: value / sum(row.values()) for j, value in row.items()} for row in rows]

    total = 0.0
    for mine, wanted in zip(probabilities(student), probabilities(teacher), strict=True):
        total += sum(p * math.log(p / mine[j]) for j, p in wanted.items())
    return total / len(student) ** 2 if form == "code" else total


@pytest.mark.parametrize(("form", "accuracy"), [("code", 1e-5), ("paper", 1e-5)])
def test_is_the_formula_in_loops(form, accuracy):
    student, teacher = features()
    value = probability_loss(student, teacher, form=form).item()
    assert value == pytest.approx(loop(student, teacher, form), rel=accuracy)


def test_the_codes_epsilons_are_where_the_authors_have_them():
    """Two samples at right angles for the teacher and opposite for the student: p_S of the other is 0."""
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    teacher = torch.eye(2, dtype=torch.float64)
    epsilon = 1e-7
    other = (1 / (1 + epsilon) ** 2 + 1) / 2
    likely = [other / (other + 0.5), 0.5 / (other + 0.5)]
    opposite = (1 - 1 / (1 + epsilon) ** 2) / 2
    student_likely = [other / (other + opposite), opposite / (other + opposite)]
    wanted = sum(p * math.log((p + epsilon) / (q + epsilon)) for p, q in zip(likely, student_likely, strict=True)) / 2
    assert probability_loss(student, teacher).item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_reads_maps_and_tokens_as_vectors(form):
    student, teacher = torch.randn(4, 3, 2, 2, dtype=torch.float64), torch.randn(4, 5, 3, dtype=torch.float64)
    value = probability_loss(student, teacher, form=form).item()
    assert value == pytest.approx(loop(student, teacher, form), rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_ignores_each_features_scale_rotation_and_the_samples_order(form):
    student, teacher = features()
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    scales, order = torch.rand(5, 1, dtype=torch.float64) + 0.5, torch.randperm(5)
    moved = probability_loss((scales * student @ rotation)[order], teacher[order], form=form)
    assert moved.item() == pytest.approx(probability_loss(student, teacher, form=form).item(), rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_that_of_the_value(form):
    student, teacher = features()
    assert torch.autograd.gradcheck(lambda s: probability_loss(s, teacher, form=form), student.requires_grad_())


@pytest.mark.parametrize("form", FORMS)
def test_is_zero_with_the_least_gradient_for_equal_features(form):
    student = torch.randn(4, 6, dtype=torch.float64).requires_grad_()
    value = probability_loss(student, student.detach().clone(), form=form)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-14)
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize(("form", "count"), [("code", 1), ("paper", 1), ("paper", 2)])
def test_too_few_samples_leave_no_choice(form, count):
    student = torch.randn(count, 6, dtype=torch.float64).requires_grad_()
    value = probability_loss(student, torch.randn(count, 3, dtype=torch.float64), form=form)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-14)
    assert student.grad.abs().max() < 1e-14


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["dead", "opposite", "huge"])
def test_stays_finite_for(form, kind):
    student, teacher = (one.float() for one in features(4))
    if kind == "dead":
        student[1:3] = 0
    if kind == "opposite":
        student = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    if kind == "huge":
        student, teacher = 1e3 * student, 1e3 * teacher
    student.requires_grad_()
    value = probability_loss(student, teacher, form=form)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_no_gradient_reaches_the_teacher(form):
    student, teacher = (one.requires_grad_() for one in features())
    probability_loss(student, teacher, form=form).backward()
    assert teacher.grad is None


# --- the method


def test_reads_the_features_with_the_benchmarks_weight():
    stage = planned()
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 1, "probabilities": 30000}
    assert stage.terms["probabilities"].reads == (Tap("student", "head", "input"), Tap("teacher", "head", "input"))
    assert (stage.name, stage.epochs, stage.learns) == ("pkt", 3, ("student",))


def test_the_papers_objective_has_no_labels():
    stage = planned(**PRESETS["paper"])
    student, teacher = features()
    assert {name: term.weight for name, term in stage.terms.items()} == {"probabilities": 1}
    found = stage.terms["probabilities"].loss(student, teacher).item()
    assert found == pytest.approx(loop(student, teacher, "paper"), rel=1e-5)


def test_reads_the_named_layers():
    stage = planned(student_layer="stage2", teacher_layer="pool")
    assert stage.terms["probabilities"].reads == (Tap("student", "stage2"), Tap("teacher", "pool"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "pkt compares the samples of a batch with each other: batch_size is 1, it must be 2 or"),
        ({"hard": 0, "probabilities": 0}, "hard and probabilities are all 0"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)
