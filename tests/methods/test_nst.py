import math
from functools import partial

import pytest
import torch

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training
from limbeck.methods.nst import PRESETS, nst, selectivity_loss
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant

KERNELS = ["polynomial", "linear", "gaussian"]
SECTIONS = [f"stage{number}" for number in (1, 2, 3)]


def maps(n=2, channels=(4, 3), size=(2, 3)):
    return [torch.randn(n, count, *size, dtype=torch.float64) for count in channels]


def planned(**options):
    data = arrays(torch.rand(40, 3, 16, 16), torch.arange(40) % 4)
    small, large = (build(name, classes=4, shape=(3, 16, 16)) for name in ("resnet8", "resnet14"))
    training = Training(epochs=3, batch_size=8, optimizer=sgd(lr=0.1), schedule=constant())
    (stage,) = plan(partial(nst, **options), {"student": small, "teacher": large}, data, training)
    return stage


def loop(student, teacher, kernel):
    """One number at a time."""

    def patterns(sample):
        vectors = [channel.reshape(-1).tolist() for channel in sample]
        return [[value / math.sqrt(sum(one**2 for one in vector)) for value in vector] for vector in vectors]

    def product(one, other):
        return sum(a * b for a, b in zip(one, other, strict=True))

    def distance(one, other):
        return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))

    def mean(function, left, right):
        return sum(function(one, other) for one in left for other in right) / len(left) / len(right)

    total = 0.0
    for sample in range(len(student)):
        mine, wanted = patterns(student[sample]), patterns(teacher[sample])
        variance = mean(distance, mine, wanted)
        likeness = {
            "polynomial": lambda one, other: product(one, other) ** 2,
            "linear": product,
            "gaussian": lambda one, other, variance=variance: math.exp(-distance(one, other) / 2 / variance),
        }[kernel]
        total += mean(likeness, wanted, wanted) + mean(likeness, mine, mine) - 2 * mean(likeness, mine, wanted)
    return total / len(student)


@pytest.mark.parametrize("kernel", KERNELS)
def test_is_the_formula_in_loops(kernel):
    student, teacher = maps()
    wanted = loop(student, teacher, kernel)
    assert selectivity_loss(student, teacher, kernel=kernel).item() == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_ignores_the_channels_order_repetition_and_scale(kernel):
    student, teacher = maps()
    value = selectivity_loss(student, teacher, kernel=kernel).item()
    moved = torch.cat([3 * student[:, torch.randperm(4)], student], dim=1)
    assert selectivity_loss(moved, teacher, kernel=kernel).item() == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_ignores_where_the_places_are(kernel):
    student, teacher = maps()
    order = torch.randperm(6)
    moved = [one.flatten(2)[:, :, order].reshape(one.shape) for one in (student, teacher)]
    wanted = selectivity_loss(student, teacher, kernel=kernel).item()
    assert selectivity_loss(*moved, kernel=kernel).item() == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("kernel", ["polynomial", "linear"])
def test_the_gradient_is_that_of_the_value(kernel):
    student, teacher = maps()
    assert torch.autograd.gradcheck(lambda s: selectivity_loss(s, teacher, kernel=kernel), student.requires_grad_())


def test_the_gaussians_width_is_constant_in_the_gradient():
    """The numerical gradient of the loop with the width of the unmoved student."""
    student, teacher = (one / one.flatten(2).norm(dim=2)[:, :, None, None] for one in maps(1))
    variance = (student.flatten(2)[:, :, None] - teacher.flatten(2)[:, None]).square().sum(3).mean()

    def fixed(one):
        mine, wanted = (each.flatten(2)[0] / each.flatten(2)[0].norm(dim=1, keepdim=True) for each in (one, teacher))
        kernels = [
            torch.exp(-(left[:, None] - right[None]).square().sum(2) / 2 / variance).mean()
            for left, right in ((mine, mine), (mine, wanted))
        ]
        return kernels[0] - 2 * kernels[1]

    leaf, other = student.clone().requires_grad_(), student.clone().requires_grad_()
    selectivity_loss(leaf, teacher, kernel="gaussian").backward()
    fixed(other).backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_is_zero_for_equal_maps_of_one_sample(kernel):
    student = torch.randn(1, 4, 3, 5, dtype=torch.float64).requires_grad_()
    value = selectivity_loss(student, student.detach().clone(), kernel=kernel)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-14)
    assert student.grad.abs().max() < 1e-14


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dead", ["student", "both", "one channel"])
def test_dead_channels_have_a_finite_gradient(kernel, dead):
    student, teacher = (one.float() for one in maps())
    if dead == "one channel":
        student[:, 1] = 0
    else:
        student = torch.zeros_like(student)
    teacher = torch.zeros_like(teacher) if dead == "both" else teacher
    student.requires_grad_()
    value = selectivity_loss(student, teacher, kernel=kernel)
    value.backward()
    assert value.isfinite()
    assert student.grad.abs().max() < 10


@pytest.mark.parametrize("kernel", KERNELS)
def test_stays_finite_for_activations_of_a_thousand(kernel):
    student, teacher = (1e3 * one.float() for one in maps())
    value = selectivity_loss(student.requires_grad_(), teacher, kernel=kernel)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_no_gradient_reaches_the_teacher():
    student, teacher = (one.requires_grad_() for one in maps())
    selectivity_loss(student, teacher, kernel="gaussian").backward()
    assert teacher.grad is None


def test_the_larger_map_is_pooled():
    student, teacher = maps()
    larger = teacher.repeat_interleave(2, dim=2).repeat_interleave(3, dim=3)
    wanted = selectivity_loss(student, teacher)
    assert selectivity_loss(student, larger).item() == pytest.approx(wanted.item(), rel=1e-10)


# --- the method


def test_reads_the_last_sections_map_with_the_authors_weight():
    stage = planned()
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 1, "selectivity": 50}
    assert stage.terms["selectivity"].reads == (Tap("student", "stage3"), Tap("teacher", "stage3"))
    assert (stage.name, stage.epochs, stage.learns) == ("nst", 3, ("student",))


def test_the_benchmark_sums_over_all_sections():
    stage = planned(**PRESETS["repdistiller"])
    wanted = tuple(Tap(who, layer) for who in ("student", "teacher") for layer in SECTIONS)
    assert stage.terms["selectivity"].reads == wanted
    assert stage.terms["selectivity"].weight == 50


def test_the_authors_total_with_soft_targets():
    stage = planned(**PRESETS["authors_kd"])
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 1, "soft": 1, "selectivity": 50}
    assert stage.terms["soft"].loss.keywords == {"temperature": 4.0}


def test_reads_the_named_layers():
    stage = planned(student_layers=("stage1", "stage2"), teacher_layers=("stem", "stage2"))
    wanted = [("student", "stage1"), ("student", "stage2"), ("teacher", "stem"), ("teacher", "stage2")]
    assert stage.terms["selectivity"].reads == tuple(Tap(*one) for one in wanted)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernel_reaches_the_loss(kernel):
    student, teacher = maps()
    found = planned(kernel=kernel).terms["selectivity"].loss(student, teacher)
    assert found.item() == pytest.approx(loop(student, teacher, kernel), rel=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
        ({"hard": 0, "selectivity": 0}, "hard and soft and selectivity are all 0"),
        ({"student_layers": ("pool",), "teacher_layers": ("stem",)}, r"nst reads maps \(C, H, W\), but student.pool"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)
