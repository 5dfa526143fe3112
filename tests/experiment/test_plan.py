import copy
from dataclasses import replace
from functools import partial

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import limbeck
from limbeck.api import distill
from limbeck.connectors import Through, linear
from limbeck.core import TARGETS, Batch, LimbeckError, Stage, Tap, Term, from_student, from_teacher
from limbeck.data import Augment, arrays
from limbeck.data.soft_targets import soft_targets
from limbeck.evaluate import file_bytes, metrics
from limbeck.experiment.arms import label_indices
from limbeck.experiment.events import Job
from limbeck.experiment.measuring import measure, outputs_of
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, Workspace, training_batches
from limbeck.methods import METHODS
from limbeck.models import Ensemble
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.taps import shapes
from limbeck.train.engine import make_engine

ENGINE = make_engine(device="cpu", precision="32")
QUICK = {"device": "cpu", "precision": "32"}
TRAINING = Training(epochs=2, batch_size=16, optimizer=sgd(lr=0.1), schedule=constant())


def samples(count=90):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 6, generator=generator)
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long()


@pytest.fixture(scope="module")
def data():
    return arrays(*samples(), classes=("none", "one", "two"))


def network(width=8, classes=3, seed=1):
    """Written with torch alone."""
    torch.manual_seed(seed)
    layers = [nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, classes)]
    return nn.Sequential(*layers)


def pair():
    return {"student": network(), "teacher": network(16, seed=2)}


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_few_samples_are_taken_from_the_labelled_ones():
    """Otherwise a term on the labels would seem to have no gradient."""
    inputs, targets = samples()
    some = arrays(inputs, targets.where(torch.arange(90) % 9 == 8, -1), classes=("none", "one", "two"))
    training = replace(TRAINING, soft=soft_targets(some.train, 3))
    batch = Workspace(some, training, ENGINE).spread(16)
    assert batch.targets.shape == (16, 3)
    assert (batch.targets.sum(1) == 1).all()
    assert torch.equal(batch.targets.argmax(1), some.train.targets[batch.index])


def task(setup):
    """The shortest method."""
    terms = {"hard": Term(F.cross_entropy, (from_student(), TARGETS))}
    return (Stage("task", terms, setup.epochs, setup.optimizer, setup.schedule),)


def hint(setup, *, layer="2"):
    """A method with a connector of its own, made for the shapes that the dry run found."""
    connector = linear(setup.shape(from_student(layer)), setup.shape(from_teacher("2")))
    terms = {
        "hard": Term(F.cross_entropy, (from_student(), TARGETS)),
        "hint": Term(Through(connector, F.mse_loss), (from_student(layer), from_teacher("2"))),
    }
    return (Stage("hint", terms, setup.epochs, setup.optimizer, setup.schedule),)


class Odd(nn.Module):
    """Gives whatever is made of its logits."""

    def __init__(self, make):
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.make = make

    def forward(self, inputs):
        return self.make(self.layer(inputs))


def measured(module, data, *, teacher=None):
    """A network's result."""
    return measure(Job("kd", 0), module, Workspace(data, TRAINING, ENGINE), teacher=teacher)[0]


# --- plan


def test_a_plan_is_the_methods_stages(data):
    (stage,) = plan(METHODS["kd"], pair(), data, TRAINING)
    assert (stage.name, stage.epochs, stage.learns) == ("kd", 2, ("student",))
    assert set(stage.terms) == {"hard", "soft"}
    assert stage.optimizer is TRAINING.optimizer
    assert stage.schedule is TRAINING.schedule


@pytest.mark.parametrize("method", ["alone", "kd", "logits"])
def test_planning_leaves_the_networks_as_they_were(data, method):
    networks = pair()
    networks["teacher"].eval()
    before = {name: state(network) for name, network in networks.items()}
    plan(METHODS[method], networks, data, TRAINING)
    assert all(same(before[name], state(network)) for name, network in networks.items())
    assert networks["student"].training
    assert not networks["teacher"].training
    assert not any(module._forward_hooks for network in networks.values() for module in network.modules())


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_another_number_of_logits_than_classes_is_refused(data, name):
    networks = pair() | {name: network(classes=4)}
    with pytest.raises(LimbeckError, match=rf"the {name} gives \(4,\) a sample, but the data has 3 classes"):
        plan(METHODS["kd"], networks, data, TRAINING)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda logits: (logits, logits), "student is a tuple, not one tensor"),
        (lambda logits: {"logits": logits}, "student is a dict, not one tensor"),
        (lambda logits: logits[:, :, None], r"the student gives \(3, 1\) a sample"),
        (lambda logits: logits[:, 0], r"the student gives \(\) a sample"),
        (lambda logits: logits @ torch.zeros(7, 2), "the student does not run on samples of shape"),
    ],
)
def test_an_output_that_is_no_row_of_logits_is_refused(data, make, message):
    with pytest.raises(LimbeckError, match=message):
        plan(METHODS["kd"], pair() | {"student": Odd(make)}, data, TRAINING)


def test_a_network_for_other_inputs_is_refused(data):
    with pytest.raises(LimbeckError, match=r"the teacher does not run on samples of shape \(6,\)"):
        plan(METHODS["kd"], pair() | {"teacher": nn.Linear(5, 3)}, data, TRAINING)


@pytest.mark.parametrize("option", ["student_layer", "teacher_layer"])
def test_a_misspelt_tap_is_refused_with_the_nearest(data, option):
    networks = {name: nn.Sequential() for name in ("student", "teacher")}
    for module in networks.values():
        module.add_module("body", nn.Linear(6, 4))
        module.add_module("head", nn.Linear(4, 3))
    with pytest.raises(LimbeckError, match="has no layer 'haed': did you mean head"):
        plan(partial(METHODS["kd"], **{option: "haed"}), networks, data, TRAINING)


def test_a_tap_into_a_network_that_is_not_there_is_refused(data):
    with pytest.raises(LimbeckError, match="there is no network 'teacher': allowed are student, batch"):
        plan(METHODS["kd"], {"student": network()}, data, TRAINING)


@pytest.mark.parametrize("elsewhere", ["student", "teacher"])
def test_networks_may_be_on_different_devices(elsewhere):
    networks = pair()
    networks[elsewhere].to("meta")
    probe = Batch(torch.zeros(2, 6), torch.zeros(2), torch.arange(2), 0)
    assert shapes(networks, [Tap("student"), Tap("teacher")], probe) == {Tap("student"): (3,), Tap("teacher"): (3,)}


def test_a_method_without_stages_is_refused(data):
    with pytest.raises(LimbeckError, match="returns no stages"):
        plan(lambda setup: (), pair(), data, TRAINING)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": -0.1}, "Invalid learning rate"), ({"lr": 0.1, "momentum": 0.0, "nesterov": True}, "Nesterov")],
)
def test_what_torch_refuses_in_an_optimizer_is_told_before_training(data, options, message):
    training = replace(TRAINING, optimizer=sgd(**options))
    with pytest.raises(LimbeckError, match=f"stage 'kd'.*{message}"):
        plan(METHODS["kd"], pair(), data, training)


def test_the_setup_knows_shapes_and_modules(data):
    networks, seen = pair(), []

    def method(setup):
        seen.append(setup)
        return task(setup)

    plan(method, networks, data, TRAINING)
    (setup,) = seen
    assert setup.epochs == 2
    assert setup.shape(from_student()) == setup.shape(from_teacher()) == (3,)
    assert setup.shape(from_student("2")) == (8,)
    assert setup.shape(from_teacher("4", "input")) == (16,)
    assert setup.shape(TARGETS) == ()
    assert setup.shape(Tap("batch", "inputs")) == (6,)
    assert setup.module("teacher", "4") is networks["teacher"][4]
    assert setup.module("student", "") is networks["student"]
    assert setup.teacher_logits == (from_teacher(),)
    with pytest.raises(LimbeckError, match="the student has no layer '9'"):
        setup.shape(from_student("9"))


@pytest.mark.parametrize(
    ("mean", "taps"),
    [
        ("arithmetic", (from_teacher("members.0"), from_teacher("members.1"), from_teacher("members.2"))),
        ("geometric", (from_teacher(),)),
    ],
)
def test_an_ensemble_gives_a_tap_a_member_where_the_mean_is_of_the_members(data, mean, taps):
    seen = []

    def method(setup):
        seen.append(setup.teacher_logits)
        return METHODS["kd"](setup)

    teacher = Ensemble([network(16, seed=seed) for seed in range(3)], mean)
    (stage,) = plan(method, {"student": network(), "teacher": teacher}, data, TRAINING)
    assert seen == [taps]
    assert stage.terms["soft"].reads == (from_student(), *taps)


def test_one_member_is_still_a_teacher(data):
    (stage,) = plan(METHODS["kd"], pair() | {"teacher": Ensemble([network()], "arithmetic")}, data, TRAINING)
    assert stage.terms["soft"].reads == (from_student(), from_teacher("members.0"))


# --- batches, figures, labels


@pytest.mark.parametrize("name", ["epochs", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", None])
def test_a_training_of_no_length_is_refused(name, value):
    given = {"epochs": 1, "batch_size": 8, name: value}
    with pytest.raises(LimbeckError) as caught:
        Training(**given, optimizer=sgd(lr=0.1), schedule=constant())
    assert str(caught.value) == f"{name} is {value!r}: allowed are whole numbers from 1"


def test_training_batches_are_the_training_set_in_the_seeds_order(data):
    training = replace(TRAINING, batch_size=13)
    batches = training_batches(data, training, seed=3, engine=ENGINE)
    first, again = ([batch.index for batch in batches(0)] for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert sorted(torch.cat(first).tolist()) == list(range(len(data.train)))
    assert not torch.equal(torch.cat(first), torch.cat([batch.index for batch in batches(1)]))
    other = training_batches(data, training, seed=4, engine=ENGINE)
    assert not torch.equal(torch.cat(first), torch.cat([batch.index for batch in other(0)]))
    assert {len(batch.targets) for batch in batches(0)} == {13}


def test_excluded_classes_are_not_trained_on(data):
    training = replace(TRAINING, exclude=(0, 2))
    batches = training_batches(data, training, seed=0, engine=ENGINE)
    seen = torch.cat([batch.targets for batch in batches(0)])
    assert set(seen.tolist()) == {1}
    assert abs(len(seen) - int((data.train.targets == 1).sum())) <= 1
    assert set(data.train.targets.tolist()) == {0, 1, 2}


def test_outputs_are_of_eval_mode_in_order_and_leave_the_network_alone(data):
    module = network()
    before = state(module)
    logits = outputs_of(module, data.test, data, ENGINE)
    assert same(before, state(module))
    assert module.training
    module.eval()
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    assert torch.allclose(logits, module((data.test.inputs - mean) / std), atol=1e-5)
    assert torch.equal(logits, outputs_of(module, data.test, data, ENGINE))


def test_the_figures_of_a_network(data):
    module = network()
    figures, outputs = measure(Job("kd", 3), module, Workspace(data, TRAINING, ENGINE))
    assert (figures.name, figures.arm, figures.seed, figures.member) == ("kd/seed3", "kd", 3, None)
    assert torch.equal(outputs, outputs_of(module, data.test, data, ENGINE))
    assert figures.test == metrics(outputs, data.test.targets)
    outputs = outputs_of(module, data.validation, data, ENGINE)
    assert figures.validation == metrics(outputs, data.validation.targets)
    assert figures.test.samples == len(data.test)
    assert figures.validation.samples == len(data.validation)
    assert figures.parameters == 6 * 8 + 8 + 8 + 8 + 8 * 3 + 3
    assert figures.macs == 6 * 8 + 8 * 3
    assert figures.file_bytes == file_bytes(module)
    assert (figures.latency, figures.weights_sha256, figures.trained_as) == (None, None, None)


def test_the_figures_beside_a_teacher(data):
    module = network()
    guide = outputs_of(module, data.test, data, ENGINE)
    figures = measured(module, data, teacher=guide)
    assert figures.test.agreement == 1.0
    assert figures.test.kl_to_teacher == pytest.approx(0.0, abs=1e-9)
    assert (figures.validation.agreement, figures.validation.kl_to_teacher) == (None, None)


def test_without_a_validation_split_it_is_not_measured():
    assert measured(network(), arrays(*samples(), validation=0)).validation is None


@pytest.mark.parametrize(
    ("labels", "indices"), [([], ()), ([0, 2], (0, 2)), (["two", "none"], (2, 0)), (["one", 2], (1, 2))]
)
def test_labels_are_indices_or_names(labels, indices):
    assert label_indices(labels, ("none", "one", "two")) == indices


def test_a_class_that_is_named_by_a_number_goes_by_its_name():
    assert label_indices(["1"], ("9", "1", "4")) == (1,)


@pytest.mark.parametrize("label", [3, -1, -3, True, False, "three", "", "0", "None"])
def test_a_label_that_is_no_class_is_refused(label):
    with pytest.raises(LimbeckError) as caught:
        label_indices([0, label], ("none", "one", "two"))
    assert str(caught.value) == f"there is no class {label!r}: allowed are 0 to 2, or none, one, two"
    with pytest.raises(LimbeckError, match=r"^task.eyes: there is no point "):
        label_indices([label], ("none", "one", "two"), what="task.eyes: there is no point")


# --- distill


def test_distilling_from_a_store_is_distilling_beside_the_teacher_on_the_same_views(tmp_path):
    images = torch.randint(0, 256, (60, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = arrays(images, torch.arange(60) % 3, validation=0)
    losses = {}
    for name, cache in (("live", False), ("kept", {"views": 9, "dtype": "float32", "folder": str(tmp_path)})):
        seen = losses[name] = []
        torch.manual_seed(0)
        networks = [nn.Sequential(nn.Flatten(), nn.Linear(36, 3)) for _ in range(2)]
        options = {"epochs": 3, "batch_size": 16, "augment": Augment(shift=1), "cache": cache, **QUICK}
        result = distill(*networks, data, on_epoch=lambda arm, epoch, seen=seen: seen.append(epoch.loss), **options)[1]
        assert result.decided["cache"]["use"] is bool(cache)
    assert losses["live"] == pytest.approx(losses["kept"], rel=1e-4)
    assert len(losses["kept"]) == 6


def test_what_prevents_a_store_is_said_before_any_training(data, tmp_path):
    def never(arm, epoch):
        raise AssertionError("trained before the store was refused")

    def attempt(teacher, **cache):
        distill(teacher, network(), data, epochs=1, batch_size=16, cache=cache, on_epoch=never, **QUICK)

    folder = str(tmp_path / "outputs")
    distill(network(16, seed=2), network(), data, epochs=1, batch_size=16, cache={"folder": folder}, **QUICK)
    with pytest.raises(LimbeckError, match="the teacher's weights or buffers are not those"):
        attempt(network(16, seed=3), folder=folder)
    with pytest.raises(LimbeckError, match="top_k is 40"):
        attempt(network(16, seed=2), top_k=40)
    with pytest.raises(LimbeckError, match=r"compile is 'maybe': allowed are True and False"):
        distill(network(16, seed=2), network(), data, epochs=1, compile="maybe", on_epoch=never)


def test_distilling_trains_the_student_in_place_and_measures_all(data):
    teacher, student = network(16, seed=2), network()
    before = state(student)
    trained, result = distill(teacher, student, data, epochs=3, batch_size=16, **QUICK)
    assert trained is student
    assert not same(before, state(student))
    assert (result.method, result.seeds) == ("kd", (0,))
    for one in (result.teacher, result.student, result.alone):
        assert (one.seed, one.weights_sha256, one.trained_as, one.teacher_after) == (0, None, None, None)
        assert one.validation is not None
        assert 0 < one.latency.median_ms <= one.latency.p95_ms
    assert None not in (result.student.test.agreement, result.alone.test.kl_to_teacher)
    assert (result.teacher.test.agreement, result.teacher.test.kl_to_teacher) == (None, None)
    assert result.student.parameters == result.alone.parameters < result.teacher.parameters
    guide = outputs_of(teacher, data.test, data, ENGINE)
    assert result.student.test == measured(student, data, teacher=guide).test


def test_a_student_learns_what_its_teacher_knows(data):
    given = {"epochs": 40, "batch_size": 16, "optimizer": {"name": "adam", "lr": 0.02}, **QUICK}
    teacher, known = distill(None, network(32, seed=2), data, method="alone", **given)
    assert known.student.test.accuracy > 0.75
    untrained = measured(network(), data).test.errors
    _, result = distill(teacher, network(), data, baseline=False, **given)
    assert result.teacher.test == known.student.test
    assert result.student.test.errors < untrained
    assert result.student.test.agreement > 0.7


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_the_teacher_leaves_as_it_came(data, precision):
    teacher = network(16, seed=2)
    teacher[1].eval()
    teacher[0].weight.requires_grad_(False)
    teacher[4].weight.grad = torch.ones(3, 16)
    before, modes = state(teacher), [module.training for module in teacher.modules()]
    distill(teacher, network(), data, epochs=2, batch_size=16, device="cpu", precision=precision)
    assert same(before, state(teacher))
    assert [module.training for module in teacher.modules()] == modes
    assert [parameter.requires_grad for parameter in teacher.parameters()] == [False] + 5 * [True]
    assert torch.equal(teacher[4].weight.grad, torch.ones(3, 16))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())


@pytest.mark.parametrize("method", ["kd", hint])
def test_the_same_seed_gives_the_same_bits(data, method):
    found = []
    for disturbed in range(2):
        teacher, student = network(16, seed=2), network()
        torch.manual_seed(disturbed)
        _, result = distill(teacher, student, data, method=method, epochs=2, batch_size=16, seed=5, **QUICK)
        quality = [one.test for one in (result.teacher, result.alone, result.student)]
        found.append((state(student), quality))
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_another_seed_gives_another_student(data):
    students = [network(), network()]
    for seed, student in enumerate(students):
        distill(network(16, seed=2), student, data, epochs=1, batch_size=16, seed=seed, baseline=False, **QUICK)
    assert not same(state(students[0]), state(students[1]))


def test_the_baseline_changes_nothing_for_the_student(data):
    students = [network(), network()]
    results = [
        distill(network(16, seed=2), student, data, epochs=2, batch_size=16, baseline=baseline, **QUICK)[1]
        for baseline, student in zip((True, False), students, strict=True)
    ]
    assert same(state(students[0]), state(students[1]))
    assert [result.alone is not None for result in results] == [True, False]


def test_the_baseline_is_the_same_student_trained_without_the_teacher(data):
    student, other = network(), copy.deepcopy(network())
    _, result = distill(network(16, seed=2), student, data, epochs=2, batch_size=16, seed=3, **QUICK)
    _, alone = distill(None, other, data, method="alone", epochs=2, batch_size=16, seed=3, **QUICK)
    assert replace(result.alone.test, agreement=None, kl_to_teacher=None) == alone.student.test


@pytest.mark.parametrize("method", ["kd", hint])
def test_the_global_generator_is_left_alone(data, method):
    teacher, student = network(16, seed=2), network()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    distill(teacher, student, data, method=method, epochs=1, batch_size=16, **QUICK)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_method_is_a_name_a_block_or_a_function(data):
    def mine(setup):
        return METHODS["kd"](setup, temperature=2.0)

    methods = ["kd", {"name": "kd", "preset": "repdistiller"}, {"name": "kd", "temperature": 2}, mine]
    students, names = [], []
    for method in methods:
        students.append(network())
        _, result = distill(network(16, seed=2), students[-1], data, method=method, epochs=1, baseline=False, **QUICK)
        names.append(result.method)
    assert names == ["kd", "kd", "kd", "mine"]
    states = [state(student) for student in students]
    assert same(states[0], states[1])
    assert same(states[2], states[3])
    assert not same(states[0], states[2])


def test_a_method_may_be_a_callable_without_a_name(data):
    method = partial(METHODS["kd"], temperature=2.0)
    _, result = distill(network(), network(), data, method=method, epochs=1, baseline=False, **QUICK)
    assert result.method == "method"


@pytest.mark.parametrize("method", ["alone", METHODS["alone"]])
def test_of_the_student_alone_there_is_no_baseline(data, method):
    _, result = distill(network(16, seed=2), network(), data, method=method, epochs=1, **QUICK)
    assert [one.name for one in result.runs] == ["teacher/seed0", "alone/seed0"]
    assert result.alone == result.student
    assert result.method == "alone"


def test_every_epoch_is_told(data):
    told = []
    distill(
        network(16, seed=2),
        network(),
        data,
        epochs=2,
        on_epoch=lambda label, epoch: told.append((label, epoch.stage, epoch.number)),
        **QUICK,
    )
    assert told == [("alone", "alone", 1), ("alone", "alone", 2), ("kd", "kd", 1), ("kd", "kd", 2)]


def test_a_classifier_that_both_networks_share_is_read_as_each_ones_own(data):
    student = network(16, seed=3)
    teacher = network(16, seed=2)
    student[4] = teacher[4]
    before = state(teacher)

    def method(setup):
        terms = {
            "hard": Term(F.cross_entropy, (from_student(), TARGETS)),
            "features": Term(F.mse_loss, (from_student("4", "input"), from_teacher("4", "input"))),
        }
        return (Stage("mimic", terms, setup.epochs, setup.optimizer, setup.schedule),)

    losses = []
    distill(
        teacher,
        student,
        data,
        method=method,
        epochs=1,
        baseline=False,
        allow=("shared",),
        on_epoch=lambda _, epoch: losses.append(epoch.terms["features"]),
        **QUICK,
    )
    assert losses[0] > 0.01
    assert same(before, state(teacher))


def test_a_network_cannot_teach_itself(data):
    module = network()
    with pytest.raises(LimbeckError, match="student and teacher are the same module"):
        distill(module, module, data, epochs=1, baseline=False, **QUICK)


@pytest.mark.parametrize("kind", ["images", "pixels", "numpy", "rows"])
def test_any_array_will_do(kind):
    inputs, targets = samples(60)
    given = {
        "images": inputs.reshape(60, 1, 2, 3),
        "pixels": (inputs.reshape(60, 2, 3) * 40 + 120).clamp(0, 255).to(torch.uint8),
        "numpy": numpy.asarray(inputs.double()),
        "rows": inputs,
    }[kind]
    flat = nn.Flatten()
    data = arrays(given, numpy.asarray(targets) if kind == "numpy" else targets)
    student = nn.Sequential(flat, network())
    before = state(student)
    distill(nn.Sequential(flat, network(16)), student, data, epochs=1, baseline=False, **QUICK)
    assert not same(before, state(student))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dk"}, "method.name: there is no method 'dk': did you mean 'dkd'"),
        ({"method": {"name": "kd", "temprature": 2}}, "method.temprature: unknown key 'temprature'"),
        ({"method": {"name": "kd", "temperature": 0}}, "method.temperature: got 0: it must be above 0"),
        ({"method": {"name": "kd", "student_layer": "9"}}, "the student has no layer '9'"),
        ({"optimizer": "sgd"}, "optimizer: the key 'lr' is missing"),
        ({"optimizer": {"name": "adam", "lr": -1.0}}, "optimizer.lr: got -1.0: it must be above 0"),
        ({"schedule": "cosin"}, "schedule.name: there is no schedule 'cosin': did you mean 'cosine'"),
        ({"schedule": {"name": "cosine", "warmup": 2}}, "got warmup 2.0"),
        ({"epochs": 0}, "epochs is 0: allowed are whole numbers from 1"),
        ({"batch_size": 0}, "batch_size is 0: allowed are whole numbers from 1"),
        ({"augment": limbeck.Augment(flip=True)}, "only images (N, C, H, W) can be augmented"),
        ({"device": "tpu"}, "device is 'tpu': this machine has"),
        ({"precision": "16"}, "precision is '16': allowed are auto, 32, bf16"),
    ],
)
def test_what_is_wrong_is_found_before_any_training(data, options, message):
    told = []
    student = network()
    before = state(student)
    with pytest.raises(LimbeckError) as caught:
        distill(network(), student, data, on_epoch=lambda *epoch: told.append(epoch), **{**QUICK, **options})
    assert message in str(caught.value)
    assert told == []
    assert same(before, state(student))


def test_a_method_that_needs_a_teacher_is_refused_without(data):
    with pytest.raises(LimbeckError, match="the method kd needs a teacher, got None"):
        distill(None, network(), data, **QUICK)


# --- the public names


def test_the_public_names_are_all_there():
    for name in limbeck.__all__:
        assert getattr(limbeck, name).__name__ == name
    assert limbeck.distill is distill
    assert sorted(limbeck.__all__) == limbeck.__all__
    listed = {name for names in limbeck._HOMES.values() for name in names}
    assert listed == set(limbeck.__all__)
    assert limbeck.__version__


def test_the_public_names_are_listed():
    assert set(limbeck.__all__) <= set(dir(limbeck))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'limbeck' has no attribute 'nonsense'"):
        limbeck.nonsense  # noqa: B018
    assert not hasattr(limbeck, "__wrapped__")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda student, targets: student.square(),
            r"the term 'task' returns a tensor of shape \(2, 3\): a loss must be a scalar",
        ),
        (
            lambda student, targets: student @ student,
            r"the term 'task' cannot read student \(2, 3\), batch.targets \(2,\): RuntimeError",
        ),
    ],
)
def test_a_loss_that_cannot_read_its_taps_is_refused_before_training(loss, message):
    data = limbeck.arrays(*samples())
    network = nn.Linear(6, 3)

    def method(setup):
        terms = {"task": Term(loss, (Tap("student"), Tap("batch", "targets")))}
        return (Stage("task", terms, setup.epochs, setup.optimizer, setup.schedule),)

    with pytest.raises(LimbeckError, match=message):
        plan(method, {"student": network}, data, TRAINING)


def test_the_dry_run_leaves_the_state_of_a_loss_alone():
    data = limbeck.arrays(*samples())
    norm = nn.BatchNorm1d(3)

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norm

        def forward(self, student):
            return self.norm(student).square().mean()

    def method(setup):
        return (Stage("task", {"task": Term(Loss(), (Tap("student"),))}, 1, setup.optimizer, setup.schedule),)

    plan(method, {"student": nn.Linear(6, 3)}, data, TRAINING)
    assert norm.num_batches_tracked == 0


def test_data_of_one_class_is_refused_before_training():
    inputs, targets = samples()
    with pytest.raises(LimbeckError, match="the data has 1 class, so there is nothing to learn"):
        distill(None, nn.Linear(6, 1), arrays(inputs, torch.zeros_like(targets)), method="alone")


def test_data_that_limbeck_did_not_make_is_refused():
    with pytest.raises(LimbeckError, match=r"data is a tuple: use limbeck\.arrays, limbeck\.dataset or limbeck\.load"):
        distill(None, nn.Linear(6, 3), samples(), method="alone")


def test_a_module_that_a_loss_hides_is_refused():
    hidden = nn.Linear(2, 2)

    def method(setup):
        terms = {"hidden": Term(lambda student: hidden(student).sum(), (from_student(),))}
        return (Stage("hidden", terms, setup.epochs, setup.optimizer, setup.schedule),)

    classes = 2
    given = arrays(torch.randn(20, 3), torch.arange(20) % classes)
    with pytest.raises(LimbeckError, match=r"the term 'hidden' uses parameters that its loss does not own"):
        plan(method, {"student": nn.Linear(3, classes)}, given, Training(1, 4, sgd(lr=0.1), constant()))


@pytest.mark.parametrize("name", ["student", "teacher", "batch"])
def test_a_name_that_is_taken_is_refused(name):
    with pytest.raises(LimbeckError, match=f"networks: the name '{name}' is taken"):
        distill(network(), network(), arrays(*samples()), networks={name: network()}, **QUICK)


def test_a_method_that_trains_a_part_of_the_teacher_trains_a_copy():
    def method(setup):
        terms = {
            "hard": Term(F.cross_entropy, (from_teacher(), TARGETS)),
            "soft": Term(F.mse_loss, (from_student(), from_teacher())),
        }
        return (Stage("part", terms, 1, setup.optimizer, setup.schedule, learns=("student", "teacher.4")),)

    teacher = network()
    before = state(teacher)
    _, result = distill(teacher, network(), arrays(*samples()), method=method, epochs=1, baseline=False, **QUICK)
    assert same(before, state(teacher))
    assert result.student.teacher_after.class_scatter > 0
    assert result.student.class_scatter is None
