"""Students with ``init: pruned``, from the recipe to the file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.comparison.sweep import Sweep
from limbeck.core import LimbeckError
from limbeck.data import load, normalise
from limbeck.evaluate import parameters
from limbeck.experiment import pruning, results
from limbeck.experiment.events import Trained
from limbeck.experiment.forecast import forecast
from limbeck.experiment.networks import NetworkFactory
from limbeck.experiment.prepared import Prepared
from limbeck.experiment.run import Experiment
from limbeck.models import NetworkSpec, build, load_network, save_network
from limbeck.models.inputs import as_deployed
from limbeck.models.narrowing import narrow
from limbeck.recipe.read import RecipeError, dump, read

RECIPE = """\
name: tiny
data: {source: digits, limit: 64}
teacher:
  model: resnet8
  train: {epochs: 1, batch_size: 16}
student: {init: pruned, of: teacher, macs: 0.25}
method: kd
train: {epochs: 2, batch_size: 16}
evaluate: {latency_runs: 1}
precision: 32
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIMBECK_DATA", raising=False)


def recipe(*settings):
    Path("recipe.yaml").write_text(RECIPE)
    return read(Path("recipe.yaml"), overrides=settings)


def ran(*settings, folder="run"):
    pytest.importorskip("torch_pruning")
    trial = Experiment(recipe(*settings), Path(folder))
    list(trial.run())
    return results.read(Path(folder))


def started(teacher, *settings, seed=0):
    """The student before its training, pruned from this teacher."""
    pytest.importorskip("torch_pruning")
    given = recipe(*settings)
    data = load(**given.data.model_dump())
    factory = Prepared(NetworkFactory(given, data), given, data)
    torch.manual_seed(seed)
    student, _, _ = factory.student(seed, "kd")
    factory.prune({"student": student, "teacher": teacher})
    return student


def small():
    torch.manual_seed(0)
    return build("resnet8", classes=10, shape=(1, 8, 8))


def test_a_run_trains_the_pruned_teacher_and_saves_it_so_that_it_loads_to_the_bit():
    result = ran("seeds=[0, 1]")
    for student in (result.student, result.alone):
        assert 0.2 < student.macs / result.teacher.macs <= 0.25
    assert result.student.parameters == result.alone.parameters < result.teacher.parameters / 2
    network, spec = load_network("run/kd/seed0/student.safetensors")
    assert spec.pruned
    assert spec.name == "resnet8"
    data = load(**recipe().data.model_dump())
    inputs = normalise(data.test.inputs, spec.mean, spec.std)
    with torch.no_grad():
        assert (network(inputs).argmax(1) != data.test.targets).sum() == result.student.test.errors


def test_a_run_that_is_interrupted_resumes_to_the_same_bits():
    ran(folder="whole")
    trial = Experiment(recipe(), Path("part"))
    for event in trial.run():
        if isinstance(event, Trained) and event.job.arm == "kd":
            break
    list(Experiment(recipe(), Path("part"), resume=True).run())
    for name in ("alone/seed0", "kd/seed0", "teacher/seed0"):
        file = next(Path("whole", name).glob("*.safetensors")).name
        one, other = load_file(f"whole/{name}/{file}"), load_file(f"part/{name}/{file}")
        assert all(torch.equal(one[key], other[key]) for key in one.keys() | other.keys())
    found = [results.read(Path(folder)) for folder in ("whole", "part")]
    assert found[0].student.test.errors == found[1].student.test.errors


def test_a_comparison_trains_and_restores_pruned_students():
    pytest.importorskip("torch_pruning")
    sweep = Sweep(recipe("methods=[kd, srrl]", "train.epochs=1"), Path("compared"))
    list(sweep.run())
    found = sweep.conclude()
    assert len({result.parameters for result in found.runs if result.arm != "teacher"}) == 1
    assert all(result.macs <= found.teacher.macs / 4 for result in found.runs if result.arm != "teacher")


def test_a_plan_shows_the_pruned_student():
    pytest.importorskip("torch_pruning")
    shown = forecast(Experiment(recipe(), Path("run")), ())
    assert shown.networks["student"].macs <= shown.networks["teacher"].macs / 4


def test_the_arms_of_a_seed_start_from_the_same_channels_of_its_teacher():
    teacher = small()
    one, other = (started(teacher, seed=seed).state_dict() for seed in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)
    rows = {tuple(row.flatten().tolist()) for row in teacher.stem.conv.weight}
    assert {tuple(row.flatten().tolist()) for row in one["stem.conv.weight"]} <= rows
    assert torch.equal(one["head.bias"], teacher.head.bias)


def test_from_scratch_has_the_same_layers_and_random_weights_of_the_seed():
    teacher = small()
    kept, zero, again, one = (
        started(teacher, f"student.from_scratch={scratch}", seed=seed)
        for scratch, seed in (("false", 0), ("true", 0), ("true", 0), ("true", 1))
    )
    assert str(kept) == str(zero)
    weights = [network.stem.conv.weight for network in (kept, zero, again, one)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[1], weights[0])
    assert not torch.equal(weights[1], weights[3])


def test_from_scratch_keeps_the_variance_of_the_outputs_of_a_layer():
    teacher = build("mlp", classes=10, shape=(64,), hidden=(400, 400))
    model = "{name: mlp, hidden: [400, 400]}"
    student = started(teacher, f"teacher.model={model}", "student.from_scratch=true")
    wide, narrow = (network.get_submodule("stage2.linear").weight.detach() for network in (teacher, student))
    assert narrow.shape[1] < 300
    assert narrow.var() * narrow.shape[1] == pytest.approx((wide.var() * wide.shape[1]).item(), rel=0.05)


def test_a_student_is_pruned_from_its_own_weights():
    ran("method=alone", "student={model: resnet8}", folder="first")
    result = ran("student={model: resnet8, weights: first, init: pruned, parameters: 0.5}", "teacher={weights: first}")
    assert 0.4 < result.student.parameters / result.teacher.parameters <= 0.5


def test_a_pruned_network_teaches_learns_on_and_is_pruned_again():
    first = ran("method=alone", "teacher=null", "student={model: resnet8}", folder="first")
    pruned = "student={model: resnet8, weights: first, init: pruned, parameters: 0.5}"
    second = ran("method=alone", "teacher=null", pruned, folder="second")
    resumed = ran("method=alone", "teacher=null", "student={model: resnet8, weights: second}", folder="resumed")
    assert resumed.student.parameters == second.student.parameters < first.student.parameters
    assert load_network("resumed/student.safetensors")[1].pruned
    for teacher in ("{weights: second}", "{model: resnet8, weights: second}"):
        third = ran("student={model: resnet8}", f"teacher={teacher}", "allow=[chance]", folder=f"third{len(teacher)}")
        assert third.teacher.test.errors == second.student.test.errors
    again = ran("teacher={model: resnet8, weights: second}", "allow=[chance]", folder="again")
    assert again.student.macs <= again.teacher.macs / 4
    assert load_network("again/student.safetensors")[1].pruned


def test_a_student_with_the_classifier_of_its_teacher_is_pruned_and_saved():
    result = ran("method=simkd")
    network, spec = load_network("run/student.safetensors")
    assert spec.pruned
    assert spec.reuse is not None
    assert parameters(network) == result.student.parameters
    with pytest.raises(LimbeckError, match="prune the student: the trained network has other layers than its model"):
        Experiment(recipe("teacher={model: resnet8, weights: run}", "allow=[chance]"), Path("again"))


def test_a_teacher_in_a_file_that_reads_other_inputs_gives_a_student_that_reads_them_too():
    form = "teacher.input={mean: 0.5, std: 0.5, size: 10}"
    ran(form, "method=alone", "teacher.input=null", "student={model: resnet8, input: {mean: 0.5, std: 0.5, size: 10}}")
    result = ran("teacher={model: resnet8, weights: run}", "allow=[chance]", folder="second")
    assert load_network("second/student.safetensors")[1].shape == (1, 10, 10)
    assert result.student.macs <= result.teacher.macs / 4


@pytest.mark.parametrize("model", ["fsp_resnet8", "fitnet1", "maxout_mnist", "shufflenet_v1", "shufflenet_v2"])
@pytest.mark.parametrize("share", [0.25, 0.95])
def test_a_network_that_torch_pruning_does_not_support_is_refused_before_training(model, share):
    pytest.importorskip("torch_pruning")
    size = 28 if model == "maxout_mnist" else 32
    with pytest.raises(LimbeckError, match="init: pruned cannot prune the student: torch-pruning does not support it"):
        Experiment(recipe(f"teacher.model={model}", f"data.size={size}", f"student.macs={share}"), Path("run"))
    assert not Path("run").exists()


CONVOLUTION = """
from torch import nn


def net(classes):
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


def test_a_network_without_a_linear_classifier_is_refused_before_training():
    pytest.importorskip("torch_pruning")
    Path("net.py").write_text(CONVOLUTION)
    with pytest.raises(LimbeckError, match="prune the student: its outputs are not those of a linear layer"):
        Experiment(recipe("teacher.model=net.py:net"), Path("run"))


def test_a_share_that_cannot_be_reached_is_refused_before_training():
    pytest.importorskip("torch_pruning")
    with pytest.raises(LimbeckError, match=r"cannot prune the student: got the share 0\.001, the smallest"):
        Experiment(recipe("student.macs=0.001"), Path("run"))


def test_a_network_without_a_count_of_its_macs_is_refused(monkeypatch):
    pytest.importorskip("torch_pruning")
    monkeypatch.setattr(pruning, "macs", lambda network, shape: None)
    with pytest.raises(LimbeckError, match="its multiply-accumulates cannot be counted: write parameters: instead"):
        Experiment(recipe(), Path("run"))


ATTENTION = """
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, classes)

    def forward(self, inputs):
        tokens = self.first(inputs.flatten(1, 2))
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))
"""


def test_a_network_with_layers_that_are_not_supported_is_refused():
    pytest.importorskip("torch_pruning")
    Path("net.py").write_text(ATTENTION)
    with pytest.raises(LimbeckError, match="init: pruned cannot prune the student: "):
        Experiment(recipe("teacher.model=net.py:Net"), Path("run"))


def test_a_network_that_its_file_would_not_give_again_is_refused(monkeypatch):
    pytest.importorskip("torch_pruning")

    def wrong(network, shapes):
        narrow(network, shapes)
        network.stem.norm.eps *= 1000

    monkeypatch.setattr(pruning, "narrow", wrong)
    with pytest.raises(LimbeckError, match="prune the student: its weights file would give another network"):
        Experiment(recipe(), Path("run"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["student.macs=null"], "student: init: pruned needs either macs: or parameters:, .*; got neither"),
        (["student.parameters=0.5"], "student: init: pruned needs either .*; got macs: and parameters:"),
        (["student.macs=1"], "student.macs: got 1"),
        (["student.macs=0"], "student.macs: got 0"),
        (["student.init=as_is", "student.model=resnet8"], "student.macs: got 0.25, but only init: pruned uses macs:"),
        (["student.init=as_is", "student.model=resnet8"], "student.of: got 'teacher', but only init: pruned uses of:"),
        (["student={model: resnet8, init: pruned, macs: 0.5}"], "student.init: got 'pruned' without weights"),
        (["student.model=resnet14"], "student.of: with of: teacher, these keys are those of the teacher: remove model"),
        (["student.weights=x.pt"], "student.weights: with of: teacher, the weights are those of the teacher"),
        (["teacher={weights: run}"], "student: of: teacher needs the network of the teacher: write model: in the"),
        (["teacher.members=2"], "student.of: of: teacher needs a teacher: block with one network"),
        (["teacher=null", "student.model=resnet8", "method=alone"], "student.of: of: teacher needs a teacher: block"),
        (["seeds=[0, 1]", "share_first_stage=true"], "share_first_stage: with of: teacher, the students of the seeds"),
        (
            ["teacher.model={name: 'timm:resnet18', pretrained: true}", "student.from_scratch=true"],
            "student.from_scratch: starts from random weights, but the model names pretrained ones",
        ),
    ],
)
def test_contradictions_are_told_before_training(settings, message):
    with pytest.raises(RecipeError, match=message):
        recipe(*settings)


def test_a_teacher_with_other_classes_is_refused():
    pytest.importorskip("torch_pruning")
    ran("method=alone", "teacher=null", "student={model: resnet8, init: as_is}", folder="first")
    order = "classes: ['9', '1', '2', '3', '4', '5', '6', '7', '8', '0']"
    with pytest.raises(LimbeckError, match="of: teacher needs a teacher with the classes of the data"):
        Experiment(recipe(f"teacher={{model: resnet8, weights: first, {order}}}"), Path("run"))


def test_the_recipe_of_a_run_reads_as_the_recipe():
    given = recipe()
    Path("again.yaml").write_text(dump(given))
    assert read(Path("again.yaml")) == given
    assert given.student.model == given.teacher.model


@pytest.mark.parametrize(
    "model", ["mobilenet_v2", "timm:mobilenetv3_small_050", "torchvision:mobilenet_v2", "torchvision:mnasnet0_5"]
)
def test_networks_with_depthwise_layers_and_of_the_libraries_are_pruned_and_saved(model):
    pytest.importorskip("torch_pruning")
    shape = (1, 8, 8) if model == "mobilenet_v2" else (3, 32, 32)
    channels = "" if model == "mobilenet_v2" else ", input: {channels: rgb, size: 32, mean: 0.5, std: 0.5}"
    teacher = build(model, classes=10, shape=shape)
    given = f"teacher={{model: '{model}', train: {{epochs: 1}}{channels}}}"
    student = started(teacher, given, "student={init: pruned, of: teacher, parameters: 0.5}")
    assert 0.45 < parameters(student) / parameters(teacher) <= 0.5
    save_network(student, Path("s.safetensors"), spec=NetworkSpec(model, {}, 10, shape, pruned=True))
    images = torch.randn(2, *shape)
    with as_deployed([student]), torch.no_grad():
        assert torch.equal(load_network("s.safetensors")[0](images), student.eval()(images))
