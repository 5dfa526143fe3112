import math
from functools import partial

import pytest
import torch

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.cc import PRESETS, Embedded, cc, correlation_loss, neighbour_loss
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

DATA = arrays(torch.rand(40, 3, 16, 16), torch.arange(40) % 4)


def features(n=5, widths=(4, 6)):
    return [torch.randn(n, width, dtype=torch.float64) for width in widths]


def networks():
    small, large = (build(name, classes=4, shape=(3, 16, 16)) for name in ("resnet8", "wrn_16_2"))
    return {"student": small, "teacher": large}


def training(batch_size=8):
    return Training(epochs=2, batch_size=batch_size, optimizer=sgd(lr=0.01), schedule=constant())


def planned(batch_size=8, **options):
    (stage,) = plan(partial(cc, **options), networks(), DATA, training(batch_size))
    return stage


def loop(student, teacher, gamma, order):
    """One number at a time."""

    def kernel(one, other):
        product = sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)
        series = [(2 * gamma * product) ** power / math.factorial(power) for power in range(order + 1)]
        return math.exp(-2 * gamma) * sum(series)

    mine, wanted = student.flatten(1).tolist(), teacher.flatten(1).tolist()
    count = range(len(mine))
    total = sum((kernel(mine[i], mine[j]) - kernel(wanted[i], wanted[j])) ** 2 for i in count for j in count)
    return total / len(mine) ** 2


def gaussian(vectors):
    units = vectors / vectors.norm(dim=1, keepdim=True)
    return torch.exp(-0.4 * (units[:, None] - units[None]).square().sum(2))


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (0.4, 1), (1.5, 5)])
def test_is_the_formula_in_loops(gamma, order):
    student, teacher = features()
    value = correlation_loss(student, teacher, gamma=gamma, order=order).item()
    assert value == pytest.approx(loop(student, teacher, gamma, order), rel=1e-12)


def test_the_series_tends_to_the_gaussian_kernel():
    student, teacher = features()
    wanted = (gaussian(student) - gaussian(teacher)).square().mean().item()
    errors = [abs(correlation_loss(student, teacher, order=order).item() / wanted - 1) for order in (1, 4, 12)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-10


def test_reads_maps_and_tokens_as_vectors():
    student, teacher = torch.randn(4, 3, 2, 2, dtype=torch.float64), torch.randn(4, 5, 3, dtype=torch.float64)
    assert correlation_loss(student, teacher).item() == pytest.approx(loop(student, teacher, 0.4, 2), rel=1e-12)


def test_ignores_each_features_scale_rotation_and_the_samples_order():
    student, teacher = features()
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    scales, order = torch.rand(5, 1, dtype=torch.float64) + 0.5, torch.randperm(5)
    moved = correlation_loss((scales * student @ rotation)[order], teacher[order])
    assert moved.item() == pytest.approx(correlation_loss(student, teacher).item(), rel=1e-10)


def test_the_gradient_is_that_of_the_value():
    student, teacher = features()
    assert torch.autograd.gradcheck(lambda s: correlation_loss(s, teacher), student.requires_grad_())


@pytest.mark.parametrize("count", [1, 4])
def test_is_zero_without_a_gradient_for_equal_features(count):
    student = torch.randn(count, 6).requires_grad_()
    value = correlation_loss(student, student.detach().clone())
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().max() == 0


def test_one_sample_has_no_relations():
    student, teacher = features(1)
    value = correlation_loss(student.requires_grad_(), teacher)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-14)
    assert student.grad.abs().max() < 1e-14


@pytest.mark.parametrize("kind", ["dead", "huge"])
def test_stays_finite_for(kind):
    student, teacher = (one.float() for one in features())
    if kind == "dead":
        student[1:3] = 0
    else:
        student, teacher = 1e3 * student, 1e3 * teacher
    value = correlation_loss(student.requires_grad_(), teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad.abs().max() < 10


def test_no_gradient_reaches_the_teacher():
    student, teacher = (one.requires_grad_() for one in features())
    correlation_loss(student, teacher).backward()
    assert teacher.grad is None


# --- RepDistiller's formula


def test_the_neighbours_are_the_formula_in_loops():
    student, teacher = features(widths=(3, 3))
    apart = [
        [abs(a - b) for a, b in zip(*rows, strict=True)]
        for rows in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    total = sum(sum(a * b for a, b in zip(apart[n], apart[n + 1], strict=True)) for n in range(4))
    assert neighbour_loss(student, teacher).item() == pytest.approx(total / 4, rel=1e-12)


def test_the_gradient_of_the_neighbours_is_that_of_the_value_in_both():
    student, teacher = (one.requires_grad_() for one in features(widths=(3, 3)))
    assert torch.autograd.gradcheck(neighbour_loss, (student, teacher))


@pytest.mark.parametrize("count", [1, 4])
def test_equal_neighbours_and_one_sample_give_zero(count):
    student = torch.randn(count, 3).requires_grad_()
    value = neighbour_loss(student, student.detach() + (count == 1))
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().max() == 0


def test_embeds_both_and_keeps_the_gradient_from_the_teacher():
    student, teacher = (one.requires_grad_() for one in features())
    module = Embedded(4, 6, 3, neighbour_loss).double()
    value = module(student, teacher)
    value.backward()
    assert value.item() == neighbour_loss(module.student(student), module.teacher(teacher)).item()
    assert teacher.grad is None
    assert all(one.grad is not None for one in (student, *module.parameters()))


def test_the_embeddings_learn_with_the_student():
    both, options = networks(), PRESETS["repdistiller"]
    stages = plan(partial(cc, **options), both, DATA, training())
    before = {name: value.clone() for name, value in stages[0].terms["correlation"].loss.state_dict().items()}
    engine = make_engine(device="cpu", precision="32")
    losses = [
        epoch.loss for epoch in run(stages, both, training_batches(DATA, training(), seed=0, engine=engine), engine)
    ]
    after = stages[0].terms["correlation"].loss.state_dict()
    assert losses[-1] < losses[0]
    assert {name for name in before if not torch.equal(before[name], after[name])} >= {
        "student.weight",
        "teacher.weight",
    }


# --- the method


def test_reads_the_features():
    stage = planned()
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 1, "correlation": 100}
    assert stage.terms["correlation"].reads == (Tap("student", "head", "input"), Tap("teacher", "head", "input"))
    assert (stage.name, stage.epochs, stage.learns) == ("cc", 2, ("student",))


def test_gamma_and_order_reach_the_loss():
    student, teacher = features()
    found = planned(gamma=0.7, order=3).terms["correlation"].loss(student, teacher).item()
    assert found == pytest.approx(loop(student, teacher, 0.7, 3), rel=1e-12)


def test_the_benchmarks_form_embeds_features_of_any_shape():
    stage = planned(**(PRESETS["repdistiller"] | {"student_layer": "stage3", "embedding": 5}))
    module = stage.terms["correlation"].loss
    assert stage.terms["correlation"].weight == 0.02
    assert (module.student.in_features, module.student.out_features) == (64 * 4 * 4, 5)
    assert (module.teacher.in_features, module.teacher.out_features) == (128, 5)


def test_the_papers_total_has_soft_targets():
    stage = planned(hard=0.0, soft=1.0)
    assert list(stage.terms) == ["soft", "correlation"]
    assert stage.terms["soft"].loss.keywords == {"temperature": 4.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "cc compares the samples of a batch with each other: batch_size is 1, it must be 2 or"),
        ({"gamma": 0.0}, "gamma is 0.0: it must be above 0"),
        ({"gamma": float("nan")}, "gamma is nan: it must be above 0"),
        ({"order": 0}, "order is 0: it must be at least 1"),
        ({"embedding": 0}, "embedding is 0: it must be at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
        ({"hard": 0, "correlation": 0}, "hard and soft and correlation are all 0"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)
