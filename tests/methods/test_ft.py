import copy
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
from limbeck.methods.ft import FactorTransfer, Paraphraser, encoder, factor_loss, ft, positions_loss
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

SHAPE = (3, 16, 16)
TRAINING = Training(epochs=2, batch_size=8, optimizer=sgd(lr=0.01, momentum=0.9, weight_decay=0.1), schedule=constant())


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


def scaled(values):
    length = math.sqrt(sum(value * value for value in values))
    return [value / length for value in values]


def loop(student, teacher):
    """The paper's L1 norm between unit factors, mean over the batch, one number at a time."""
    total = 0.0
    for mine, its in zip(student, teacher, strict=True):
        pairs = zip(scaled(mine.flatten().tolist()), scaled(its.flatten().tolist()), strict=True)
        total += sum(abs(s - t) for s, t in pairs)
    return total / len(student)


def test_the_papers_form_is_the_formula_in_loops():
    student, teacher = maps(3, 2, 4, 5)
    assert factor_loss(student, teacher, average="batch").item() == pytest.approx(loop(student, teacher), rel=1e-12)


def test_the_authors_form_is_the_mean_over_the_elements():
    student, teacher = maps(3, 2, 4, 5)
    assert factor_loss(student, teacher).item() == pytest.approx(loop(student, teacher) / 40, rel=1e-12)


def test_the_scale_of_a_sample_does_not_count():
    student, teacher = maps(3, 2, 4, 4)
    scales = torch.tensor([0.1, 3.0, 100.0], dtype=torch.float64).view(3, 1, 1, 1)
    other = factor_loss(scales * student, 7 * teacher)
    assert other.item() == pytest.approx(factor_loss(student, teacher).item(), rel=1e-12)


def test_is_zero_for_equal_factors():
    student, _ = maps(1, 2, 4, 4)
    assert factor_loss(student, student).item() == 0
    assert positions_loss(student, student).item() == 0


def repdistiller_loop(student, teacher, inner, outer):
    total, count = 0.0, 0
    for mine, its in zip(student, teacher, strict=True):
        rows = []
        for one in (mine, its):
            channels = one.flatten(1).tolist()
            rows.append(scaled([sum(v**inner for v in column) / len(column) for column in zip(*channels, strict=True)]))
        total += sum(abs(s - t) ** outer for s, t in zip(*rows, strict=True))
        count += len(rows[0])
    return total / count


@pytest.mark.parametrize(("inner", "outer"), [(2, 1), (2, 2), (1, 1), (4, 2)])
def test_repdistillers_form_is_its_formula_in_loops(inner, outer):
    student, _ = maps(3, 2, 4, 5)
    teacher, _ = maps(3, 6, 4, 5)
    value = positions_loss(student, teacher, inner_power=inner, outer_power=outer)
    assert value.item() == pytest.approx(repdistiller_loop(student, teacher, inner, outer), rel=1e-12)


def test_repdistillers_form_ignores_the_order_of_channels():
    student, teacher = maps(3, 4, 4, 4)
    assert positions_loss(student[:, [2, 0, 3, 1]], teacher).item() == pytest.approx(
        positions_loss(student, teacher).item(), rel=1e-12
    )


@pytest.mark.parametrize("loss", [factor_loss, partial(factor_loss, average="batch"), positions_loss])
def test_has_the_right_gradient(loss):
    student, teacher = maps(2, 2, 3, 3)
    assert torch.autograd.gradcheck(lambda leaf: loss(leaf, teacher), student.requires_grad_())


@pytest.mark.parametrize("loss", [factor_loss, positions_loss])
def test_no_gradient_reaches_the_teacher_and_zeros_give_finite_ones(loss):
    student, teacher = torch.zeros(1, 2, 3, 3, requires_grad=True), torch.randn(1, 2, 3, 3, requires_grad=True)
    value = loss(student, teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert teacher.grad is None


@pytest.mark.parametrize("loss", [factor_loss, positions_loss])
def test_the_larger_map_is_averaged_down(loss):
    student, _ = maps(2, 3, 4, 6)
    teacher, _ = maps(2, 3, 8, 3)
    expected = loss(F.adaptive_avg_pool2d(student, (4, 3)), F.adaptive_avg_pool2d(teacher, (4, 3)))
    assert loss(student, teacher).item() == pytest.approx(expected.item(), rel=1e-12)


def test_factors_of_other_channels_are_refused():
    with pytest.raises(LimbeckError, match="differ in batch or channels"):
        factor_loss(torch.ones(2, 3, 4, 4), torch.ones(2, 4, 4, 4))


@pytest.mark.parametrize(("reconstruction", "each"), [("absolute", 1 / 150), ("squared", 1 / 2)])
def test_the_paraphraser_reconstructs(reconstruction, each):
    torch.manual_seed(3)
    paraphraser = Paraphraser(5, 2, reconstruction=reconstruction).double()
    teacher, _ = maps(2, 5, 5, 3)
    given = paraphraser.decoder(paraphraser.encoder(teacher))
    assert given.shape == teacher.shape
    power = 1 if reconstruction == "absolute" else 2
    pairs = zip(given.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    assert paraphraser(teacher).item() == pytest.approx(each * sum(abs(p - t) ** power for p, t in pairs), rel=1e-12)


def test_the_encoder_is_three_layers_with_leaky_relus():
    module = encoder(4, 3)
    convolutions = module[::2]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [(4, 4), (4, 3), (3, 3)]
    for layer in convolutions:
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)
    sample = torch.tensor([[[[1.0]], [[-1.0]], [[2.0]], [[-2.0]]]])
    torch.testing.assert_close(module(sample).flatten(), torch.tensor([1.0, -0.001, 2.0]))


def test_the_translator_learns_and_the_paraphraser_does_not():
    module = FactorTransfer(encoder(4, 2), encoder(5, 2), factor_loss)
    module(torch.randn(2, 4, 4, 4), torch.randn(2, 5, 4, 4)).backward()
    assert all(parameter.grad is not None for parameter in module.translator.parameters())
    assert all(parameter.grad is None for parameter in module.paraphraser.parameters())


def test_first_the_paraphraser_then_the_student(data):
    first, second = plan(partial(ft, paraphraser_epochs=5, rate=0.25), pair(), data, TRAINING)
    assert (first.name, first.epochs, first.learns, set(first.terms)) == ("paraphraser", 5, (), {"reconstruction"})
    assert (second.name, second.epochs, set(second.terms)) == ("ft", 2, {"hard", "factor"})
    assert first.terms["reconstruction"].reads == (Tap("teacher", "relu"),)
    assert second.terms["factor"].reads == (Tap("student", "stage3"), Tap("teacher", "relu"))
    assert second.terms["factor"].weight == 500.0
    assert second.terms["factor"].loss.paraphraser is first.terms["reconstruction"].loss.encoder
    assert second.terms["factor"].loss.translator[-2].out_channels == 16


def test_the_forms_are_the_authors_the_papers_and_repdistillers(data):
    reads = torch.randn(2, 64, 4, 4), torch.randn(2, 64, 4, 4)
    values = {}
    for form in ("authors", "paper", "repdistiller"):
        torch.manual_seed(5)
        _, stage = plan(partial(ft, form=form, outer_power=2), pair(), data, TRAINING)
        loss = stage.terms["factor"].loss
        values[form] = loss(*reads).item()
        factors = loss.translator(reads[0]), loss.paraphraser(reads[1])
    assert values["paper"] == pytest.approx(32 * 16 * values["authors"], rel=1e-4)
    assert values["repdistiller"] == pytest.approx(positions_loss(*factors, outer_power=2).item(), rel=1e-5)


def test_trains_the_paraphraser_alone_and_then_leaves_it(data):
    networks = pair()
    engine = make_engine(device="cpu", precision="32")
    before = {name: copy.deepcopy(network.state_dict()) for name, network in networks.items()}
    stages = plan(ft, networks, data, TRAINING)
    encoder_ = stages[0].terms["reconstruction"].loss.encoder
    seen = [copy.deepcopy(encoder_.state_dict())]
    for epoch in run(stages, networks, training_batches(data, TRAINING, seed=0, engine=engine), engine):
        seen.append(copy.deepcopy(encoder_.state_dict()))
        same = [torch.equal(before["student"][key], value) for key, value in networks["student"].state_dict().items()]
        assert all(same) == (epoch.stage == "paraphraser")
        trained = [not torch.equal(seen[-2][key], seen[-1][key]) for key in seen[0]]
        assert all(trained) if epoch.stage == "paraphraser" else not any(trained)
    assert len(seen) == 5
    assert all(torch.equal(before["teacher"][key], value) for key, value in networks["teacher"].state_dict().items())
    assert all(parameter.grad is None for parameter in encoder_.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "rate is 0.0: it must be above 0"),
        ({"paraphraser_epochs": 0}, "paraphraser_epochs is 0: it must be at least 1"),
        ({"outer_power": 0}, "outer_power is 0: it must be at least 1"),
        ({"factor": 0.0, "hard": 0.0}, "are all 0"),
        ({"student_layer": "head"}, r"ft reads maps \(C, H, W\), but student.head gives \(4,\)"),
    ],
)
def test_what_cannot_be_is_refused(data, options, message):
    with pytest.raises(LimbeckError, match=message):
        plan(partial(ft, **options), pair(), data, TRAINING)


def test_a_network_without_maps_is_refused(data):
    networks = {"student": network("mlp", hidden=(8,)), "teacher": network()}
    with pytest.raises(LimbeckError, match="the student returns only vectors or tokens"):
        plan(ft, networks, data, TRAINING)
