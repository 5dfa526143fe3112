import math
from functools import partial

import pytest
import torch
from torch import nn

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training
from limbeck.methods.sp import similarity_loss, sp
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant

SECTIONS = [f"stage{number}" for number in (1, 2, 3)]


def features(n=5):
    return torch.randn(n, 3, 2, 4, dtype=torch.float64), torch.randn(n, 6, dtype=torch.float64)


def perceptron(*widths):
    layers = [nn.Flatten()]
    for before, after in zip((768, *widths), widths, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 4))


def planned(batch_size=8, student=None, teacher=None, **options):
    data = arrays(torch.rand(40, 3, 16, 16), torch.arange(40) % 4)
    small, large = (build(name, classes=4, shape=(3, 16, 16)) for name in ("resnet8", "resnet14"))
    training = Training(epochs=3, batch_size=batch_size, optimizer=sgd(lr=0.1), schedule=constant())
    networks = {"student": student or small, "teacher": teacher or large}
    (stage,) = plan(partial(sp, **options), networks, data, training)
    return stage


def loop(student, teacher):
    """One number at a time."""

    def similarities(feature):
        vectors = [sample.reshape(-1).tolist() for sample in feature]
        rows = [[sum(a * b for a, b in zip(one, other, strict=True)) for other in vectors] for one in vectors]
        return [[value / math.sqrt(sum(one**2 for one in row)) for value in row] for row in rows]

    mine, wanted = similarities(student), similarities(teacher)
    count = range(len(student))
    return sum((mine[i][j] - wanted[i][j]) ** 2 for i in count for j in count) / len(student) ** 2


def test_is_the_formula_in_loops():
    student, teacher = features()
    assert similarity_loss(student, teacher).item() == pytest.approx(loop(student, teacher), rel=1e-12)


def test_reads_tokens_too():
    student, teacher = torch.randn(4, 7, 3, dtype=torch.float64), features(4)[1]
    assert similarity_loss(student, teacher).item() == pytest.approx(loop(student, teacher), rel=1e-12)


def test_ignores_scale_rotation_and_the_samples_order():
    student, teacher = features()
    rotation = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64)).Q
    order = torch.randperm(5)
    moved = similarity_loss(3 * student.flatten(1)[order] @ rotation, teacher[order])
    assert moved.item() == pytest.approx(similarity_loss(student, teacher).item(), rel=1e-10)


def test_the_gradient_is_that_of_the_value():
    student, teacher = features()
    assert torch.autograd.gradcheck(lambda s: similarity_loss(s, teacher), student.requires_grad_())


@pytest.mark.parametrize("count", [1, 4])
def test_is_zero_without_a_gradient_for_equal_features(count):
    student = torch.randn(count, 6).requires_grad_()
    value = similarity_loss(student, student.detach().clone())
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().max() == 0


def test_one_sample_has_no_relations():
    student = torch.randn(1, 6).requires_grad_()
    value = similarity_loss(student, torch.randn(1, 3))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-6


def test_dead_samples_have_a_finite_gradient():
    student = torch.randn(4, 6)
    student[2] = 0
    student.requires_grad_()
    value = similarity_loss(student, torch.randn(4, 3))
    value.backward()
    assert value.isfinite()
    assert student.grad.abs().max() < 1e3


def test_stays_finite_for_activations_of_a_thousand():
    student = (1e3 * torch.randn(8, 4096)).requires_grad_()
    value = similarity_loss(student, 1e3 * torch.randn(8, 100))
    value.backward()
    assert 0 < value.item() < 4
    assert student.grad.isfinite().all()


def test_no_gradient_reaches_the_teacher():
    student, teacher = (one.requires_grad_() for one in features())
    similarity_loss(student, teacher).backward()
    assert teacher.grad is None


# --- the method


def test_reads_the_last_sections_map():
    stage = planned(hard=0.5, similarity=2000.0)
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 0.5, "similarity": 2000}
    assert stage.terms["similarity"].reads == (Tap("student", "stage3"), Tap("teacher", "stage3"))
    assert (stage.name, stage.epochs, stage.learns) == ("sp", 3, ("student",))


def test_the_published_weight_is_the_default():
    assert planned().terms["similarity"].weight == 3000


def test_sums_over_all_sections():
    stage = planned(sections="all")
    wanted = tuple(Tap(who, layer) for who in ("student", "teacher") for layer in SECTIONS)
    assert stage.terms["similarity"].reads == wanted
    (one, other), (three, four) = features(), features()
    both = similarity_loss(one, other) + similarity_loss(three, four)
    assert stage.terms["similarity"].loss(one, three, other, four).item() == pytest.approx(both.item(), rel=1e-12)


def test_reads_the_named_layers():
    stage = planned(student_layers=("stage1", "pool"), teacher_layers=("stage2", "head"))
    wanted = [("student", "stage1"), ("student", "pool"), ("teacher", "stage2"), ("teacher", "head")]
    assert stage.terms["similarity"].reads == tuple(Tap(*one) for one in wanted)


def test_a_layer_named_on_one_side_meets_the_other_sides_deepest():
    stage = planned(student_layers=("pool",))
    assert stage.terms["similarity"].reads == (Tap("student", "pool"), Tap("teacher", "stage3"))


@pytest.mark.parametrize(("sections", "mine", "wanted"), [("last", ["2"], ["stage3"]), ("all", ["2"], ["stage3"])])
def test_a_network_without_maps_gives_its_hidden_layers(sections, mine, wanted):
    stage = planned(student=perceptron(8), sections=sections)
    taps = [Tap("student", name) for name in mine] + [Tap("teacher", name) for name in wanted]
    assert stage.terms["similarity"].reads == tuple(taps)


def test_the_deepest_hidden_layers_meet():
    stage = planned(student=perceptron(8, 6), teacher=perceptron(12, 10, 9), sections="all")
    wanted = [("student", "2"), ("student", "4"), ("teacher", "4"), ("teacher", "6")]
    assert stage.terms["similarity"].reads == tuple(Tap(*one) for one in wanted)


def test_a_linear_network_gives_what_enters_it():
    stage = planned(student=nn.Sequential(nn.Flatten(), nn.Linear(768, 4)))
    assert stage.terms["similarity"].reads[0] == Tap("student", "1", "input")


def test_soft_targets_can_stand_beside():
    stage = planned(soft=0.9, temperature=2.0)
    assert stage.terms["soft"].weight == 0.9
    assert stage.terms["soft"].loss.keywords == {"temperature": 2.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_size": 1},
            "sp compares the samples of a batch with each other: batch_size is 1, it must be 2 or more",
        ),
        ({"temperature": -1.0}, "temperature is -1.0: it must be above 0"),
        ({"hard": 0, "similarity": 0}, "hard and soft and similarity are all 0"),
        (
            {"student_layers": ("stem",), "teacher_layers": ("stem", "pool")},
            "student_layers has 1 layers and teacher_",
        ),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)
