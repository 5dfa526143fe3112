import math
from functools import partial

import pytest
import torch

from limbeck.core import TARGETS, LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training
from limbeck.methods.dkd import dkd, nontarget_loss, target_loss
from limbeck.methods.kd import soft_loss
from limbeck.models import Ensemble, build
from limbeck.optimizers import sgd
from limbeck.schedules import constant, linear

LOSSES = [target_loss, nontarget_loss]


def logits(n=4, k=5, scale=3.0):
    student, teacher = (scale * torch.randn(n, k, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.arange(n) % k


def planned(epochs=240, teacher=None, **options):
    data = arrays(torch.rand(40, 3, 16, 16), torch.arange(40) % 4)
    networks = {"student": build("resnet8", classes=4, shape=(3, 16, 16))}
    networks["teacher"] = teacher or build("resnet14", classes=4, shape=(3, 16, 16))
    training = Training(epochs=epochs, batch_size=8, optimizer=sgd(lr=0.1), schedule=constant())
    (stage,) = plan(partial(dkd, **options), networks, data, training)
    return stage


def softened(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def divergence(wanted, given):
    return sum(p * math.log(p / q) for p, q in zip(wanted, given, strict=True))


def target_loop(student, teacher, targets, temperature):
    total = 0.0
    for mine, wanted, label in zip(student.tolist(), teacher.tolist(), targets.tolist(), strict=True):
        q, p = softened(mine, temperature)[label], softened(wanted, temperature)[label]
        total += divergence([p, 1 - p], [q, 1 - q])
    return temperature**2 * total / len(student)


def nontarget_loop(student, teacher, targets, temperature):
    total = 0.0
    for mine, wanted, label in zip(student.tolist(), teacher.tolist(), targets.tolist(), strict=True):
        del mine[label], wanted[label]
        total += divergence(softened(wanted, temperature), softened(mine, temperature))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize(("loss", "loop"), [(target_loss, target_loop), (nontarget_loss, nontarget_loop)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("n", [1, 4])
def test_is_the_formula_in_loops(loss, loop, temperature, n):
    given = logits(n)
    assert loss(*given, temperature=temperature).item() == pytest.approx(loop(*given, temperature), rel=1e-10)


def test_soft_targets_are_the_two_terms_with_the_teachers_doubt_as_weight():
    """KD = TCKD + (1 - p_y) NCKD, of one sample: the paper's reformulation."""
    student, teacher, targets = logits(1)
    doubt = 1 - softened(teacher[0].tolist(), 4.0)[int(targets)]
    parts = [loss(student, teacher, targets, temperature=4.0).item() for loss in LOSSES]
    assert parts[0] + doubt * parts[1] == pytest.approx(soft_loss(student, teacher, temperature=4.0).item(), rel=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_the_value_and_none_is_the_teachers(loss):
    student, teacher, targets = logits(3, 4)
    teacher.requires_grad_()
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, targets, temperature=2.0), student)
    loss(student, teacher, targets, temperature=2.0).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("loss", LOSSES)
def test_ignores_the_order_of_classes_and_samples_and_a_shift_of_the_logits(loss):
    student, teacher, targets = logits()
    classes, samples = torch.randperm(5), torch.randperm(4)
    moved = loss(
        student[samples][:, classes] + 7.0,
        teacher[samples][:, classes] - 2.0,
        classes.argsort()[targets[samples]],
        temperature=4.0,
    )
    assert moved.item() == pytest.approx(loss(student, teacher, targets, temperature=4.0).item(), rel=1e-10)


def test_the_target_term_ignores_the_order_of_the_other_classes_and_the_other_term_the_label():
    student, teacher, _ = logits(1)
    targets = torch.tensor([0])
    before = [loss(student, teacher, targets, temperature=1.0).item() for loss in LOSSES]
    mixed = student[:, [0, 2, 1, 4, 3]]
    assert target_loss(mixed, teacher, targets, temperature=1.0).item() == pytest.approx(before[0], rel=1e-10)
    assert nontarget_loss(mixed, teacher, targets, temperature=1.0).item() != pytest.approx(before[1], rel=1e-3)
    student[0, 0] += 3.0
    assert nontarget_loss(student, teacher, targets, temperature=1.0).item() == pytest.approx(before[1], rel=1e-10)
    assert target_loss(student, teacher, targets, temperature=1.0).item() != pytest.approx(before[0], rel=1e-3)


def test_the_other_classes_say_nothing_where_there_is_one():
    student, teacher, _ = logits(3, 2)
    assert nontarget_loss(student, teacher, torch.tensor([0, 1, 1]), temperature=4.0).item() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_is_zero_with_no_gradient_for_equal_inputs(loss):
    student, _, targets = logits()
    leaf = student.clone().requires_grad_()
    value = loss(leaf, student, targets, temperature=4.0)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert leaf.grad.abs().max() < 1e-12


def test_stays_finite_for_huge_logits():
    student = torch.tensor([[1e3, -1e3, 0.0]], requires_grad=True)
    teacher, targets = torch.tensor([[-1e3, 1e3, 0.0]]), torch.tensor([0])
    parts = [loss(student, teacher, targets, temperature=1.0) for loss in LOSSES]
    sum(parts).backward()
    assert [part.item() for part in parts] == pytest.approx([1000, 1000])
    assert student.grad.isfinite().all()


def test_has_the_authors_terms_and_weights():
    stage = planned()
    assert stage.name == "dkd"
    assert list(stage.terms) == ["hard", "target", "nontarget"]
    assert stage.terms["target"].reads == (Tap("student"), Tap("teacher"), TARGETS)
    assert stage.terms["hard"].weight == 1
    assert (stage.terms["target"].weight(0.999), stage.terms["nontarget"].weight(0.999)) == (1, 8)


def test_both_weights_rise_for_twenty_of_240_epochs():
    weight = planned().terms["nontarget"].weight
    at = [weight((epoch + part) / 240) for epoch in range(22) for part in (0.0, 0.5, 0.99)]
    assert at == pytest.approx([8 * min((epoch + 1) / 20, 1) for epoch in range(22) for _ in range(3)], rel=1e-12)


def test_a_short_training_or_none_asked_for_has_no_warm_up():
    assert planned(epochs=10).terms["target"].weight == 1
    assert planned(warmup=0.0).terms["target"].weight == 1


def test_a_schedule_is_multiplied_by_the_warm_up():
    weight = planned(epochs=10, warmup=0.2, target=linear(start=2.0, end=0.0)).terms["target"].weight
    assert [weight(0.0), weight(0.1), weight(0.5)] == pytest.approx([2.0 * 0.5, 1.8, 1.0])


def test_a_zero_weight_leaves_its_term_out():
    assert list(planned(target=0).terms) == ["hard", "nontarget"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
        ({"warmup": 20.0}, "warmup is 20.0: it is a fraction of the training"),
        ({"warmup": -0.1}, "warmup is -0.1: it is a fraction of the training"),
        ({"hard": 0, "target": 0, "nontarget": 0}, "are all 0"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)


def test_an_ensemble_of_distributions_is_refused():
    members = [build("resnet8", classes=4, shape=(3, 16, 16)) for _ in range(2)]
    with pytest.raises(LimbeckError, match="an ensemble of 2"):
        planned(teacher=Ensemble(members, mean="arithmetic"))
