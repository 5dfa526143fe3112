from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.fitnets import annealed, fitnets, hint_loss, regressor
from limbeck.methods.fitnets_one_stage import fitnets_one_stage, one_stage_regressor
from limbeck.methods.kd import soft_loss
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant, linear
from limbeck.train.engine import make_engine
from limbeck.train.loop import Step, run

ENGINE = make_engine(device="cpu", precision="32")
DATA = arrays(torch.rand(24, 3, 16, 16), torch.arange(24) % 4)
AVERAGES = ["batch", "code", "elements"]


def networks(student="resnet8", teacher="resnet14", shape=(3, 16, 16)):
    torch.manual_seed(1)
    return {"student": build(student, classes=4, shape=shape), "teacher": build(teacher, classes=4, shape=shape)}


def training(*, epochs=3, schedule=None):
    return Training(epochs, 8, sgd(lr=1e-3), schedule or constant())


def planned(method=fitnets, nets=None, *, epochs=3, schedule=None, **options):
    return plan(partial(method, **options), nets or networks(), DATA, training(epochs=epochs, schedule=schedule))


def trained(stages, nets, *, epochs=3):
    """Each stage's networks as they are after its last epoch."""
    after = {}
    for epoch in run(stages, nets, training_batches(DATA, training(epochs=epochs), seed=0, engine=ENGINE), ENGINE):
        after[epoch.stage] = {name: state(network) for name, network in nets.items()}
    return after


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(one, other):
    return {name for name in one if not torch.equal(one[name], other[name])}


def maps(n=3, channels=4, size=(3, 5)):
    return [torch.randn(n, channels, *size, dtype=torch.float64) for _ in range(2)]


def count(module, *, biases=False):
    return sum(p.numel() for p in module.parameters() if biases or p.dim() > 1)


# --- the hint


def loop(student, teacher, average):
    total = 0.0
    for n in range(student.shape[0]):
        for c in range(student.shape[1]):
            for row in range(student.shape[2]):
                for column in range(student.shape[3]):
                    total += (teacher[n, c, row, column].item() - student[n, c, row, column].item()) ** 2
    n, c, height, width = student.shape
    # The code sums over the first place (axis 1 of c, 0, 1, b) and averages over channels, columns and samples.
    return {
        "batch": total / 2 / n,
        "code": total / 2 / (n * c * width),
        "elements": total / (n * c * height * width),
    }[average]


@pytest.mark.parametrize("average", AVERAGES)
def test_is_the_formula_in_loops(average):
    student, teacher = maps()
    assert hint_loss(student, teacher, average=average).item() == pytest.approx(
        loop(student, teacher, average), rel=1e-12
    )


def test_the_default_is_the_papers_equation():
    student, teacher = maps()
    assert hint_loss(student, teacher).item() == hint_loss(student, teacher, average="batch").item()


def test_of_vectors_the_code_is_the_formula():
    """The sum over axis 1 is then the sum over all of a sample."""
    student, teacher = torch.randn(2, 6), torch.randn(2, 6)
    assert hint_loss(student, teacher, average="code").item() == hint_loss(student, teacher).item()


@pytest.mark.parametrize("average", AVERAGES)
def test_ignores_a_common_order_of_channels_and_of_places(average):
    student, teacher = maps()
    rows, columns, channels = torch.randperm(3), torch.randperm(5), torch.randperm(4)
    moved = [one[:, channels][:, :, rows][..., columns] for one in (student, teacher)]
    assert hint_loss(*moved, average=average).item() == pytest.approx(
        hint_loss(student, teacher, average=average).item(), rel=1e-12
    )


@pytest.mark.parametrize("average", AVERAGES)
def test_the_gradient_is_that_of_the_value(average):
    student, teacher = maps()
    assert torch.autograd.gradcheck(lambda s: hint_loss(s, teacher, average=average), student.requires_grad_())


@pytest.mark.parametrize("average", AVERAGES)
def test_is_zero_for_equal_maps_of_one_sample(average):
    student = torch.randn(1, 4, 3, 5, requires_grad=True)
    value = hint_loss(student, student, average=average)
    value.backward()
    assert value.item() == 0
    assert not student.grad.any()


def test_stays_finite_for_activations_of_a_thousand():
    student = (1e3 * torch.randn(1, 64, 8, 8)).requires_grad_()
    hint_loss(student, -student.detach()).backward()
    assert student.grad.isfinite().all()


def test_no_gradient_reaches_the_teacher():
    student, teacher = (one.requires_grad_() for one in maps())
    hint_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.any()


# --- the regressor


@pytest.mark.parametrize(
    ("source", "target", "kernel"),
    [((80, 8, 8), (192, 7, 7), (2, 2)), ((16, 4, 4), (48, 4, 4), (1, 1)), ((5, 9, 4), (7, 3, 4), (7, 1))],
)
def test_the_kernel_takes_the_guided_size_to_the_hints(source, target, kernel):
    made = regressor(source, target)
    assert made[0].kernel_size == kernel
    assert made[0].padding == (0, 0)
    assert made[0].stride == (1, 1)
    assert made(torch.randn(2, *source)).shape == (2, *target)


@pytest.mark.parametrize(
    ("source", "target", "kind", "weights"),
    [
        ((80, 8, 8), (192, 7, 7), "conv", 61_440),
        ((80, 8, 8), (192, 7, 7), "full", 48_168_960),
        ((16, 4, 4), (48, 4, 4), "conv", 768),
    ],
)
def test_the_worked_examples_of_sizes(source, target, kind, weights):
    """CIFAR: layer 2 of the teacher from layer 11 of FitNet 4. MNIST: layer 2 from layer 4. Weights of each piece."""
    with torch.device("meta"):
        plain = regressor(source, target, kind=kind)
        two = regressor(source, target, kind=kind, activation="maxout", pieces=2)
    assert count(plain) == weights
    assert count(two) == 2 * weights


def test_the_convolution_saves_the_published_factor():
    assert 48_168_960 / 61_440 == 7 * 7 * 8 * 8 / (2 * 2)


@pytest.mark.parametrize("kind", ["conv", "full", "upsample"])
@pytest.mark.parametrize("activation", ["relu", "maxout", "none"])
def test_every_kind_gives_the_hints_shape_from_a_map_with_unequal_sides(kind, activation):
    made = regressor((3, 5, 4), (6, 4, 2), kind=kind, activation=activation, pieces=3)
    assert made(torch.randn(2, 3, 5, 4)).shape == (2, 6, 4, 2)


def test_a_smaller_map_is_upsampled_when_it_is_asked_for():
    assert regressor((3, 2, 4), (6, 5, 8), kind="upsample")(torch.randn(2, 3, 2, 4)).shape == (2, 6, 5, 8)


@pytest.mark.parametrize("activation", ["relu", "none"])
def test_of_tokens_and_vectors_the_convolution_is_a_linear_map(activation):
    assert regressor((5, 8), (5, 12), activation=activation)(torch.randn(2, 5, 8)).shape == (2, 5, 12)
    assert regressor((8,), (12,), activation=activation)(torch.randn(2, 8)).shape == (2, 12)


def test_relu_ends_in_relu_and_maxout_in_the_largest_piece():
    inputs = torch.randn(4, 3, 4, 4)
    assert regressor((3, 4, 4), (6, 3, 3))(inputs).min() == 0
    made = regressor((3, 4, 4), (6, 3, 3), activation="maxout", pieces=2)
    pieces = made[0](inputs)
    wanted = torch.stack([torch.maximum(pieces[:, 2 * unit], pieces[:, 2 * unit + 1]) for unit in range(6)], dim=1)
    assert torch.equal(made(inputs), wanted)
    assert made(inputs).min() < 0


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        (
            (3, 4, 4),
            (6, 5, 4),
            {},
            "the hint map, 5x4, is larger than the guided map, 4x4.*regressor: auto or upsample",
        ),
        ((3, 4, 4), (6, 4, 5), {}, "the hint map, 4x5, is larger than the guided map, 4x4"),
        ((3, 4, 4), (6,), {}, r"gives \(3, 4, 4\) and the hint is \(6,\): set regressor: auto or full"),
        ((5, 8), (6, 8), {}, r"gives \(5, 8\) and the hint is \(6, 8\): set regressor: auto or full"),
        ((5, 8), (5, 8), {"activation": "maxout"}, "maxout is for maps and vectors, and this hint is tokens"),
        ((3, 4, 4), (6, 4, 4), {"activation": "maxout", "pieces": 1}, "pieces is 1: a maxout unit has at least 2"),
    ],
)
def test_a_regressor_that_cannot_be_is_refused(source, target, options, message):
    with pytest.raises(LimbeckError, match=message):
        regressor(source, target, **options)


# --- lambda


def test_the_papers_lambda_is_a_line_over_the_stage():
    _, task = planned()
    weight = task.terms["soft"].weight
    assert [weight(progress) for progress in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([4.0, 3.25, 2.5, 1.0])


def test_the_codes_lambda_at_the_epochs_of_its_settings():
    """start 5, saturate 400, 4 -> 1: the step is 3/396, and the first one is taken in epoch 5."""
    step = 3 / 396
    weight = annealed(4.0, 1.0, begin_epoch=5, end_epoch=400, epochs=500)
    wanted = {0: 4.0, 4: 4.0, 5: 4 - step, 202: 4 - 198 * step, 399: 4 - 395 * step, 400: 1.0, 499: 1.0}
    assert {epoch: weight(epoch / 500) for epoch in wanted} == pytest.approx(wanted, rel=1e-12)


def test_the_codes_lambda_is_constant_within_an_epoch():
    weight = annealed(4.0, 1.0, begin_epoch=1, end_epoch=3, epochs=4)
    values = [weight((epoch + part) / 4) for epoch in range(4) for part in (0.0, 0.5, 0.999)]
    assert values == pytest.approx([4.0] * 3 + [3.0] * 3 + [2.0] * 3 + [1.0] * 3)


def test_the_codes_lambda_never_falls_below_zero():
    weight = annealed(1.0, -1.0, begin_epoch=0, end_epoch=3, epochs=5)
    assert [weight(epoch / 5) for epoch in range(5)] == pytest.approx([0.5, 0, 0, 0, 0])


def test_the_code_form_reaches_the_stage():
    _, task = planned(epochs=8, anneal="code", lambda_start=3.0, lambda_end=0.0, anneal_from=2, anneal_until=4)
    weight = task.terms["soft"].weight
    assert [weight(epoch / 8) for epoch in range(6)] == pytest.approx([3, 3, 2, 1, 0, 0])


# --- the stages


def test_has_a_stage_of_the_hint_and_then_one_of_soft_targets():
    hint, task = planned(epochs=7, hint_epochs=2)
    assert (hint.name, hint.epochs, hint.learns) == ("hint", 2, ("student",))
    assert (task.name, task.epochs, task.learns) == ("kd", 7, ("student",))
    assert list(hint.terms) == ["hint"]
    assert hint.terms["hint"].reads == (Tap("student", "stage2"), Tap("teacher", "stage2"))
    assert list(task.terms) == ["hard", "soft"]
    assert task.terms["hard"].weight == 1


def test_hints_of_the_sections_have_a_regressor_each():
    hint, _ = planned(hint="sections")
    assert {name: term.reads for name, term in hint.terms.items()} == {
        f"hint{number}": (Tap("student", f"stage{number}"), Tap("teacher", f"stage{number}")) for number in (1, 2, 3)
    }
    assert len({id(term.loss.connector) for term in hint.terms.values()}) == 3
    assert list(planned(hint="sections", hint_epochs=0)[0].terms) == ["hard", "soft"]


def test_the_hint_has_as_many_epochs_as_the_second_stage_unless_it_says():
    assert [stage.epochs for stage in planned(epochs=4)] == [4, 4]
    assert [stage.name for stage in planned(hint_epochs=0)] == ["kd"]


def test_the_second_stage_softens_both_and_has_no_squared_temperature():
    _, task = planned()
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    wanted = soft_loss(student, teacher, temperature=3.0, temperature_squared=False)
    assert torch.equal(task.terms["soft"].loss(student, teacher), wanted)


def test_the_hints_rate_is_a_factor_on_the_schedule():
    hint, task = planned(schedule=linear(start=1.0, end=0.0), hint_rate=0.1)
    assert [hint.schedule(progress) for progress in (0.0, 0.5)] == pytest.approx([0.1, 0.05])
    assert task.schedule(0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("average", AVERAGES)
def test_the_options_reach_the_regressor_and_the_loss(average):
    hint, _ = planned(average=average, activation="none", hint_layer="stage3", guided_layer="stage1")
    term = hint.terms["hint"]
    assert term.reads == (Tap("student", "stage1"), Tap("teacher", "stage3"))
    student, teacher = torch.randn(2, 16, 16, 16), torch.randn(2, 64, 4, 4)
    (conv, last) = term.loss.connector
    assert conv.kernel_size == (13, 13)
    assert isinstance(last, nn.Identity)
    assert torch.equal(term.loss(student, teacher), hint_loss(conv(student), teacher, average=average))


def test_the_first_stage_trains_the_guided_layers_and_the_regressor_and_nothing_above():
    nets = networks()
    before = {name: state(network) for name, network in nets.items()}
    stages = planned(nets=nets, hint_epochs=2)
    connector = stages[0].terms["hint"].loss.connector
    first = state(connector)
    after = trained(stages[:1], nets)["hint"]
    moved = changed(before["student"], after["student"])
    below = {name for name in before["student"] if name.startswith(("stem", "stage1", "stage2"))}
    assert moved == below
    assert any("running_mean" in name for name in moved)
    assert any(name.startswith("stage3") and "running_mean" in name for name in before["student"])
    assert changed(first, state(connector)) == set(first)
    assert changed(before["teacher"], after["teacher"]) == set()


def test_labels_as_hints_train_the_guided_layers_by_a_classifier():
    term = planned(hint="labels", init="paper")[0].terms["hint"]
    assert [str(tap) for tap in term.reads] == ["student.stage2", "batch.targets"]
    guided, targets = torch.randn(3, 32, 8, 8), torch.tensor([0, 3, 1])
    logits = guided.flatten(1) @ term.loss.connector[1].weight.T + term.loss.connector[1].bias
    assert term.loss(guided, targets).item() == pytest.approx(nn.functional.cross_entropy(logits, targets).item())
    assert term.loss.connector[1].weight.abs().max() <= 0.05


def test_labels_as_hints_need_no_layer_of_the_teacher():
    teacher = nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten(), nn.LogSoftmax(dim=1))  # without a linear classifier
    hint, _ = planned(hint="labels", nets=networks() | {"teacher": teacher})
    assert [str(tap) for tap in hint.terms["hint"].reads] == ["student.stage2", "batch.targets"]


def test_the_second_stage_trains_the_whole_student_without_the_regressor():
    nets = networks()
    stages = planned(nets=nets, epochs=2)
    connector = stages[0].terms["hint"].loss.connector
    second = Step(stages[1], nets)
    assert {id(p) for p in second.parameters()} == {id(p) for p in nets["student"].parameters()}
    before = state(nets["teacher"])
    after = trained(stages, nets, epochs=2)
    kept = state(connector)
    moved = changed(after["hint"]["student"], after["kd"]["student"])
    assert moved == set(after["kd"]["student"])
    assert changed(before, after["kd"]["teacher"]) == set()
    trained(stages[1:], nets, epochs=2)
    assert changed(kept, state(connector)) == set()


def test_the_papers_start_is_drawn_before_training_and_not_while_planning():
    nets = networks(student="fitnet_mnist", teacher="maxout_mnist", shape=(1, 28, 28))
    data = arrays(torch.rand(8, 1, 28, 28), torch.arange(8) % 4)
    before = state(nets["student"])
    setting = Training(1, 4, sgd(lr=0.0), constant())
    options = {"init": "paper", "activation": "maxout", "guided_layer": "layer4", "hint_layer": "layer2"}
    stages = plan(partial(fitnets, **options), nets, data, setting)
    assert changed(before, state(nets["student"])) == set()
    for stage in stages:
        assert bool(stage.prepare) == (stage.name == "hint")
    list(run(stages[:1], nets, training_batches(data, setting, seed=0, engine=ENGINE), ENGINE))
    values = torch.cat([p.detach().flatten() for p in nets["student"].parameters()])
    assert 0.0049 < values.abs().max() <= 0.005
    assert values.mean().abs() < 1e-4
    drawn = torch.cat([p.detach().flatten() for p in stages[0].terms["hint"].loss.parameters()])
    assert 0.049 < drawn.abs().max() <= 0.05
    assert count(stages[0].terms["hint"].loss) == 2 * 768


def test_the_papers_start_is_drawn_once_and_without_a_hint_too():
    nets = networks()
    stages = planned(nets=nets, init="paper", hint_epochs=0)
    assert [stage.name for stage in stages] == ["kd"]
    stages[0].prepare(SimpleNamespace(epoch=0))
    assert max(p.abs().max() for p in nets["student"].parameters()) <= 0.005
    after = state(nets["student"])
    stages[0].prepare(SimpleNamespace(epoch=1))
    assert changed(after, state(nets["student"])) == set()


def test_the_modern_start_leaves_the_networks_as_they_were_built():
    assert all(stage.prepare is None for stage in planned())


def test_is_planned_for_networks_without_maps():
    data = arrays(torch.rand(12, 6), torch.arange(12) % 4)
    nets = {
        "student": build("mlp", classes=4, shape=(6,), hidden=(8, 8)),
        "teacher": build("mlp", classes=4, shape=(6,), hidden=(12, 12, 12)),
    }
    hint, _ = plan(fitnets, nets, data, training())
    assert isinstance(hint.terms["hint"].loss.connector[0], nn.Linear)
    assert count(hint.terms["hint"].loss.connector) == 8 * 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"guided_layer": "stage3", "hint_layer": "stage1", "regressor": "conv"},
            "the hint map, 16x16, is larger than the guided map, 4x4",
        ),
        ({"anneal": "code", "anneal_from": 9, "anneal_until": 9}, "anneal_from is 9 and anneal_until 9"),
        ({"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
        ({"hint_epochs": -1}, "hint_epochs is -1: it must be at least 0"),
        ({"lambda_start": float("nan")}, "lambda_start is nan: it must be at least 0"),
        ({"lambda_end": -1.0}, "lambda_end is -1.0: it must be at least 0"),
        ({"hint": "sections", "hint_layer": "stage2"}, "leave out hint_layer and guided_layer"),
        ({"hint": "labels", "hint_layer": "stage2"}, "hint: labels reads no layer of the teacher"),
        ({"guided_layer": "stage9"}, "the student has no layer 'stage9'"),
        ({"activation": "maxout", "pieces": 1}, "pieces is 1"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)


def test_labels_as_hints_are_refused_for_other_tasks():
    numbers = arrays(torch.rand(8, 3, 16, 16), torch.rand(8, 4), task="regression")
    with pytest.raises(LimbeckError, match="hint: labels needs the cross-entropy of classes"):
        plan(partial(fitnets, hint="labels"), networks(), numbers, training())


# --- the one-stage form


@pytest.mark.parametrize(
    ("source", "target", "kind", "kernel"),
    [
        ((4, 8, 8), (6, 4, 4), nn.Conv2d, (3, 3)),
        ((4, 4, 2), (6, 8, 4), nn.ConvTranspose2d, (4, 4)),
        ((4, 8, 8), (6, 8, 8), nn.Conv2d, (1, 1)),
        ((4, 8, 8), (6, 5, 7), nn.Conv2d, (4, 2)),
        ((4, 8, 8), (6, 4, 8), nn.Conv2d, (5, 1)),
        ((4, 2, 2), (6, 1, 2), nn.Conv2d, (2, 1)),
        ((4, 1, 1), (6, 2, 2), nn.ConvTranspose2d, (4, 4)),
    ],
)
def test_the_benchmarks_regressor(source, target, kind, kernel):
    made = one_stage_regressor(source, target)
    (convolution,) = (layer for layer in made.modules() if hasattr(layer, "kernel_size"))
    assert type(convolution) is kind
    assert convolution.kernel_size == kernel
    given = made(torch.randn(3, *source))
    assert given.shape == (3, *target)
    assert given.min() == 0


def test_the_one_stage_form_is_another_method():
    (stage,) = planned(fitnets_one_stage)
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 1, "hint": 100}
    assert stage.terms["hint"].reads == (Tap("student", "stage2"), Tap("teacher", "stage2"))
    student, teacher = torch.randn(2, 32, 8, 8), torch.randn(2, 32, 8, 8)
    loss = stage.terms["hint"].loss
    assert isinstance(loss.connector[2], nn.BatchNorm2d)
    wanted = nn.functional.mse_loss(loss.connector(student), teacher)
    assert torch.allclose(loss(student, teacher), wanted)


def test_the_one_stage_form_takes_weights_and_layers():
    (stage,) = planned(fitnets_one_stage, hard=0, hint=2.0, guided_layer="stage1", hint_layer="stage3")
    assert {name: term.weight for name, term in stage.terms.items()} == {"hint": 2.0}
    assert stage.terms["hint"].reads == (Tap("student", "stage1"), Tap("teacher", "stage3"))


def test_the_one_stage_form_trains_the_whole_student():
    nets = networks()
    before = {name: state(network) for name, network in nets.items()}
    after = trained(planned(fitnets_one_stage, nets, epochs=1), nets, epochs=1)["fitnets_one_stage"]
    assert changed(before["student"], after["student"]) == set(before["student"])
    assert changed(before["teacher"], after["teacher"]) == set()


@pytest.mark.parametrize(
    ("teacher", "options", "expected"),
    [
        ("resnet8", {}, nn.ReLU),
        ("wrn_16_1", {}, nn.Identity),
        ("wrn_16_1", {"activation": "relu"}, nn.ReLU),
        ("wrn_16_1", {"hint_layer": "stage2.0.relu2", "guided_layer": "stage2"}, nn.ReLU),
    ],
)
def test_the_regressor_ends_as_a_default_hint_does(teacher, options, expected):
    hint = planned(nets=networks(teacher=teacher), **options)[0]
    assert isinstance(list(hint.terms["hint"].loss.connector)[-1], expected)


def test_rates_of_their_own():
    nets = networks()
    first, second = planned(nets=nets, guided_rate=0.5, conv_rate=0.1)
    student = nets["student"]
    names = {parameter: name for name, parameter in student.named_parameters()}

    def rates(stage):
        groups = stage.optimizer(student.parameters()).param_groups
        return {names[parameter]: group["lr"] / 1e-3 for group in groups for parameter in group["params"]}

    hint, task = rates(first), rates(second)
    assert set(hint) == set(task) == set(names.values())
    assert hint["stem.conv.weight"] == pytest.approx(0.1)
    assert hint["stem.norm.weight"] == pytest.approx(1.0)
    assert task["stem.conv.weight"] == task["stage2.0.conv2.weight"] == pytest.approx(0.05)
    assert task["stage2.0.norm2.weight"] == pytest.approx(0.5)
    assert task["stage3.0.conv1.weight"] == pytest.approx(0.1)
    assert task["head.weight"] == pytest.approx(1.0)


def test_rates_are_kept_by_the_schedule_and_move_what_they_say():
    nets = networks()
    before = {name: value.clone() for name, value in nets["student"].named_parameters()}
    stages = planned(nets=nets, epochs=1, hint_epochs=0, guided_rate=0.0)
    trained(stages, nets, epochs=1)
    changed = {name for name, value in nets["student"].named_parameters() if not torch.equal(before[name], value)}
    assert changed
    assert all(name.startswith(("stage3", "head")) for name in changed)


def test_a_maxout_hint_has_a_maxout_regressor_of_its_pieces():
    nets = {
        "student": build("fitnet_mnist", classes=4, shape=(1, 28, 28)),
        "teacher": build("maxout_mnist", classes=4, shape=(1, 28, 28), last_pieces=4),
    }
    data = arrays(torch.rand(12, 1, 28, 28), torch.arange(12) % 4)
    for hint, guided, pieces in (("layer2", "layer4", 2), ("layer3", "layer6", 4)):
        method = partial(fitnets, hint_layer=hint, guided_layer=guided)
        connector = plan(method, nets, data, training())[0].terms["hint"].loss.connector
        assert connector[-1].pieces == pieces


class Headless(nn.Module):
    """Its logits come from a convolution."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, inputs):
        return self.head(self.body(inputs)).mean(dim=(2, 3))


def test_a_named_hint_needs_no_linear_classifier():
    nets = {"student": networks()["student"], "teacher": Headless()}
    hint = planned(nets=nets, hint_layer="body", guided_layer="stage1")[0]
    assert isinstance(hint.terms["hint"].loss.connector[-1], nn.ReLU)


def test_a_network_without_a_middle_is_refused():
    nets = {"student": nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), "teacher": networks()["teacher"]}
    with pytest.raises(LimbeckError, match="no middle layer was found in the student"):
        planned(nets=nets)
