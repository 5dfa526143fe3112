import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.kd import soft_loss
from limbeck.methods.srrl import (
    Classifier,
    Representation,
    Rest,
    connector,
    feature_matching_loss,
    pooled,
    softmax_regression_loss,
    srrl,
)
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.taps import replaced
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

ENGINE = make_engine(device="cpu", precision="32")
FORMS = ["l2", "ce", "kl"]
SHAPE = (3, 16, 16)


def networks(student="resnet8", teacher="resnet14", shape=SHAPE, **options):
    torch.manual_seed(1)
    return {
        "student": build(student, classes=4, shape=shape, **options),
        "teacher": build(teacher, classes=4, shape=shape, **options),
    }


def planned(nets=None, *, batch_size=8, shape=SHAPE, **options):
    data = arrays(torch.rand(24, *shape), torch.arange(24) % 4)
    training = Training(1, batch_size, sgd(lr=1e-3), constant())
    (stage,) = plan(partial(srrl, **options), nets or networks(), data, training)
    return stage


def trained(stage, nets, shape=SHAPE):
    data = arrays(torch.rand(24, *shape), torch.arange(24) % 4)
    training = Training(1, 8, sgd(lr=1e-3), constant())
    return list(run([stage], nets, training_batches(data, training, seed=0, engine=ENGINE), ENGINE))


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(one, other):
    return {name for name in one if not torch.equal(one[name], other[name])}


def frozen(module):
    return module.eval().requires_grad_(False)


def pair(n=3, k=5):
    return [torch.randn(n, k, dtype=torch.float64) for _ in range(2)]


# --- the losses


def squares_in_loops(student, teacher):
    return sum((a.item() - b.item()) ** 2 for a, b in zip(student.flatten(), teacher.flatten(), strict=True))


def probabilities(row):
    powers = [math.exp(value) for value in row.tolist()]
    return [power / sum(powers) for power in powers]


def regression_in_loops(student, teacher, form):
    total = 0.0
    for n in range(len(student)):
        p, q = probabilities(teacher[n]), probabilities(student[n])
        for k in range(len(p)):
            total -= p[k] * math.log(q[k])
            if form == "kl":
                total += p[k] * math.log(p[k])
    return total / len(student)


@pytest.mark.parametrize("loss", [feature_matching_loss, softmax_regression_loss])
def test_the_squared_distances_are_the_formula_in_loops(loss):
    student, teacher = pair()
    total = squares_in_loops(student, teacher)
    assert loss(student, teacher).item() == pytest.approx(total / (3 * 5), rel=1e-12)
    assert loss(student, teacher, average="batch").item() == pytest.approx(total / 3, rel=1e-12)


@pytest.mark.parametrize("form", ["ce", "kl"])
def test_the_forms_of_distributions_are_the_formula_in_loops(form):
    student, teacher = pair()
    wanted = regression_in_loops(student, teacher, form)
    assert softmax_regression_loss(student, teacher, form=form).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_that_of_the_value(form):
    student, teacher = pair()
    loss = partial(softmax_regression_loss, form=form)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.requires_grad_())


@pytest.mark.parametrize("form", FORMS)
def test_no_gradient_reaches_the_target_and_equal_ones_give_none(form):
    student, teacher = (one.requires_grad_() for one in pair())
    softmax_regression_loss(student, teacher, form=form).backward()
    assert teacher.grad is None
    assert student.grad.any()
    student.grad = None
    value = softmax_regression_loss(student, student, form=form)
    value.backward()
    assert student.grad.abs().max() < 1e-15
    if form != "ce":
        assert value.item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("form", FORMS)
def test_stays_finite_for_logits_of_a_thousand_of_one_sample(form):
    student = torch.tensor([[1e3, -1e3, 0.0]], requires_grad=True)
    value = softmax_regression_loss(student, torch.tensor([[-1e3, 1e3, 0.0]]), form=form)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


# --- the connector


@pytest.mark.parametrize(("source", "width"), [((6, 4, 3), 9), ((6, 4, 3), 6)])
def test_the_connector_is_convolution_batchnorm_relu_also_at_equal_widths(source, width):
    made = connector(source, width)
    assert [type(layer) for layer in made] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert made[0].weight.shape == (width, 6, 1, 1)
    assert made[0].bias is None
    given = made(torch.randn(5, *source))
    assert given.shape == (5, width, 4, 3)
    assert given.min() == 0


def test_of_a_vector_the_connector_is_linear():
    made = connector((6,), 9)
    assert [type(layer) for layer in made] == [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert made[0].bias is None
    assert made(torch.randn(5, 6)).shape == (5, 9)


@pytest.mark.parametrize("source", [(400, 4, 4), (400,)])
def test_the_connectors_start_is_the_authors(source):
    made = connector(source, 200)
    weight = made[0].weight.detach()
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.02)
    assert weight.mean().abs().item() < 1e-3
    assert made[1].weight.tolist() == [1.0] * 200
    assert made[1].bias.tolist() == [0.0] * 200


# --- of one tensor of the student


def test_pooling_before_relu_is_not_relu_before_pooling():
    """The connector is on the map, as in the authors' code; other toolkits put it on the pooled vector."""
    student, teacher = torch.randn(6, 5, 4, 4), torch.randn(6, 7)
    made = connector((5, 4, 4), 7)
    wanted = made(student).mean(dim=(2, 3))
    other = F.relu(made[1](made[0](student)).mean(dim=(2, 3)))
    assert not torch.allclose(wanted, other, atol=1e-2)
    loss = Representation(made, Classifier(nn.Linear(7, 4)), beta=0.0)
    assert torch.allclose(loss(student, teacher, torch.randn(6, 4)), F.mse_loss(wanted, teacher))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("average", ["elements", "batch"])
def test_is_the_weighted_sum_of_matching_and_regression(form, average):
    student, teacher, layer = torch.randn(6, 5, 4, 4), torch.randn(6, 7), nn.Linear(7, 4)
    made = connector((5, 4, 4), 7)
    loss = Representation(made, Classifier(layer), alpha=2.0, beta=5.0, form=form, average=average)
    feature = made(student).mean(dim=(2, 3))
    wanted = 2 * feature_matching_loss(feature, teacher, average=average)
    wanted = wanted + 5 * softmax_regression_loss(layer(feature), layer(teacher), form=form, average=average)
    assert torch.allclose(loss(student, teacher, layer(teacher)), wanted)


@pytest.mark.parametrize(("alpha", "beta"), [(3.0, 0.0), (0.0, 3.0)])
def test_either_weight_can_be_nothing(alpha, beta):
    student, teacher, layer = torch.randn(6, 5, 4, 4), torch.randn(6, 7), nn.Linear(7, 4)
    made = connector((5, 4, 4), 7)
    feature = made(student).mean(dim=(2, 3))
    wanted = F.mse_loss(feature, teacher) if alpha else F.mse_loss(layer(feature), layer(teacher))
    loss = Representation(made, Classifier(layer), alpha=alpha, beta=beta)
    assert torch.allclose(loss(student, teacher, layer(teacher)), 3 * wanted)


@pytest.mark.parametrize(("form", "independent"), [("l2", True), ("ce", False), ("kl", False)])
def test_the_classifiers_bias_counts_in_the_forms_of_distributions_alone(form, independent):
    student, teacher = torch.randn(6, 7, 2, 2), torch.randn(6, 7)
    values = []
    for bias in (torch.zeros(4), torch.tensor([3.0, -2.0, 0.5, 1.0])):
        layer = nn.Linear(7, 4)
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(-1, 1, 28).reshape(4, 7))
            layer.bias.copy_(bias)
        loss = Representation(nn.Identity(), Classifier(layer), alpha=0.0, form=form)
        values.append(loss(student, teacher, layer(teacher)).item())
    assert (values[0] == pytest.approx(values[1], rel=1e-5)) is independent


def test_is_zero_where_the_connected_feature_is_the_teachers():
    teacher, layer = torch.rand(6, 7), nn.Linear(7, 4)
    student = teacher[:, :, None, None].expand(6, 7, 3, 2)
    loss = Representation(nn.Identity(), Classifier(layer))
    assert loss(student, teacher, layer(teacher)).item() == pytest.approx(0, abs=1e-12)


def test_the_gradient_goes_through_the_classifier_and_not_to_it():
    layer = frozen(nn.Linear(7, 4))
    student = torch.randn(6, 5, 4, 4, requires_grad=True)
    teacher, logits = torch.randn(6, 7, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    loss = Representation(connector((5, 4, 4), 7), Classifier(layer), alpha=0.0)
    loss(student, teacher, logits).backward()
    assert student.grad.abs().sum() > 0
    assert loss.connector[0].weight.grad.any()
    assert (layer.weight.grad, layer.bias.grad, teacher.grad, logits.grad) == (None, None, None, None)


def test_ignores_the_order_of_the_students_places_and_of_the_teachers_channels():
    student, teacher, layer = torch.randn(6, 7, 4, 4), torch.randn(6, 7), nn.Linear(7, 4)
    loss = Representation(nn.Identity(), Classifier(layer))
    value = loss(student, teacher, layer(teacher)).item()
    order, turned = torch.randperm(7), nn.Linear(7, 4)
    with torch.no_grad():
        turned.weight.copy_(layer.weight[:, order])
        turned.bias.copy_(layer.bias)
    moved = Representation(nn.Identity(), Classifier(turned))
    other = moved(student[:, order].flip(2, 3), teacher[:, order], layer(teacher)).item()
    assert other == pytest.approx(value, rel=1e-5)


def test_the_maps_size_is_free():
    layer = nn.Linear(7, 4)
    loss = Representation(connector((5, 4, 4), 7), Classifier(layer))
    for size in ((1, 1), (2, 7), (9, 3)):
        assert loss(torch.randn(6, 5, *size), torch.randn(6, 7), torch.randn(6, 4)).isfinite()


def test_pooled_is_the_mean_of_a_map_and_a_vector_as_it_is():
    vector, tensor = torch.randn(2, 3), torch.randn(2, 3, 4, 5)
    assert pooled(vector) is vector
    wanted = sum(tensor[:, :, row, column] for row in range(4) for column in range(5)) / 20
    assert torch.allclose(pooled(tensor), wanted)


# --- the teacher's remaining layers


@pytest.mark.parametrize("position", ["stage1", "stage2"])
def test_the_rest_is_a_forward_written_by_hand(position):
    teacher = frozen(networks()["teacher"])
    inputs = torch.randn(3, *SHAPE)
    shape = {"stage1": (3, 16, 16, 16), "stage2": (3, 32, 8, 8)}[position]
    given = torch.randn(shape)
    after = given if position == "stage2" else teacher.stage2(given)
    wanted = teacher.head(teacher.stage3(after).mean(dim=(2, 3)))
    found = Rest(teacher, position)(given, torch.empty(shape), inputs)
    torch.testing.assert_close(found, wanted)
    assert not any(module._forward_hooks for module in teacher.modules())


@pytest.mark.parametrize("position", ["stage1", "stage2"])
def test_on_the_teachers_own_map_the_rest_gives_its_logits(position):
    teacher = frozen(networks()["teacher"])
    inputs = torch.randn(3, *SHAPE)
    own = teacher.stage1(teacher.stem(inputs))
    own = own if position == "stage1" else teacher.stage2(own)
    assert torch.equal(Rest(teacher, position)(own, own, inputs), teacher(inputs))


def test_a_map_of_another_size_is_averaged_to_the_teachers():
    teacher = frozen(networks()["teacher"])
    inputs, given = torch.randn(3, *SHAPE), torch.randn(3, 32, 16, 24)
    small = given.unflatten(3, (8, 3)).unflatten(2, (8, 2)).mean(dim=(3, 5))
    found = Rest(teacher, "stage2")(given, torch.empty(3, 32, 8, 8), inputs)
    torch.testing.assert_close(found, teacher.head(teacher.stage3(small).mean(dim=(2, 3))))


def test_the_gradient_goes_through_the_rest_and_not_to_it():
    teacher = frozen(networks()["teacher"])
    before = state(teacher)
    given = torch.randn(3, 32, 8, 8, requires_grad=True)
    Rest(teacher, "stage2")(given, given, torch.randn(3, *SHAPE)).sum().backward()
    assert given.grad.any()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert changed(before, state(teacher)) == set()


def test_replaced_removes_its_hook_after_an_error():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(RuntimeError):
        replaced(network, "0", torch.zeros(2, 9), torch.zeros(2, 3))
    assert not network[0]._forward_hooks
    assert network(torch.zeros(2, 3)).shape == (2, 2)


# --- the method


def test_the_defaults_are_the_authors():
    stage = planned()
    assert (stage.name, stage.epochs, stage.learns) == ("srrl", 1, ("student",))
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 1.0, "conv4": 1.0}
    assert stage.terms["conv4"].reads == (
        Tap("student", "stage3"),
        Tap("teacher", "head", "input"),
        Tap("teacher"),
    )
    assert stage.terms["hard"].reads == (Tap("student"), Tap("batch", "targets"))
    loss = stage.terms["conv4"].loss
    layer = loss.above.layer
    student, teacher = torch.randn(6, 64, 4, 4), torch.rand(6, 64)
    feature = loss.connector(student).mean(dim=(2, 3))
    wanted = F.mse_loss(feature, teacher) + F.mse_loss(layer(feature), layer(teacher))
    assert torch.allclose(loss(student, teacher, layer(teacher)), wanted)


def test_the_connector_goes_from_the_students_width_to_the_teachers():
    nets = networks(teacher="resnet8x4")
    loss = planned(nets).terms["conv4"].loss
    assert loss.connector[0].weight.shape == (256, 64, 1, 1)
    assert loss.above.layer is nets["teacher"].head


@pytest.mark.parametrize("form", FORMS)
def test_the_options_reach_the_loss(form):
    stage = planned(alpha=10.0, beta=2.0, form=form, average="batch", hard=0.5)
    assert stage.terms["hard"].weight == 0.5
    loss = stage.terms["conv4"].loss
    student, teacher, logits = torch.randn(6, 64, 4, 4), torch.rand(6, 64), torch.randn(6, 4)
    feature = loss.connector(student).mean(dim=(2, 3))
    wanted = 10 * feature_matching_loss(feature, teacher, average="batch")
    wanted = wanted + 2 * softmax_regression_loss(loss.above.layer(feature), logits, form=form, average="batch")
    assert torch.allclose(loss(student, teacher, logits), wanted)


def test_a_term_of_soft_targets_can_be_added():
    stage = planned(soft=0.9, temperature=3.0)
    assert stage.terms["soft"].weight == 0.9
    assert stage.terms["soft"].reads == (Tap("student"), Tap("teacher"))
    student, teacher = torch.randn(2, 4), torch.randn(2, 4)
    assert torch.equal(stage.terms["soft"].loss(student, teacher), soft_loss(student, teacher, temperature=3.0))


def test_a_layer_can_be_named():
    stage = planned(student_layer="stage2")
    assert stage.terms["conv4"].reads[0] == Tap("student", "stage2")
    assert stage.terms["conv4"].loss.connector[0].in_channels == 32


def test_each_position_has_its_own_connector_and_the_rest_of_the_teacher():
    nets = networks()
    stage = planned(nets, positions=("conv2", "conv3", "conv4"))
    assert list(stage.terms) == ["hard", "conv2", "conv3", "conv4"]
    for position, layer, width in (("conv2", "stage1", 16), ("conv3", "stage2", 32)):
        term = stage.terms[position]
        assert term.reads == (Tap("student", layer), Tap("teacher", layer), Tap("teacher"), Tap("batch", "inputs"))
        assert term.loss.connector[0].weight.shape == (width, width, 1, 1)
        assert term.loss.above.network is nets["teacher"]


def test_at_a_middle_position_both_terms_are_of_the_connected_map():
    nets = networks()
    stage = planned(nets, positions=("conv3",), alpha=2.0, beta=5.0)
    loss, teacher = stage.terms["conv3"].loss, frozen(nets["teacher"])
    inputs = torch.randn(3, *SHAPE)
    student, own = torch.randn(3, 32, 8, 8), teacher.stage2(teacher.stage1(teacher.stem(inputs)))
    connected = loss.connector(student)
    wanted = 2 * F.mse_loss(connected.mean(dim=(2, 3)), own.mean(dim=(2, 3)))
    wanted = wanted + 5 * F.mse_loss(teacher.head(teacher.stage3(connected).mean(dim=(2, 3))), teacher(inputs))
    torch.testing.assert_close(loss(student, own, teacher(inputs), inputs), wanted)


@pytest.mark.parametrize("positions", [("conv4",), ("conv2", "conv3", "conv4")])
def test_training_leaves_the_teacher_and_its_statistics_as_they_were(positions):
    nets = networks()
    before = {name: state(network) for name, network in nets.items()}
    stage = planned(nets, positions=positions)
    connectors = {name: state(stage.terms[name].loss.connector) for name in positions}
    nets["teacher"].train()
    trained(stage, nets)
    assert changed(before["teacher"], state(nets["teacher"])) == set()
    assert all(parameter.grad is None for parameter in nets["teacher"].parameters())
    assert changed(before["student"], state(nets["student"])) == set(before["student"])
    for name in positions:
        assert changed(connectors[name], state(stage.terms[name].loss.connector)) == set(connectors[name])


def test_the_student_is_moved_by_the_regression_alone():
    """What a classifier under no_grad would lose."""
    nets = networks()
    before = state(nets["student"])
    trained(planned(nets, hard=0.0, alpha=0.0), nets)
    moved = changed(before, state(nets["student"]))
    assert {name for name in before if name.startswith("stage")} <= moved
    assert not {name for name in moved if name.startswith("head")}


def test_maps_of_unequal_size_meet():
    nets = networks()
    nets["student"].stage3[0].conv1.stride = (1, 1)
    nets["student"].stage3[0].shortcut.conv.stride = (1, 1)
    stage = planned(nets)
    assert trained(stage, nets)[0].terms["conv4"] > 0


def test_networks_without_maps_take_the_vector_form():
    nets = networks("mlp", "mlp", shape=(6,), hidden=(8, 8))
    stage = planned(nets, shape=(6,))
    loss = stage.terms["conv4"].loss
    assert stage.terms["conv4"].reads[0].side == "input"
    assert type(loss.connector[0]) is nn.Linear
    trained(stage, nets, (6,))


def test_a_transformer_can_teach_a_network_with_maps():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 12, 4, stride=4)
            self.mix = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)
            self.head = nn.Linear(12, 4)

        def forward(self, inputs):
            return self.head(self.mix(self.patches(inputs).flatten(2).mT)[:, 0])

    nets = networks()
    nets["teacher"] = Tokens()
    stage = planned(nets)
    assert stage.terms["conv4"].reads[1] == Tap("teacher", "head", "input")
    assert stage.terms["conv4"].loss.connector[0].weight.shape == (12, 64, 1, 1)
    trained(stage, nets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0, "beta": 0.0}, "alpha and beta are both 0, so the teacher has no effect: use the method alone"),
        ({"alpha": -1.0}, "alpha is -1.0: it must be at least 0"),
        ({"beta": float("nan")}, "beta is nan: it must be at least 0"),
        ({"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
        ({"positions": ()}, r"positions is \[\]: name conv2, conv3 and conv4"),
        ({"positions": ("conv3", "conv3")}, "each at most once"),
        ({"positions": ("conv5",)}, "positions is .*conv5"),
        ({"positions": ("conv3",), "student_layer": "stage2"}, "student_layer is the student's layer for conv4"),
        ({"student_layer": "stage7"}, "the student has no layer 'stage7'"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)


def test_too_few_sections_are_refused():
    nets = networks()
    conv = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()]
    nets["student"] = nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    with pytest.raises(LimbeckError, match="srrl at conv2 needs 3 sections, the student has 2"):
        planned(nets, positions=("conv2",))


def test_a_teacher_whose_map_is_given_by_a_module_that_runs_again_is_refused():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
            self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
            self.relu = nn.ReLU()
            self.head = nn.Linear(8, 4)

        def forward(self, inputs):
            return self.head(self.relu(self.conv2(self.relu(self.conv1(inputs)))).mean(dim=(2, 3)))

    nets = {"student": networks()["student"], "teacher": Again()}
    with pytest.raises(
        LimbeckError, match=r"replaces the output of teacher.relu \(run 0\), a module that runs more than once"
    ):
        planned(nets, positions=("conv3",))
    planned(copy.deepcopy(nets))


def test_batches_of_one_are_refused_where_batchnorm_would_see_one_value():
    nets = networks("mlp", "mlp", shape=(6,), hidden=(8,))
    with pytest.raises(LimbeckError, match=r"srrl at conv4 applies a BatchNorm to .*, which needs at least 2 samples"):
        planned(nets, shape=(6,), batch_size=1)
    planned(batch_size=1)


def test_a_student_layer_that_gives_tokens_is_refused():
    student = build("timm:vit_tiny_patch16_224", classes=4, shape=(3, 16, 16), img_size=16, patch_size=4, depth=1)
    nets = {"student": student, "teacher": build("resnet8", classes=4, shape=(3, 16, 16))}
    given = arrays(torch.rand(12, 3, 16, 16), torch.arange(12) % 4)
    with pytest.raises(LimbeckError, match=r"srrl reads maps .* and vectors .*, but student.blocks gives \(17, 192\)"):
        plan(partial(srrl, student_layer="blocks"), nets, given, Training(1, 4, sgd(lr=0.1), constant()))
