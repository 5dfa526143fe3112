import math
from functools import partial

import pytest
import torch

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training
from limbeck.methods.rkd import PRESETS, angle_loss, distance_loss, rkd
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant

LOSSES = [distance_loss, angle_loss]


def features(n=5):
    return torch.randn(n, 2, dtype=torch.float64), torch.randn(n, 6, dtype=torch.float64)


def planned(batch_size=8, **options):
    data = arrays(torch.rand(40, 3, 16, 16), torch.arange(40) % 4)
    small, large = (build(name, classes=4, shape=(3, 16, 16)) for name in ("resnet8", "resnet14"))
    training = Training(epochs=3, batch_size=batch_size, optimizer=sgd(lr=0.1), schedule=constant())
    (stage,) = plan(partial(rkd, **options), {"student": small, "teacher": large}, data, training)
    return stage


def huber(difference):
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def distances(points):
    count = range(len(points))
    apart = {(i, j): math.dist(points[i], points[j]) for i in count for j in count if i != j}
    mean = sum(apart.values()) / len(apart)
    return {pair: value / mean for pair, value in apart.items()}


def cosine(points, i, j, k):
    to_first, to_second = ([a - b for a, b in zip(points[end], points[j], strict=True)] for end in (i, k))
    product = sum(a * b for a, b in zip(to_first, to_second, strict=True))
    return product / math.hypot(*to_first) / math.hypot(*to_second)


def loop(loss, student, teacher):
    """The sum over ordered tuples of different samples, one number at a time."""
    mine, wanted = student.flatten(1).tolist(), teacher.flatten(1).tolist()
    if loss is distance_loss:
        mine, wanted = distances(mine), distances(wanted)
        return sum(huber(mine[pair] - wanted[pair]) for pair in mine)
    count = range(len(mine))
    triplets = [(i, j, k) for i in count for j in count for k in count if len({i, j, k}) == 3]
    return sum(huber(cosine(mine, *one) - cosine(wanted, *one)) for one in triplets)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_sum_is_the_papers_formula_in_loops(loss):
    student, teacher = features()
    assert loss(student, teacher, average="sum").item() == pytest.approx(loop(loss, student, teacher), rel=1e-9)


@pytest.mark.parametrize(("loss", "samples"), [(distance_loss, 2), (angle_loss, 3)])
def test_the_mean_counts_every_tuple_the_equal_ones_too(loss, samples):
    student, teacher = features()
    total = loss(student, teacher, average="sum").item()
    assert loss(student, teacher).item() == pytest.approx(total / 5**samples, rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_reads_maps_and_tokens_as_vectors(loss):
    student, teacher = torch.randn(4, 3, 2, 2, dtype=torch.float64), torch.randn(4, 5, 3, dtype=torch.float64)
    assert loss(student, teacher, average="sum").item() == pytest.approx(loop(loss, student, teacher), rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_ignores_place_scale_rotation_and_the_samples_order(loss):
    student, teacher = features()
    rotation = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64)).Q
    order = torch.randperm(5)
    moved = loss((3 * student @ rotation + 10)[order], teacher[order])
    assert moved.item() == pytest.approx(loss(student, teacher).item(), rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_normalising_makes_each_features_own_scale_irrelevant(loss):
    student, teacher = features()
    scales = torch.rand(5, 1, dtype=torch.float64) + 0.5
    one, other = loss(student, teacher, normalise=True), loss(scales * student, teacher, normalise=True)
    assert one.item() == pytest.approx(other.item(), rel=1e-9)
    units = student / student.norm(dim=1, keepdim=True), teacher / teacher.norm(dim=1, keepdim=True)
    assert one.item() == pytest.approx(loss(*units).item(), rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_the_value(loss):
    student, teacher = features(4)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.requires_grad_())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("count", [1, 2, 6])
def test_is_zero_without_a_gradient_for_equal_features(loss, count):
    student = torch.randn(count, 4).requires_grad_()
    value = loss(student, student.detach().clone())
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize(("loss", "count"), [(distance_loss, 1), (distance_loss, 2), (angle_loss, 1), (angle_loss, 2)])
def test_too_few_samples_have_no_relations(loss, count):
    """Two samples have one distance, which is its own mean, and no angle."""
    student = torch.randn(count, 4).requires_grad_()
    value = loss(student, torch.randn(count, 3))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("equal", [2, 5])
def test_samples_that_coincide_have_a_finite_gradient(loss, equal):
    student, teacher = (one.float() for one in features())
    student[:equal] = student[0].clone()
    student.requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad.abs().max() < 100


def test_samples_that_all_coincide_count_as_equally_far_apart():
    """As in the authors' code, where no distance is less than 1e-6."""
    student, teacher = torch.ones(3, 2, dtype=torch.float64), features(3)[1]
    corners = torch.eye(3, dtype=torch.float64)
    assert distance_loss(student, teacher).item() == pytest.approx(distance_loss(corners, teacher).item(), rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_teacher_that_sees_no_difference_gives_a_finite_gradient(loss):
    student = features()[0].float().requires_grad_()
    value = loss(student, torch.ones(5, 3))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_stays_finite_for_activations_of_a_thousand(loss):
    student, teacher = (1e3 * one.float() for one in features())
    value = loss(student.requires_grad_(), teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_no_gradient_reaches_the_teacher(loss):
    student, teacher = (one.requires_grad_() for one in features())
    loss(student, teacher).backward()
    assert teacher.grad is None


# --- the method


def test_has_the_published_weights_and_reads_the_features():
    stage = planned()
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 1, "distance": 25, "angle": 50}
    pair = (Tap("student", "head", "input"), Tap("teacher", "head", "input"))
    assert stage.terms["distance"].reads == stage.terms["angle"].reads == pair
    assert (stage.name, stage.epochs, stage.learns) == ("rkd", 3, ("student",))


@pytest.mark.parametrize(("left_out", "kept"), [("angle", "distance"), ("distance", "angle")])
def test_either_relation_stands_alone(left_out, kept):
    assert list(planned(**{left_out: 0}).terms) == ["hard", kept]


@pytest.mark.parametrize("name", ["distance", "angle"])
def test_the_options_reach_the_losses(name):
    student, teacher = features()
    found = planned(average="sum", normalise=True).terms[name].loss(student, teacher)
    wanted = {"distance": distance_loss, "angle": angle_loss}[name](student, teacher, average="sum", normalise=True)
    assert found.item() == wanted.item()


def test_the_authors_total_with_soft_targets():
    """kd_ratio 16 on the divergence at T = 4 is T²."""
    stage = planned(**PRESETS["authors_kd"])
    weights = {"hard": 1, "soft": 1, "distance": 25, "angle": 50}
    assert {name: term.weight for name, term in stage.terms.items()} == weights
    assert stage.terms["soft"].loss.keywords == {"temperature": 4.0}
    assert stage.terms["angle"].loss.keywords["normalise"] is True


def test_reads_the_named_layers():
    stage = planned(student_layer="stage2", teacher_layer="pool")
    assert stage.terms["angle"].reads == (Tap("student", "stage2"), Tap("teacher", "pool"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "rkd compares the samples of a batch with each other: batch_size is 1, it must be 2 or"),
        ({"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
        ({"hard": 0, "distance": 0, "angle": 0}, "hard and soft and distance and angle are all 0"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)
