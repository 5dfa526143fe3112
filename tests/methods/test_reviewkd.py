from functools import partial

import pytest
import torch
import torch.nn.functional as F

import limbeck
from limbeck.core import LimbeckError, Tap
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.reviewkd import Fusion, Review, context_loss, reviewkd
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant, linear
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


def pooled(channel, side):
    """A channel (H, W), whose sides the side divides, as the means of its blocks."""
    high, wide = len(channel) // side, len(channel[0]) // side
    blocks = [
        [channel[i * high + a][j * wide + b] for a in range(high) for b in range(wide)]
        for i in range(side)
        for j in range(side)
    ]
    return [sum(block) / len(block) for block in blocks]


def loop(student, teacher, used):
    """One pair's hierarchical context loss, with the pooled sizes that are used and their weights."""

    def mean_square(side):
        squares = []
        for mine, its in zip(student.flatten(0, 1).tolist(), teacher.flatten(0, 1).tolist(), strict=True):
            rows = [pooled(one, side) if side else [value for line in one for value in line] for one in (mine, its)]
            squares += [(s - t) ** 2 for s, t in zip(*rows, strict=True)]
        return sum(squares) / len(squares)

    total = mean_square(None) + sum(weight * mean_square(side) for side, weight in used)
    return total / (1 + sum(weight for _, weight in used))


@pytest.mark.parametrize(
    ("shape", "used"),
    [
        ((2, 3, 8, 8), [(4, 1 / 2), (2, 1 / 4), (1, 1 / 8)]),
        ((2, 3, 4, 4), [(2, 1 / 2), (1, 1 / 4)]),
        ((2, 3, 4, 8), [(2, 1 / 2), (1, 1 / 4)]),
        ((2, 3, 2, 2), [(1, 1 / 2)]),
        ((2, 3, 1, 1), []),
        ((1, 3, 1, 1), []),
    ],
)
def test_the_context_loss_is_its_formula_in_loops(shape, used):
    student, teacher = maps(*shape)
    assert context_loss([student], [teacher]).item() == pytest.approx(loop(student, teacher, used), rel=1e-12)


def test_the_context_loss_sums_over_the_maps():
    one, two = maps(2, 3, 8, 8), maps(2, 4, 4, 4)
    both = context_loss([one[0], two[0]], [one[1], two[1]])
    alone = context_loss([one[0]], [one[1]]) + context_loss([two[0]], [two[1]])
    assert both.item() == pytest.approx(alone.item(), rel=1e-12)


def test_the_context_loss_is_zero_for_equal_maps():
    student, _ = maps(1, 3, 8, 8)
    assert context_loss([student], [student]).item() == 0


def test_maps_of_other_shapes_are_refused():
    with pytest.raises(LimbeckError, match=r"\(2, 3, 4, 4\) and \(2, 1, 4, 4\) differ in shape"):
        context_loss([torch.zeros(2, 3, 4, 4)], [torch.zeros(2, 1, 4, 4)])


def test_has_the_right_gradient():
    student, teacher = maps(2, 2, 5, 6)
    assert torch.autograd.gradcheck(lambda leaf: context_loss([leaf], [teacher]), student.requires_grad_())


def test_fusion_weighs_its_own_map_and_the_deeper_at_each_place():
    torch.manual_seed(1)
    fusion = Fusion(3, 4, 5, fuses=True).double()
    student, deeper = torch.randn(2, 3, 4, 6).double(), torch.randn(2, 4, 2, 3).double()
    given, passed = fusion(student, deeper, (4, 6))
    own = fusion.conv1(student)
    above = deeper.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    score = torch.einsum("kc,nchw->nkhw", fusion.attention.weight[:, :, 0, 0], torch.cat([own, above], 1))
    share = 1 / (1 + torch.exp(-score - fusion.attention.bias.view(1, 2, 1, 1)))
    torch.testing.assert_close(passed, own * share[:, [0]] + above * share[:, [1]])
    torch.testing.assert_close(given, fusion.conv2(passed))
    assert given.shape == (2, 5, 4, 6)


def test_fusion_takes_the_teachers_size():
    given, passed = Fusion(3, 4, 5, fuses=False)(torch.randn(2, 3, 4, 4), None, (8, 4))
    assert given.shape == (2, 5, 8, 4)
    assert torch.equal(passed[:, :, ::2], passed[:, :, 1::2])


def test_review_goes_from_the_deepest_level_up():
    torch.manual_seed(1)
    review = Review([3, 4, 5], [4, 5, 6], middle=3)
    students = [torch.randn(4, 3, 8, 8), torch.randn(4, 4, 4, 4), torch.randn(4, 5)]
    teachers = [torch.randn(4, 4, 8, 8), torch.randn(4, 5, 4, 4), torch.randn(4, 6)]
    value = review(*students, *teachers)
    three, passed = review.fusions[2](students[2].view(4, 5, 1, 1), None, (1, 1))
    two, passed = review.fusions[1](students[1], passed, (4, 4))
    one, _ = review.fusions[0](students[0], passed, (8, 8))
    expected = context_loss([one, two, three], [*teachers[:2], teachers[2].view(4, 6, 1, 1)])
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert [fusion.attention is None for fusion in review.fusions] == [False, False, True]


def test_what_comes_from_the_deep_levels_reaches_the_shallow_ones():
    torch.manual_seed(1)
    review = Review([3, 4], [4, 5], middle=3)
    shallow, deep = torch.randn(4, 3, 8, 8), torch.randn(4, 4, 4, 4, requires_grad=True)
    fused, _ = review.fusions[0](shallow, review.fusions[1](deep, None, (4, 4))[1], (8, 8))
    F.mse_loss(fused, torch.zeros_like(fused)).backward()
    assert deep.grad.any()


def test_no_gradient_reaches_the_teacher():
    review = Review([3], [4], middle=3)
    student, teacher = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 4, 4, 4, requires_grad=True)
    review(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.any()


def test_reads_sections_and_the_feature(data):
    (stage,) = plan(reviewkd, pair(), data, TRAINING)
    assert stage.terms["review"].reads == (
        Tap("student", "stage1"),
        Tap("student", "stage2"),
        Tap("student", "stage3"),
        Tap("student", "head", "input"),
        Tap("teacher", "stage2.0.norm1"),
        Tap("teacher", "stage3.0.norm1"),
        Tap("teacher", "relu", "input"),
        Tap("teacher", "head", "input"),
    )
    assert set(stage.terms) == {"hard", "review"}


def test_the_weight_rises_over_a_share_of_the_stage(data):
    (stage,) = plan(reviewkd, pair(), data, TRAINING)
    weight = stage.terms["review"].weight
    assert [weight(share / 24) for share in (0, 1, 2, 12)] == pytest.approx([0, 0.5, 1, 1])
    (stage,) = plan(partial(reviewkd, review=8.0, warmup=0.0), pair(), data, TRAINING)
    assert stage.terms["review"].weight == 8.0
    falling = linear(start=4.0, end=0.0)
    (stage,) = plan(partial(reviewkd, review=falling, warmup=0.5), pair(), data, TRAINING)
    assert [stage.terms["review"].weight(share) for share in (0, 0.25, 0.75)] == pytest.approx([0, 1.5, 1])


def test_channels_in_the_middle_are_the_deepest_ones_or_as_said(data):
    (stage,) = plan(reviewkd, pair(), data, TRAINING)
    assert stage.terms["review"].loss.fusions[0].conv1[0].out_channels == 64
    (stage,) = plan(partial(reviewkd, middle_channels=7), pair(), data, TRAINING)
    assert stage.terms["review"].loss.fusions[0].conv1[0].out_channels == 7


def test_names_layers(data):
    layers = {"student_layers": ("stage2", "pool"), "teacher_layers": ("stage1", "stage3")}
    (stage,) = plan(partial(reviewkd, soft=1.0, **layers), pair(), data, TRAINING)
    assert [tap.layer for tap in stage.terms["review"].reads] == ["stage2", "pool", "stage1", "stage3"]
    assert set(stage.terms) == {"hard", "review", "soft"}


def test_trains(data):
    networks = pair()
    engine = make_engine(device="cpu", precision="32")
    batches = training_batches(data, TRAINING, seed=0, engine=engine)
    stages = plan(partial(reviewkd, hard=0.0, warmup=0.0), networks, data, TRAINING)
    first, second = run(stages, networks, batches, engine)
    assert second.terms["review"] < first.terms["review"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"warmup": 1.0}, "warmup is 1.0: it is a fraction of the stage, at least 0 and below 1"),
        ({"middle_channels": 0}, "middle_channels is 0: it must be at least 1"),
        ({"review": 0.0, "hard": 0.0}, "are all 0"),
        ({"student_layers": ("stage1",), "teacher_layers": ("stage1", "stage2")}, "student_layers has 1 layers and"),
        ({"student_layers": ("stage1", "stage2:sideways")}, "not written as layer"),
    ],
)
def test_what_cannot_be_is_refused(data, options, message):
    with pytest.raises(LimbeckError, match=message):
        plan(partial(reviewkd, **options), pair(), data, TRAINING)


def test_tokens_are_refused(data):
    student = build("timm:vit_tiny_patch16_224", classes=4, shape=SHAPE, img_size=16, patch_size=4, depth=1)
    method = partial(reviewkd, student_layers=("blocks",), teacher_layers=("stage1",))
    with pytest.raises(
        LimbeckError, match=r"maps \(C, H, W\) and vectors \(D,\), but student.blocks gives \(17, 192\)"
    ):
        plan(method, {"student": student, "teacher": network()}, data, TRAINING)


def test_a_network_without_maps_is_refused(data):
    networks = {"student": network("mlp", hidden=(8,)), "teacher": network()}
    with pytest.raises(LimbeckError, match="the student returns only vectors or tokens"):
        plan(reviewkd, networks, data, TRAINING)


def test_one_sample_has_no_statistics_at_the_deepest_level(data):
    training = Training(epochs=1, batch_size=1, optimizer=sgd(lr=0.1), schedule=constant())
    with pytest.raises(LimbeckError, match=r"reviewkd applies a BatchNorm to \(64,\), which needs at least 2 samples"):
        plan(reviewkd, pair(), data, training)
