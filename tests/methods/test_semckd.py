import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import limbeck
from limbeck.core import LimbeckError, Tap
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.semckd import Calibration, Embedding, regressor, semckd
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

SHAPE = (3, 16, 16)
TRAINING = Training(epochs=2, batch_size=8, optimizer=sgd(lr=0.005), schedule=constant())


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    return limbeck.arrays(torch.randn(20, *SHAPE), torch.arange(20) % 4, classes=("a", "b", "c", "d"))


def network(name="resnet8", **options):
    return build(name, classes=4, shape=SHAPE, **options)


def pair():
    return {"student": network(), "teacher": network("wrn_16_1")}


def maps(*shapes):
    return [torch.randn(*shape, dtype=torch.float64) for shape in shapes]


def dot(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


def embedded(embed, tensor, batch_size):
    """Every sample's embedding, one number at a time."""
    flat = tensor.flatten(1).tolist()
    weights = [embed.linear1.weight.tolist(), embed.linear1.bias.tolist()]
    weights += [embed.linear2.weight.tolist(), embed.linear2.bias.tolist()]
    found = []
    for sample in flat:
        row = [dot(sample, other) for other in flat] + [0.0] * (batch_size - len(flat))
        hidden = [max(dot(line, row) + bias, 0.0) for line, bias in zip(weights[0], weights[1], strict=True)]
        vector = [dot(line, hidden) + bias for line, bias in zip(weights[2], weights[3], strict=True)]
        length = math.sqrt(dot(vector, vector))
        found.append([value / length for value in vector])
    return found


def loop(module, students, teachers, batch_size):
    """The loss but for the regressors, pair by pair and sample by sample."""
    count, total = len(students[0]), 0.0
    queries = [embedded(one, tensor, batch_size) for one, tensor in zip(module.queries, students, strict=True)]
    keys = [embedded(one, tensor, batch_size) for one, tensor in zip(module.keys, teachers, strict=True)]
    for i, student in enumerate(students):
        for b in range(count):
            scores = [math.exp(dot(queries[i][b], key[b])) for key in keys]
            for j, teacher in enumerate(teachers):
                size = tuple(min(sides) for sides in zip(student.shape[2:], teacher.shape[2:], strict=True))
                mine, its = (F.adaptive_avg_pool2d(one, size) for one in (student, teacher))
                given = module.regressors[i][j](mine)[b].flatten().tolist()
                squares = [(p - t) ** 2 for p, t in zip(given, its[b].flatten().tolist(), strict=True)]
                total += scores[j] / sum(scores) * sum(squares) / len(squares)
    return total / (count * len(students))


@pytest.mark.parametrize("batch_size", [4, 6, 9])
def test_is_the_formula_in_loops(batch_size):
    torch.manual_seed(0)
    students = maps((4, 3, 4, 6), (4, 4, 2, 2))
    teachers = maps((4, 2, 8, 8), (4, 5, 4, 4), (4, 3, 2, 3))
    module = Calibration([3, 4], [2, 5, 3], batch_size=batch_size, embedding=3).double()
    value = module(*students, *teachers)
    assert value.item() == pytest.approx(loop(module, students, teachers, batch_size), rel=1e-9)


def test_the_attention_of_a_student_layer_sums_to_one():
    """With teacher layers that are all alike the attention cannot matter, only that it sums to 1."""
    torch.manual_seed(0)
    student, teacher = maps((4, 3, 4, 4), (4, 2, 4, 4))
    module = Calibration([3], [2, 2], batch_size=4).double()
    module.regressors[0][1].load_state_dict(module.regressors[0][0].state_dict())
    expected = F.mse_loss(module.regressors[0][0](student), teacher)
    assert module(student, teacher, teacher).item() == pytest.approx(expected.item(), rel=1e-12)


def test_one_teacher_layer_takes_all_the_attention():
    torch.manual_seed(0)
    one, two, teacher = maps((4, 3, 4, 4), (4, 5, 2, 2), (4, 2, 4, 4))
    module = Calibration([3, 5], [2], batch_size=4).double()
    small = F.adaptive_avg_pool2d(teacher, 2)
    first, second = (row[0] for row in module.regressors)
    expected = (F.mse_loss(first(one), teacher) + F.mse_loss(second(two), small)) / 2
    assert module(one, two, teacher).item() == pytest.approx(expected.item(), rel=1e-12)


def test_short_rows_are_filled_up_with_zeros():
    embed = Embedding(6, 2)
    tensor = torch.randn(4, 3, 2, 2)
    with torch.no_grad():
        before = embed(tensor)
        embed.linear1.weight[:, 4:] = 100.0
        assert torch.equal(embed(tensor), before)
        embed.linear1.weight[:, :4] = 0.0
        assert not torch.equal(embed(tensor), before)


def test_the_embedding_is_a_quarter_of_the_batch_and_at_least_one():
    assert Embedding(64, 16)(torch.randn(64, 3)).shape == (64, 16)
    assert Calibration([3], [2], batch_size=64).queries[0].linear2.out_features == 16
    assert Calibration([3], [2], batch_size=2).keys[0].linear2.out_features == 1


def test_the_regressor_keeps_the_size():
    assert regressor(3, 5)(torch.randn(2, 3, 4, 6)).shape == (2, 5, 4, 6)


def test_has_the_right_gradient():
    torch.manual_seed(0)
    student, *teachers = maps((3, 2, 3, 3), (3, 2, 3, 3), (3, 3, 2, 2))
    module = Calibration([2], [2, 3], batch_size=3, embedding=2).double()
    assert torch.autograd.gradcheck(lambda leaf: module(leaf, *teachers), student.requires_grad_())


def test_no_gradient_reaches_the_teacher():
    module = Calibration([3], [2], batch_size=4)
    student, teacher = torch.randn(4, 3, 4, 4, requires_grad=True), torch.randn(4, 2, 4, 4, requires_grad=True)
    module(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.any()


def test_equal_samples_and_large_values_stay_finite():
    module = Calibration([3], [2, 2], batch_size=4)
    for student in (torch.zeros(4, 3, 4, 4), torch.full((4, 3, 4, 4), 1e3)):
        leaf = student.requires_grad_()
        value = module(leaf, torch.ones(4, 2, 4, 4), torch.zeros(4, 2, 4, 4))
        value.backward()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()


def test_more_samples_than_the_embeddings_take_are_refused():
    with pytest.raises(LimbeckError, match="got 5 samples: the embeddings take at most 4"):
        Calibration([3], [2], batch_size=4)(torch.zeros(5, 3, 4, 4), torch.zeros(5, 2, 4, 4))


def test_reads_all_sections_and_takes_the_batch_size(data):
    (stage,) = plan(semckd, pair(), data, TRAINING)
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 1.0, "soft": 1.0, "calibration": 400.0}
    reads = stage.terms["calibration"].reads
    assert [str(tap) for tap in reads[:3]] == ["student.stage1", "student.stage2", "student.stage3"]
    assert [tap.source for tap in reads] == ["student"] * 3 + ["teacher"] * 3
    assert stage.terms["calibration"].loss.batch_size == 8


def test_names_other_numbers_of_layers(data):
    layers = {"student_layers": ("stage3",), "teacher_layers": ("stage1", "stage3")}
    (stage,) = plan(partial(semckd, soft=0.0, **layers), pair(), data, TRAINING)
    reads = (Tap("student", "stage3"), Tap("teacher", "stage1"), Tap("teacher", "stage3"))
    assert stage.terms["calibration"].reads == reads
    assert set(stage.terms) == {"hard", "calibration"}


def test_trains_with_a_smaller_last_batch(data):
    networks = pair()
    engine = make_engine(device="cpu", precision="32")
    batches = training_batches(data, TRAINING, seed=0, engine=engine)
    first, second = run(plan(semckd, networks, data, TRAINING), networks, batches, engine)
    assert second.terms["calibration"] < first.terms["calibration"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"hard": 0.0, "soft": 0.0, "calibration": 0.0}, "are all 0"),
        ({"teacher_layers": ("head",)}, r"semckd reads maps \(C, H, W\), but teacher.head gives \(4,\)"),
    ],
)
def test_what_cannot_be_is_refused(data, options, message):
    with pytest.raises(LimbeckError, match=message):
        plan(partial(semckd, **options), pair(), data, TRAINING)


def test_a_network_without_maps_is_refused(data):
    networks = {"student": network("mlp", hidden=(8,)), "teacher": network()}
    with pytest.raises(LimbeckError, match="the student returns only vectors or tokens"):
        plan(semckd, networks, data, TRAINING)
