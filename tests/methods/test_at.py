import math
from functools import partial

import pytest
import torch
from torch import nn

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training
from limbeck.methods.at import PRESETS, at, attention_loss
from limbeck.methods.kd import soft_loss
from limbeck.methods.shared import over_layers, pooled_alike, unit
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant

FORMS = ["paper", "code"]
SECTIONS = [f"stage{number}" for number in (1, 2, 3)]


def maps(n=3, channels=(4, 6), size=(3, 5)):
    return [torch.randn(n, count, *size, dtype=torch.float64) for count in channels]


def planned(student=None, **options):
    data = arrays(torch.rand(40, 3, 16, 16), torch.arange(40) % 4)
    small, large = (build(name, classes=4, shape=(3, 16, 16)) for name in ("resnet8", "resnet14"))
    training = Training(epochs=3, batch_size=8, optimizer=sgd(lr=0.1), schedule=constant())
    (stage,) = plan(partial(at, **options), {"student": student or small, "teacher": large}, data, training)
    return stage


def loop(student, teacher, form, power):
    """One number at a time; the mean over the batch and over the places."""

    def attention(one):
        places = [(row, column) for row in range(one.shape[1]) for column in range(one.shape[2])]
        values = [sum(abs(channel[place].item()) ** power for channel in one) for place in places]
        length = math.sqrt(sum(value**2 for value in values))
        return [value / length for value in values]

    total = 0.0
    for mine, wanted in zip(student, teacher, strict=True):
        squares = sum((a - b) ** 2 for a, b in zip(attention(mine), attention(wanted), strict=True))
        total += math.sqrt(squares) / 2 if form == "paper" else squares
    return total / len(student) / (student.shape[2] * student.shape[3])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_is_the_formula_in_loops(form, power):
    student, teacher = maps()
    assert attention_loss(student, teacher, form=form, power=power).item() == pytest.approx(
        loop(student, teacher, form, power), rel=1e-12
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_mean_over_places_is_a_factor(form):
    student, teacher = maps()
    batch, places = (attention_loss(student, teacher, form=form, average=a) for a in ("batch", "places"))
    assert batch.item() == pytest.approx(15 * places.item(), rel=1e-12)


def test_the_default_is_the_papers_equation_with_its_beta():
    """Eq. 2 and section 4: beta/2 times the norms summed over the batch, beta = 10^3 / (places * batch size)."""
    student, teacher = maps()
    beta = 1000 / (15 * 3)
    norms = [loop(student[n : n + 1], teacher[n : n + 1], "paper", 2.0) * 2 * 15 for n in range(3)]
    stage = planned()
    assert stage.terms["attention"].weight == 1000
    assert 1000 * stage.terms["attention"].loss(student, teacher).item() == pytest.approx(beta / 2 * sum(norms))


@pytest.mark.parametrize("form", FORMS)
def test_ignores_the_channels_order_number_and_sign_and_the_maps_scale(form):
    student, teacher = maps()
    value = attention_loss(student, teacher, form=form).item()
    moved = torch.cat([-student[:, torch.randperm(4)], student], dim=1) * 7
    assert attention_loss(moved, teacher, form=form).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_that_of_the_value(form):
    student, teacher = maps()
    assert torch.autograd.gradcheck(lambda s: attention_loss(s, teacher, form=form), student.requires_grad_())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_is_zero_with_a_finite_gradient_for_equal_maps_and_for_dead_ones(form, power):
    for student in (torch.randn(1, 4, 3, 5), torch.zeros(2, 4, 3, 5)):
        leaf = student.clone().requires_grad_()
        value = attention_loss(leaf, student, form=form, power=power)
        value.backward()
        assert value.item() == 0
        assert leaf.grad.abs().max() < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_a_dead_student_has_a_finite_gradient(form):
    student = torch.zeros(2, 4, 3, 5, requires_grad=True)
    value = attention_loss(student, torch.randn(2, 4, 3, 5), form=form, power=1.0)
    value.backward()
    assert value.isfinite()
    assert student.grad.abs().max() < 10


def test_stays_finite_for_activations_of_a_thousand():
    student = (1e3 * torch.randn(1, 64, 8, 8)).requires_grad_()
    value = attention_loss(student, 1e3 * torch.randn(1, 64, 8, 8))
    value.backward()
    assert 0 < value.item() < 1
    assert student.grad.isfinite().all()


def test_no_gradient_reaches_the_teacher():
    student, teacher = (one.requires_grad_() for one in maps())
    attention_loss(student, teacher).backward()
    assert teacher.grad is None


def mean_of_cells(one):
    """A 4 x 6 map at 2 x 3."""
    rows = [[one[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3)) for j in range(3)] for i in range(2)]
    return torch.stack([torch.stack(row, dim=2) for row in rows], dim=2)


@pytest.mark.parametrize("larger", [0, 1])
def test_the_larger_map_is_pooled_whichever_it_is(larger):
    both = [maps(size=(2, 3))[0], maps(size=(2, 3))[1]]
    both[larger] = maps(size=(4, 6))[larger]
    pooled = list(both)
    pooled[larger] = mean_of_cells(both[larger])
    assert attention_loss(*both).item() == pytest.approx(attention_loss(*pooled).item(), rel=1e-12)


def test_height_and_width_are_pooled_each_to_the_smaller():
    student, teacher = pooled_alike(torch.randn(2, 3, 4, 2), torch.randn(2, 5, 2, 6))
    assert student.shape[2:] == teacher.shape[2:] == (2, 2)


def test_maps_of_one_size_are_not_touched():
    student, teacher = maps()
    assert all(one is other for one, other in zip(pooled_alike(student, teacher), (student, teacher), strict=True))


def test_what_is_no_map_is_refused():
    with pytest.raises(LimbeckError, match=r"expected a map \(N, C, H, W\), got a tensor of shape \(2, 3\)"):
        pooled_alike(torch.randn(2, 3, 4, 4), torch.randn(2, 3))


def test_a_vector_of_no_length_stays_and_the_others_have_length_one():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    found = unit(vectors)
    found.sum().backward()
    assert found.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]
    assert vectors.grad[1].tolist() == [1, 1]


def test_layers_are_summed_in_pairs():
    def loss(student, teacher):
        return 10 * student + teacher

    values = [torch.tensor(float(value)) for value in (1, 2, 3, 4)]
    assert over_layers(loss, *values).item() == (10 + 3) + (20 + 4)


# --- the method


def test_reads_every_sections_map_the_students_first():
    stage = planned(hard=0.5)
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 0.5, "attention": 1000}
    assert stage.terms["attention"].reads == tuple(
        Tap(who, layer) for who in ("student", "teacher") for layer in SECTIONS
    )
    assert (stage.name, stage.epochs, stage.learns) == ("at", 3, ("student",))


def test_reads_the_named_layers():
    stage = planned(student_layers=("stage1.0.conv1", "stage3"), teacher_layers=("stem", "stage2"))
    wanted = [("student", "stage1.0.conv1"), ("student", "stage3"), ("teacher", "stem"), ("teacher", "stage2")]
    assert stage.terms["attention"].reads == tuple(Tap(*one) for one in wanted)


@pytest.mark.parametrize("form", FORMS)
def test_the_options_reach_the_loss(form):
    student, teacher = maps()
    stage = planned(form=form, average="batch", power=3.0)
    wanted = attention_loss(student, teacher, form=form, average="batch", power=3.0)
    assert stage.terms["attention"].loss(student, teacher).item() == pytest.approx(wanted.item(), rel=1e-12)


def test_the_authors_total_with_soft_targets():
    """cifar.py with alpha 0.9: alpha T² KL + (1 - alpha) cross-entropy + 1000 times the squared distances."""
    stage = planned(**PRESETS["authors_kd"])
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 0.1, "soft": 0.9, "attention": 1000}
    student, teacher = torch.randn(2, 4), torch.randn(2, 4)
    assert stage.terms["soft"].loss(student, teacher).item() == soft_loss(student, teacher, temperature=4.0).item()
    assert stage.terms["soft"].reads == (Tap("student"), Tap("teacher"))


def test_the_authors_total_alone_has_no_soft_targets():
    student, teacher = maps()
    stage = planned(**PRESETS["authors"])
    assert list(stage.terms) == ["hard", "attention"]
    wanted = loop(student, teacher, "code", 2.0)
    assert stage.terms["attention"].loss(student, teacher).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": 0.5}, "power is 0.5: it must be at least 1"),
        ({"power": float("nan")}, "power is nan: it must be at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
        ({"hard": 0, "attention": 0}, "hard and soft and attention are all 0"),
        ({"student_layers": ("stem",), "teacher_layers": ("stem", "stage1")}, "student_layers has 1 layers and"),
        ({"student_layers": ("head",), "teacher_layers": ("stem",)}, r"at reads maps \(C, H, W\), but student.head"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)


def test_a_network_without_maps_is_refused():
    with pytest.raises(LimbeckError, match=r"at compares maps .* the student returns only vectors or tokens"):
        planned(nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 4)))
