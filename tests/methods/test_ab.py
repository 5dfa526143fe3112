from functools import partial

import pytest
import torch
from torch import nn

import limbeck
from limbeck.core import LimbeckError, Tap
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.ab import ab, boundary_loss
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

SHAPE = (3, 16, 16)
TRAINING = Training(epochs=2, batch_size=8, optimizer=sgd(lr=0.01), schedule=constant())


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    return limbeck.arrays(torch.randn(16, *SHAPE), torch.arange(16) % 4, classes=("a", "b", "c", "d"))


def network(name="resnet8", **options):
    return build(name, classes=4, shape=SHAPE, **options)


def pair():
    return {"student": network(), "teacher": network("wrn_16_1")}


def maps(*shape):
    return 2 * torch.randn(*shape, dtype=torch.float64), 2 * torch.randn(*shape, dtype=torch.float64)


def loop(student, teacher, margin):
    """The paper's alternative loss, one neuron at a time."""
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        if t > 0 and s <= margin:
            total += (margin - s) ** 2
        elif t <= 0 and s > -margin:
            total += (margin + s) ** 2
    return total


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0])
def test_is_the_papers_formula_in_loops(margin):
    student, teacher = maps(2, 3, 4, 5)
    value = boundary_loss(student, teacher, margin=margin, average="sum")
    assert value.item() == pytest.approx(loop(student, teacher, margin), rel=1e-12)


def test_the_batch_is_averaged():
    student, teacher = maps(3, 2, 4, 4)
    expected = loop(student, teacher, 1.0) / 4 / 3
    assert boundary_loss(student, teacher, weight=1 / 4).item() == pytest.approx(expected, rel=1e-12)


def test_only_the_teachers_signs_count():
    student, teacher = maps(2, 3, 4, 4)
    assert boundary_loss(student, teacher).item() == boundary_loss(student, 100 * teacher).item()
    assert boundary_loss(student, teacher).item() != boundary_loss(student, -teacher).item()


def test_is_zero_beyond_the_margin_on_the_right_side():
    _, teacher = maps(2, 3, 4, 4)
    leaf = (1.01 * teacher.sign()).requires_grad_()
    value = boundary_loss(leaf, teacher)
    value.backward()
    assert value.item() == 0
    assert not leaf.grad.any()


def test_has_the_right_gradient():
    student, teacher = maps(2, 2, 3, 3)
    assert torch.autograd.gradcheck(lambda leaf: boundary_loss(leaf, teacher), student.requires_grad_())


def test_no_gradient_reaches_the_teacher():
    student, teacher = (leaf.requires_grad_() for leaf in maps(1, 2, 3, 3))
    boundary_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.any()


@pytest.mark.parametrize("size", [(2, 2), (4, 2), (8, 8)])
def test_the_larger_map_is_averaged_down(size):
    torch.manual_seed(1)
    student, teacher = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, *size).double()
    small = tuple(min(pair) for pair in zip((4, 4), size, strict=True))
    mine, its = (torch.nn.functional.adaptive_avg_pool2d(one, small) for one in (student, teacher))
    value = boundary_loss(student, teacher, average="sum")
    assert value.item() == pytest.approx(loop(mine, its, 1.0), rel=1e-12)


def test_other_channels_are_refused():
    with pytest.raises(LimbeckError, match=r"\(2, 3, 4, 4\) and \(2, 1, 4, 4\) differ in batch or channels"):
        boundary_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))


def test_first_the_boundaries_then_the_task(data):
    first, task = plan(partial(ab, boundary_epochs=3), pair(), data, TRAINING)
    assert (first.name, first.epochs, set(first.terms)) == ("boundaries", 3, {"boundary"})
    assert (task.name, task.epochs, set(task.terms)) == ("task", 2, {"hard"})
    assert first.terms["boundary"].weight == 0.003


def test_a_layer_weighs_twice_the_one_before(data):
    networks = {"student": network(), "teacher": network("wrn_16_2")}
    first, _ = plan(ab, networks, data, TRAINING)
    sizes = ((16, 16), (8, 8), (4, 4))
    students = [torch.randn(2, width, *size) for width, size in zip((16, 32, 64), sizes, strict=True)]
    teachers = [torch.randn(2, width, *size) for width, size in zip((32, 64, 128), sizes, strict=True)]
    loss = first.terms["boundary"].loss
    layers = zip(loss.losses, students, teachers, strict=True)
    one, two, three = (boundary_loss(layer.connector(mine), its).item() for layer, mine, its in layers)
    assert loss(*students, *teachers).item() == pytest.approx(one / 4 + two / 2 + three, rel=1e-6)


def test_reads_what_comes_before_the_activations(data):
    first, _ = plan(ab, pair(), data, TRAINING)
    reads = first.terms["boundary"].reads
    assert [tap.source for tap in reads] == ["student"] * 3 + ["teacher"] * 3
    assert reads[2] == Tap("student", "stage3.0.relu2", "input")
    assert reads[5] == Tap("teacher", "relu", "input")


def test_a_connector_is_there_only_where_the_channels_differ(data):
    networks = {"student": network(), "teacher": network("wrn_16_2")}
    first, _ = plan(ab, networks, data, TRAINING)
    kinds = [type(layer.connector) for layer in first.terms["boundary"].loss.losses]
    assert kinds == [nn.Sequential] * 3
    first, _ = plan(ab, {"student": network(), "teacher": network("resnet14")}, data, TRAINING)
    assert [type(layer.connector) for layer in first.terms["boundary"].loss.losses] == [nn.Identity] * 3


def test_soft_targets_can_be_had_in_the_second_stage(data):
    _, task = plan(partial(ab, hard=0.0, soft=1 / 9), pair(), data, TRAINING)
    assert set(task.terms) == {"soft"}


def test_names_layers(data):
    layers = {"student_layers": ("stage1.0.relu2:input",), "teacher_layers": ("stage1.1",)}
    first, _ = plan(partial(ab, **layers), pair(), data, TRAINING)
    assert first.terms["boundary"].reads == (Tap("student", "stage1.0.relu2", "input"), Tap("teacher", "stage1.1"))


def test_trains_both_stages(data):
    networks = pair()
    before = {name: tensor.clone() for name, tensor in networks["teacher"].state_dict().items()}
    batches = training_batches(data, TRAINING, seed=0, engine=make_engine(device="cpu", precision="32"))
    stages = plan(ab, networks, data, TRAINING)
    epochs = list(run(stages, networks, batches, make_engine(device="cpu", precision="32")))
    assert [epoch.stage for epoch in epochs] == ["boundaries", "boundaries", "task", "task"]
    assert epochs[1].terms["boundary"] < epochs[0].terms["boundary"]
    assert all(torch.equal(before[name], tensor) for name, tensor in networks["teacher"].state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -1.0}, "margin is -1.0: it must be at least 0"),
        ({"layer_factor": 0.0}, "layer_factor is 0.0: it must be above 0"),
        ({"boundary_epochs": 0}, "boundary_epochs is 0: it must be at least 1"),
        ({"boundary": 0.0}, "weights boundary are all 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"student_layers": ("stage1",), "teacher_layers": ("stage1", "stage2")}, "student_layers has 1 layers and"),
        (
            {"student_layers": ("head",), "teacher_layers": ("stage1",)},
            r"ab reads maps \(C, H, W\), but student.head gives \(4,\)",
        ),
    ],
)
def test_what_cannot_be_is_refused(data, options, message):
    with pytest.raises(LimbeckError, match=message):
        plan(partial(ab, **options), pair(), data, TRAINING)


def test_a_network_without_maps_is_refused(data):
    networks = {"student": network("mlp", hidden=(8,)), "teacher": network()}
    with pytest.raises(LimbeckError, match="the student returns only vectors or tokens"):
        plan(ab, networks, data, TRAINING)


def test_one_sample_and_one_place_have_no_statistics(data):
    training = Training(epochs=1, batch_size=1, optimizer=sgd(lr=0.1), schedule=constant())
    options = {"student_layers": ("pool.mean",), "teacher_layers": ("pool.mean",)}
    networks = {"student": network(), "teacher": network("resnet8x4")}
    with pytest.raises(LimbeckError, match=r"BatchNorm to \(64, 1, 1\), which needs at least 2 samples"):
        plan(partial(ab, **options), networks, data, training)
