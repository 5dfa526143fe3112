import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import limbeck
from limbeck.core import LimbeckError, Tap
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.ofd import margins, ofd, overhaul_loss
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
    return torch.randn(*shape, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64)


def norm_of(gamma, beta):
    norm = nn.BatchNorm2d(len(gamma))
    norm.weight.data, norm.bias.data = torch.tensor(gamma), torch.tensor(beta)
    return norm


def loop(student, teacher, margin):
    """Margin ReLU and partial L2, one value at a time."""
    total = 0.0
    for mine, its in zip(student, teacher, strict=True):
        for one, other, least in zip(mine, its, margin.tolist(), strict=True):
            for s, raw in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True):
                t = max(raw, least)
                total += 0.0 if s <= t <= 0 else (t - s) ** 2
    return total


def test_is_the_papers_formula_in_loops():
    student, teacher = maps(3, 4, 2, 5)
    margin = torch.tensor([-0.1, -0.5, -2.0, 0.0], dtype=torch.float64)
    value = overhaul_loss(student, teacher, margin, average="sum")
    assert value.item() == pytest.approx(loop(student, teacher, margin), rel=1e-12)


def test_the_batch_is_averaged():
    student, teacher = maps(3, 2, 4, 4)
    margin = -torch.rand(2, dtype=torch.float64)
    expected = loop(student, teacher, margin) / 2 / 3
    assert overhaul_loss(student, teacher, margin, weight=1 / 2).item() == pytest.approx(expected, rel=1e-12)


def test_a_student_below_a_negative_target_pays_nothing():
    teacher, margin = torch.full((1, 1, 2, 2), -3.0), torch.tensor([-0.5])
    leaf = torch.full((1, 1, 2, 2), -0.6, requires_grad=True)
    value = overhaul_loss(leaf, teacher, margin)
    value.backward()
    assert value.item() == 0
    assert not leaf.grad.any()
    assert overhaul_loss(leaf + 0.2, teacher, margin).item() == pytest.approx(4 * 0.1**2, rel=1e-4)


def test_has_the_right_gradient():
    student, teacher = maps(2, 2, 3, 3)
    margin = torch.tensor([-0.3, -0.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda leaf: overhaul_loss(leaf, teacher, margin), student.requires_grad_())


def test_no_gradient_reaches_the_teacher():
    student, teacher = (leaf.requires_grad_() for leaf in maps(1, 2, 3, 3))
    overhaul_loss(student, teacher, torch.zeros(2, dtype=torch.float64)).backward()
    assert teacher.grad is None
    assert student.grad.any()


def test_the_larger_map_is_averaged_down():
    student, _ = maps(2, 3, 4, 2)
    teacher, _ = maps(2, 3, 2, 8)
    margin = -torch.rand(3, dtype=torch.float64)
    target = F.adaptive_avg_pool2d(torch.maximum(teacher, margin.view(-1, 1, 1)), (2, 2))
    expected = loop(F.adaptive_avg_pool2d(student, (2, 2)), target, torch.full((3,), -100.0))
    assert overhaul_loss(student, teacher, margin, average="sum").item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("gamma", "beta"), [(1.0, 0.0), (0.7, 0.4), (-0.7, 0.4), (1.3, -2.0), (0.5, 1.4)])
def test_the_margin_is_the_mean_of_the_negative_values(gamma, beta):
    """By adding up the normal distribution's negative half in small steps."""
    width, steps = abs(gamma), 200_000
    low = beta - 12 * width
    step = -low / steps
    points = [low + (place + 0.5) * step for place in range(steps)]
    density = [math.exp(-(((point - beta) / width) ** 2) / 2) for point in points]
    expected = sum(p * d for p, d in zip(points, density, strict=True)) / sum(density)
    assert margins(norm_of([gamma], [beta])).item() == pytest.approx(expected, rel=1e-5)


def test_a_channel_that_is_hardly_negative_has_three_deviations():
    assert margins(norm_of([0.5, -0.1], [5.0, 1.0])).tolist() == pytest.approx([-1.5, -0.3], rel=1e-6)


def test_a_channel_that_is_switched_off_has_a_finite_margin():
    assert margins(norm_of([0.0, 0.0, 0.0], [0.0, 1.0, -1.0])).tolist() == [0.0, 0.0, -1.0]


def test_a_norm_without_weights_is_the_standard_normal():
    assert margins(nn.BatchNorm2d(2, affine=False)).tolist() == pytest.approx([-math.sqrt(2 / math.pi)] * 2, rel=1e-12)


def test_a_layer_weighs_twice_the_one_before_after_its_connector(data):
    (stage,) = plan(ofd, pair(), data, TRAINING)
    loss = stage.terms["feature"].loss
    sizes = ((16, 16), (8, 8), (4, 4))
    students, teachers = (
        [torch.randn(2, width, *size) for width, size in zip((16, 32, 64), sizes, strict=True)] for _ in range(2)
    )
    layers = zip(loss.losses, students, teachers, strict=True)
    one, two, three = (overhaul_loss(layer.connector(mine), its, layer.margin).item() for layer, mine, its in layers)
    assert loss(*students, *teachers).item() == pytest.approx(one / 4 + two / 2 + three, rel=1e-6)
    assert {f"losses.{layer}.margin" for layer in range(3)} <= set(loss.state_dict())


def test_is_one_stage_with_the_published_weights(data):
    (stage,) = plan(ofd, pair(), data, TRAINING)
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 1.0, "feature": 0.001}
    (stage,) = plan(partial(ofd, soft=1.0), pair(), data, TRAINING)
    assert set(stage.terms) == {"hard", "feature", "soft"}


def test_the_margins_are_those_of_the_teachers_last_norms(data):
    networks = {"student": network(), "teacher": network("resnet14")}
    for module in networks["teacher"].modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    (stage,) = plan(ofd, networks, data, TRAINING)
    loss, teacher = stage.terms["feature"].loss, networks["teacher"]
    for place, block in enumerate((teacher.stage1, teacher.stage2, teacher.stage3)):
        torch.testing.assert_close(loss.losses[place].margin, margins(block[-1].norm2).float())
    assert stage.terms["feature"].reads[-1] == Tap("teacher", "stage3.1.relu2", "input")


def test_names_layers_and_norms(data):
    layers = {"teacher_layers": ("stage1.0.norm2",), "teacher_norms": ("stage1.0.norm2",)}
    (stage,) = plan(partial(ofd, student_layers=("stage1",), **layers), pair(), data, TRAINING)
    assert stage.terms["feature"].reads == (Tap("student", "stage1"), Tap("teacher", "stage1.0.norm2"))


def test_trains(data):
    networks = pair()
    engine = make_engine(device="cpu", precision="32")
    batches = training_batches(data, TRAINING, seed=0, engine=engine)
    first, second = run(plan(ofd, networks, data, TRAINING), networks, batches, engine)
    assert second.terms["feature"] < first.terms["feature"]


def test_a_norm_whose_output_is_overwritten_still_gives_its_margins(data):
    teacher = build("torchvision:resnet18", classes=4, shape=SHAPE)
    (stage,) = plan(ofd, {"student": network(), "teacher": teacher}, data, TRAINING)
    loss = stage.terms["feature"].loss
    torch.testing.assert_close(loss.losses[1].margin, margins(teacher.layer2[1].bn2).float())


def without_norms(channels=8):
    layers = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))


def test_a_teacher_without_batch_norm_is_refused(data):
    with pytest.raises(LimbeckError, match=r"margins from the BatchNorm .*, and the teacher has none"):
        plan(ofd, {"student": network(), "teacher": without_norms()}, data, TRAINING)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_factor": -1.0}, "layer_factor is -1.0: it must be above 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"hard": 0.0, "feature": 0.0}, "are all 0"),
        (
            {"student_layers": ("stage1",), "teacher_layers": ("stage1",)},
            "teacher_layers needs teacher_norms",
        ),
        ({"teacher_norms": ("norm",)}, "teacher_norms has 1 layers for 3 maps"),
        ({"teacher_norms": ("nrom",) * 3}, "the teacher has no layer 'nrom': did you mean norm"),
        ({"teacher_norms": ("stem",) * 3}, "and stem is a Conv2d: name BatchNorm layers"),
        ({"teacher_norms": ("norm",) * 3}, "the BatchNorm norm has 64 channels, the teacher's map 16"),
    ],
)
def test_what_cannot_be_is_refused(data, options, message):
    with pytest.raises(LimbeckError, match=message):
        plan(partial(ofd, **options), pair(), data, TRAINING)
