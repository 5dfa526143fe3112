import math
from functools import partial

import pytest
import torch

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.wkd_f import gaussian_loss, wkd_f
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

ENGINE = make_engine(device="cpu", precision="32")
DATA = arrays(torch.rand(12, 3, 8, 8), torch.arange(12) % 4)
TRAINING = Training(2, 4, sgd(lr=0.1), constant())


def networks():
    return {role: build("resnet8", classes=4, shape=(3, 8, 8)) for role in ("student", "teacher")}


def planned(nets=None, **options):
    (stage,) = plan(partial(wkd_f, **options), nets or networks(), DATA, TRAINING)
    return stage


def maps(size=4, other=5, n=2):
    return [torch.randn(n, 3, side, side, dtype=torch.float64) for side in (size, other)]


def statistics(cell, floor):
    values = [value for row in cell for value in row]
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance + floor)


def cell_of(channel, row, column, grid):
    """The part of a map that adaptive pooling averages."""

    def bounds(size, place):
        return math.floor(place * size / grid), math.ceil((place + 1) * size / grid)

    top, bottom = bounds(len(channel), row)
    left, right = bounds(len(channel[0]), column)
    return [line[left:right] for line in channel[top:bottom]]


@pytest.mark.parametrize("grid", [1, 2])
@pytest.mark.parametrize("n", [1, 2])
def test_is_the_formula_in_loops(n, grid):
    student, teacher = maps(n=n)
    total = 0.0
    for mine, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        for one, other in zip(mine, theirs, strict=True):
            for row in range(grid):
                for column in range(grid):
                    mean, deviation = statistics(cell_of(one, row, column, grid), 1e-3)
                    wanted, spread = statistics(cell_of(other, row, column, grid), 1e-3)
                    total += 3 * (mean - wanted) ** 2 + (deviation - spread) ** 2
    value = gaussian_loss(student, teacher, mean=3.0, grid=grid, floor=1e-3)
    assert value.item() == pytest.approx(total / (n * grid**2), rel=1e-10)


def test_a_value_by_hand():
    """Means 2 and 1, unbiased variances 2 and 8: 4 * 1² + (sqrt(2) - sqrt(8))² = 4 + 2."""
    student, teacher = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[-1.0, 3.0]]]])
    assert gaussian_loss(student, teacher, floor=1e-12).item() == pytest.approx(6.0)


def test_the_means_of_a_cell_are_those_of_adaptive_pooling():
    student, teacher = maps(5, 7)
    pooled = [torch.nn.functional.adaptive_avg_pool2d(one, 3) for one in (student, teacher)]
    both, deviations = (gaussian_loss(student, teacher, mean=mean, grid=3).item() for mean in (1.0, 0.0))
    assert both - deviations == pytest.approx((pooled[0] - pooled[1]).square().sum(dim=1).mean().item(), rel=1e-10)


def test_places_do_not_matter_within_a_cell():
    student, teacher = maps()
    value = gaussian_loss(student.flip(2, 3), teacher.transpose(2, 3)).item()
    assert value == pytest.approx(gaussian_loss(student, teacher).item(), rel=1e-10)


def test_the_gradient_is_that_of_the_value_and_none_is_the_teachers():
    student, teacher = (one.requires_grad_() for one in maps())
    assert torch.autograd.gradcheck(lambda s: gaussian_loss(s, teacher, grid=2), student)
    gaussian_loss(student, teacher).backward()
    assert teacher.grad is None


def test_is_zero_for_equal_maps_and_has_a_gradient_where_a_channel_is_constant():
    student, teacher = maps(4, 4)
    assert gaussian_loss(student, student).item() == 0
    still = torch.zeros(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    gaussian_loss(still, teacher[:1]).backward()
    assert still.grad.isfinite().all()


def test_the_connector_learns():
    nets = networks()
    stage = planned(nets)
    before = stage.terms["gaussian"].loss.connector[0].weight.clone()
    list(run([stage], nets, training_batches(DATA, TRAINING, seed=0, engine=ENGINE), ENGINE))
    assert not torch.equal(before, stage.terms["gaussian"].loss.connector[0].weight)


def test_has_the_authors_terms_and_weights():
    terms = planned().terms
    assert list(terms) == ["hard", "gaussian"]
    assert terms["gaussian"].reads == (Tap("student", "stage3"), Tap("teacher", "stage3"))
    weights = [terms["gaussian"].weight(progress) / 0.006 for progress in (0.0, 0.625, 0.8125, 0.999999)]
    assert weights == pytest.approx([1.0, 1.0, 0.5, 0.0], abs=1e-6)
    assert planned(decay=1.0).terms["gaussian"].weight == 0.006


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 2}, r"with grid: 2 a cell of student\.stage3, which gives \(64, 2, 2\), has 1: use a smaller grid"),
        ({"student_layer": "head:input"}, r"wkd_f compares maps \(C, H, W\), but student.head .* gives \(64,\)"),
        ({"decay": 1.5}, r"decay is 1\.5: it is a fraction of the stage"),
        ({"grid": 0}, "grid is 0: it must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)
