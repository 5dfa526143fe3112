import math
from functools import partial

import pytest
import torch
from torch import nn

from limbeck.core import TARGETS, LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.kd_plus_plus import kd_plus_plus, norm_direction_loss
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

ENGINE = make_engine(device="cpu", precision="32")
DATA = arrays(torch.randn(24, 6, generator=torch.Generator().manual_seed(5)), torch.arange(24) % 4, normalise=False)
TRAINING = Training(2, 8, sgd(lr=0.02), constant())


def network(width):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4))


def planned(nets=None, **options):
    nets = nets or {"student": network(8), "teacher": network(8)}
    (stage,) = plan(partial(kd_plus_plus, **options), nets, DATA, TRAINING)
    return stage


def trained(stage, nets):
    return list(run([stage], nets, training_batches(DATA, TRAINING, seed=0, engine=ENGINE), ENGINE))


def features(n=4, d=5):
    return [torch.randn(n, d, dtype=torch.float64) for _ in range(3)]


def length(row):
    return math.sqrt(sum(value**2 for value in row))


@pytest.mark.parametrize("n", [1, 4])
def test_is_the_formula_in_loops(n):
    student, teacher, centres = features(n)
    total = 0.0
    for s, t, c in zip(student.tolist(), teacher.tolist(), centres.tolist(), strict=True):
        total += 1 - sum(a * b for a, b in zip(s, c, strict=True)) / length(c) / max(length(s), length(t))
    assert norm_direction_loss(student, teacher, centres).item() == pytest.approx(total / n, rel=1e-10)


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        ([0.0, 4.0], 0.5),
        ([0.0, 8.0], 0.0),
        ([0.0, 80.0], 0.0),
        ([8.0, 0.0], 1.0),
        ([0.0, -8.0], 2.0),
        ([6.0, 8.0], 0.2),
    ],
)
def test_values_by_hand_with_a_teacher_of_length_8(student, expected):
    value = norm_direction_loss(torch.tensor([student]), torch.tensor([[8.0, 0.0]]), torch.tensor([[0.0, 3.0]]))
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_the_gradient_is_that_of_the_value_and_none_is_the_teachers():
    student, teacher, centres = features()
    teacher[:2] /= 10  # here the student is the longer one
    for one in (student, teacher, centres):
        one.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: norm_direction_loss(s, teacher, centres), student)
    norm_direction_loss(student, teacher, centres).backward()
    assert teacher.grad is None
    assert centres.grad is None


def test_norms_of_0():
    student = torch.zeros(2, 3, requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    value = norm_direction_loss(student, teacher, torch.ones(2, 3))
    value.backward()
    assert value.item() == 1
    assert student.grad.isfinite().all()
    assert student.grad[1].tolist() == pytest.approx([-1 / (4 * math.sqrt(3))] * 3)
    longer = torch.ones(1, 3, requires_grad=True)
    norm_direction_loss(longer, longer.detach(), torch.zeros(1, 3)).backward()
    assert not longer.grad.any()


def test_the_centres_are_the_means_of_the_teachers_features():
    nets = {"student": network(8), "teacher": network(8)}
    stage = planned(nets)
    trained(stage, nets)
    given = nets["teacher"][:2](DATA.train.inputs)
    for label, centre in enumerate(stage.terms["norm_direction"].loss.centres):
        torch.testing.assert_close(centre, given[DATA.train.targets == label].mean(dim=0))


def test_an_adapter_learns():
    nets = {"student": network(5), "teacher": network(8)}
    stage = planned(nets, adapter="linear")
    before = stage.terms["norm_direction"].loss.connector.weight.clone()
    trained(stage, nets)
    assert not torch.equal(stage.terms["norm_direction"].loss.connector.weight, before)


def test_has_the_authors_terms_and_weights():
    stage = planned(warmup=0.5)
    terms = stage.terms
    assert terms["hard"].weight == 1.0
    assert terms["norm_direction"].weight == 2.0
    assert [terms["soft"].weight(progress) for progress in (0.0, 0.25, 0.75)] == [0.0, 0.5, 1.0]
    assert terms["norm_direction"].reads == (Tap("student", "2", "input"), Tap("teacher", "2", "input"), TARGETS)
    assert planned(norm_direction=0).prepare is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"has \(5,\), the teacher's .* has \(8,\): .* set adapter: linear"),
        ({"adapter": "linear", "warmup": 1.0}, r"warmup is 1\.0: it is a fraction of the stage"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned({"student": network(5), "teacher": network(8)}, **options)
