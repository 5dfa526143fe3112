import math
from functools import partial

import pytest
import torch
from torch import nn

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.vkd import projection, vkd, vkd_loss
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

ENGINE = make_engine(device="cpu", precision="32")
DATA = arrays(torch.randn(24, 6, generator=torch.Generator().manual_seed(5)), torch.arange(24) % 4)
TRAINING = Training(2, 8, sgd(lr=0.1), constant())


def networks(student=5, teacher=8):
    widths = {"student": student, "teacher": teacher}
    return {role: nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4)) for role, width in widths.items()}


def planned(nets=None, **options):
    (stage,) = plan(partial(vkd, **options), nets or networks(), DATA, TRAINING)
    return stage


def features(n=4, d=5):
    return [2 * torch.randn(n, d, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("n", [1, 4])
def test_is_the_formula_in_loops(n):
    student, teacher = features(n)
    total = 0.0
    for mine, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        mean = sum(theirs) / 5
        deviation = math.sqrt(sum((value - mean) ** 2 for value in theirs) / 5 + 1e-5)
        for s, t in zip(mine, theirs, strict=True):
            d = abs(s - (t - mean) / deviation)
            total += d**2 / 2 if d < 1 else d - 0.5
    assert vkd_loss(student, teacher).item() == pytest.approx(total / (5 * n), rel=1e-10)


def test_a_value_by_hand():
    """The teacher's feature becomes (-1, 1) up to 1e-5; the distances are 1/2 and 3."""
    value = vkd_loss(torch.tensor([[-0.5, 4.0]]), torch.tensor([[1.0, 5.0]]))
    assert value.item() == pytest.approx((0.125 + 2.5) / 2, rel=1e-4)


def test_ignores_the_scale_and_the_shift_of_the_teachers_feature():
    student, teacher = features()
    assert vkd_loss(student, 3 * teacher + 2).item() == pytest.approx(vkd_loss(student, teacher).item(), rel=1e-4)


def test_the_gradient_is_that_of_the_value_and_none_is_the_teachers():
    student, teacher = (one.requires_grad_() for one in features())
    assert torch.autograd.gradcheck(lambda s: vkd_loss(s, teacher), student)
    vkd_loss(student, teacher).backward()
    assert teacher.grad is None


def test_a_constant_feature_of_the_teacher_is_0():
    student = torch.ones(1, 4, requires_grad=True)
    value = vkd_loss(student, torch.full((1, 4), 7.0))
    value.backward()
    assert value.item() == 0.5
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(("source", "target"), [(5, 8), (6, 6), (8, 5)])
def test_the_projection_is_orthogonal_before_and_after_training(source, target):
    nets = networks(source, target)
    stage = planned(nets)
    project = stage.terms["feature"].loss.connector[-1]
    before = project.weight.detach().clone()
    list(run([stage], nets, training_batches(DATA, TRAINING, seed=0, engine=ENGINE), ENGINE))
    assert not torch.allclose(project.weight, before, atol=1e-4)
    for weight in (before, project.weight):
        product = weight.T @ weight if target >= source else weight @ weight.T
        torch.testing.assert_close(product, torch.eye(min(source, target)), atol=1e-5, rtol=0)


def test_a_wider_space_keeps_the_distances():
    one, other = torch.randn(2, 3, 5)
    project = projection(5, 9)
    moved = (project(one) - project(other)).norm(dim=1)
    torch.testing.assert_close(moved, (one - other).norm(dim=1))


def test_has_the_authors_terms_and_weights():
    terms = planned().terms
    assert {name: term.weight for name, term in terms.items()} == {"hard": 1.0, "soft": 1.0, "feature": 1.0}
    assert terms["feature"].reads == (Tap("student", "2", "input"), Tap("teacher", "2", "input"))


@pytest.mark.parametrize("shape", [(4, 2, 3), (5, 4)])
def test_maps_and_tokens_are_averaged_over_their_positions(shape):
    """Of 5 tokens the first is a class token, which does not count."""
    given = torch.randn(2, *shape)
    mean = given.mean(dim=(2, 3)) if len(shape) == 3 else given[:, 1:].mean(dim=1)
    student = torch.randn(2, 4)
    torch.testing.assert_close(vkd_loss(student, given), vkd_loss(student, mean))
    nets = networks()
    size = given[0].numel()
    nets["student"] = nn.Sequential(nn.Linear(6, size), nn.Unflatten(1, shape), nn.Flatten(), nn.Linear(size, 4))
    connector = planned(nets, student_layer="1").terms["feature"].loss.connector
    torch.testing.assert_close(connector(given), connector[-1](mean))


def test_another_shape_is_refused():
    nets = networks()
    nets["teacher"] = nn.Sequential(nn.Linear(6, 14), nn.Unflatten(1, (7, 2)), nn.Flatten(), nn.Linear(14, 4))
    with pytest.raises(LimbeckError, match=r"vkd reads vectors .*, but teacher\.1 gives \(7, 2\): name another layer"):
        planned(nets, teacher_layer="1")
