"""Teachers and students that read other inputs than the data has, on the same views."""

import copy
import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

import limbeck
from limbeck.core import LimbeckError
from limbeck.data import normalise
from limbeck.experiment.run import Experiment
from limbeck.models.inputs import Bridge, resized
from limbeck.recipe.read import read

ORDER = (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)  # the digit that each of the teacher's outputs stands for


class Net(nn.Module):
    def __init__(self, side, channels, width=32, classes=10):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, inputs):
        return self.head(self.body(inputs))


def theirs(pixels):
    """How the teacher's own code makes its inputs from pixels: 12 x 12, BGR, 0 to 255 minus a mean."""
    images = resized(pixels.float() / 255, (12, 12)).expand(-1, 3, -1, -1).flip(1) * 255
    return images - torch.tensor([10.0, 60.0, 90.0]).view(1, 3, 1, 1)


THEIRS = limbeck.Input(mean=(10.0, 60.0, 90.0), std=1.0, size=12, channels="bgr", range=255.0)
OURS = {"baseline": False, "epochs": 1, "precision": "32"}


@pytest.fixture(scope="module")
def data():
    return limbeck.load("digits")


@pytest.fixture(scope="module")
def teacher(data):
    """A teacher that its own code trained, and its share of correct test samples in its own code."""
    torch.manual_seed(0)
    network = Net(12, 3, width=64)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    places = torch.tensor([ORDER.index(digit) for digit in range(10)])
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(network(theirs(data.train.inputs) / 50), places[data.train.targets]).backward()
        optimizer.step()
    network.body[1].weight.data /= 50  # its inputs are not divided from now on
    network.eval()
    return network, accuracy(network(theirs(data.test.inputs)).argmax(1), places[data.test.targets])


def accuracy(predicted, targets):
    return (predicted == targets).double().mean().item()


def test_a_teacher_reaches_its_own_accuracy_through_the_bridge(data, teacher):
    network, own = teacher
    before = copy.deepcopy(network.state_dict())
    _, result = limbeck.distill(network, Net(8, 1), data, teacher_input=THEIRS, teacher_classes=ORDER, **OURS)
    assert own > 0.9
    assert result.teacher.test.accuracy == own
    assert not network._forward_pre_hooks
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    reads = "3 x 12 x 12, BGR, values from 0 to 255 normalised with mean 10, 60, 90 and std 1, 1, 1"
    assert f"the teacher reads every view converted to {reads}" in result.notes
    assert any("in another order" in note for note in result.notes)


@pytest.mark.parametrize("left_out", ["teacher_input", "teacher_classes"])
def test_without_the_description_the_run_is_refused_with_the_lines_that_describe_it(data, teacher, left_out):
    described = {"teacher_input": THEIRS, "teacher_classes": ORDER}
    described.pop(left_out)
    with pytest.raises(LimbeckError) as refused:
        limbeck.distill(teacher[0], Net(8, 1), data, **described, **OURS)
    assert left_out in str(refused.value)
    if left_out == "teacher_classes":
        assert f"teacher: {{classes: {list(ORDER)}}}" in str(refused.value)


def test_the_student_reads_its_own_size_and_is_saved_with_it(data, tmp_path):
    large = limbeck.load("digits", size=16)
    reads = limbeck.Input(mean=0.5, std=0.25, size=8)
    student, result = limbeck.distill(
        None, Net(8, 1), large, method="alone", student_input=reads, out=tmp_path, **OURS | {"epochs": 20}
    )
    loaded, spec = limbeck.load_network(tmp_path / "student.safetensors", network=Net(8, 1))
    assert (spec.shape, spec.mean, spec.std) == ((1, 8, 8), (0.5,), (0.25,))
    inputs = (resized(large.test.inputs.float() / 255, (8, 8)) - 0.5) / 0.25
    assert accuracy(loaded.eval()(inputs).argmax(1), large.test.targets) == result.student.test.accuracy > 0.8
    assert not student._forward_pre_hooks


@pytest.mark.parametrize("method", ["kd", "srrl", "mimic", "simkd", "fitnets"])
def test_methods_see_the_classes_in_the_order_of_the_data(data, teacher, method):
    """A method that reads the rows of the classifier gives the same as for a teacher in that order."""
    network, _ = teacher
    in_order = copy.deepcopy(network)
    rows = [ORDER.index(digit) for digit in range(10)]
    with torch.no_grad():
        in_order.head.weight.copy_(network.head.weight[rows])
        in_order.head.bias.copy_(network.head.bias[rows])

    def distilled(of, **described):
        torch.manual_seed(1)
        student, result = limbeck.distill(
            of, Net(8, 1, width=64), data, method=method, teacher_input=THEIRS, **described, **OURS
        )
        return student.state_dict(), result.student.test

    one, other = distilled(network, teacher_classes=ORDER), distilled(in_order)
    assert one[1] == other[1]
    assert all(torch.equal(value, other[0][key]) for key, value in one[0].items())


def test_a_teacher_with_other_classes_besides_those_of_the_data(data):
    torch.manual_seed(0)
    network = Net(8, 1, classes=12)
    labels = ["extra", *map(str, ORDER), "more"]
    taught = training_of(network, data, [labels.index(str(digit)) for digit in range(10)])
    _, result = limbeck.distill(taught, Net(8, 1), data, teacher_classes=labels, **OURS)
    assert result.teacher.test.accuracy > 0.8
    with pytest.raises(LimbeckError, match="the teacher has no class '3', which the data has"):
        limbeck.distill(
            taught, Net(8, 1), data, teacher_classes=["three" if one == "3" else one for one in labels], **OURS
        )


def training_of(network, data, places):
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    inputs = normalise(data.train.inputs, data.mean, data.std)
    for _ in range(40):
        optimizer.zero_grad()
        cross_entropy(network(inputs), torch.tensor(places)[data.train.targets]).backward()
        optimizer.step()
    return network.eval()


class Waves(nn.Module):
    """Makes a network depend on the scale of its inputs."""

    def forward(self, inputs):
        return (4 * inputs).sin()


def test_a_teacher_of_another_common_form_is_refused_with_its_description(data):
    form = limbeck.Input("none", "none")
    torch.manual_seed(0)
    network = nn.Sequential(Waves(), nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    other = Bridge(form, data.shape, data.mean, data.std)
    handle = other.install(network)
    taught = training_of(network, data, list(range(10)))
    handle.remove()
    with pytest.raises(LimbeckError) as refused:
        limbeck.distill(taught, Net(8, 1), data, **OURS)
    assert "teacher: {input: {mean: none, std: none}}" in str(refused.value)
    assert "--allow input" in str(refused.value)
    _, result = limbeck.distill(taught, Net(8, 1), data, teacher_input=form, **OURS)
    assert result.teacher.test.accuracy > 0.85
    _, result = limbeck.distill(taught, Net(8, 1), data, allow=["input", "chance", "permuted"], **OURS)
    assert any("with inputs of another form, as allowed" in note for note in result.notes)


def test_a_recipe_describes_the_teacher(data, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network, own = teacher
    save_file(network.state_dict(), "theirs.safetensors")
    Path("net.py").write_text(NET)
    Path("recipe.yaml").write_text(RECIPE)
    trial = Experiment(read(Path("recipe.yaml")), Path("run"))
    with trial.factory:
        list(trial.run())
    assert trial.result.teacher.test.accuracy == own
    again = Experiment(read(Path("recipe.yaml"), overrides=[*AGAIN]), Path("again"))
    with again.factory:
        list(again.run())
    assert again.result.teacher.test.accuracy == trial.result.student.test.accuracy  # nothing was described


def test_the_stored_outputs_of_a_teacher_are_those_of_its_own_inputs(data, teacher, tmp_path):
    network, _ = teacher
    options = {"cache": {"folder": str(tmp_path / "store")}, "teacher_classes": ORDER, "allow": ["chance", "permuted"]}
    stored = limbeck.distill(network, Net(8, 1), data, teacher_input=THEIRS, **options, **OURS)[1]
    again = limbeck.distill(network, Net(8, 1), data, teacher_input=THEIRS, **options, **OURS)[1]
    assert stored.teacher.test == again.teacher.test
    with pytest.raises(LimbeckError, match=r"the teacher's structure .* is not that which the store was built with"):
        limbeck.distill(network, Net(8, 1), data, teacher_input=replace(THEIRS, range=254.0), **options, **OURS)


def test_a_compiled_teacher_reads_its_own_inputs(data, teacher):
    network, _ = teacher
    described = {"teacher_input": THEIRS, "teacher_classes": ORDER}
    plain, compiled = (
        limbeck.distill(network, seeded(), data, compile=on, **described, **OURS)[1] for on in (False, True)
    )
    assert compiled.student.test.accuracy == pytest.approx(plain.student.test.accuracy, abs=0.01)


def seeded():
    torch.manual_seed(3)
    return Net(8, 1)


AGAIN = ("teacher={weights: run}", "student.input=null")
RECIPE = """\
name: bridge
data: {source: digits}
teacher:
  model: {name: net.py:Net, side: 12, channels: 3, width: 64}
  weights: theirs.safetensors
  input: {mean: [10, 60, 90], std: 1, size: 12, channels: bgr, range: 255}
  classes: [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
student: {model: {name: mlp, hidden: [16]}, input: {mean: 0.4, std: 0.3, size: 8}}
method: kd
train: {epochs: 5}
precision: 32
baseline: false
"""
NET = "from torch import nn\n" + inspect.getsource(Net)
