"""Any network as the teacher: functions, ONNX, TorchScript, torch.export, and ensembles of these."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import limbeck
from limbeck.core import LimbeckError
from limbeck.experiment.run import Experiment
from limbeck.recipe.read import read

QUICK = {"epochs": 2, "batch_size": 16, "precision": "32", "baseline": False, "progress": False}
ORDER = (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)  # the digit that each output of the permuted teachers stands for
PIXELS = limbeck.Input(mean=0.0, std=1.0, range=255.0)


class Teacher(nn.Module):
    """It reads pixels from 0 to 255, and returns its logits, in another order, beside a feature."""

    def __init__(self, weight):
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.head.weight.data = weight[list(ORDER)] / 255
        self.head.bias.data.zero_()

    def forward(self, inputs):
        flat = inputs.flatten(1)
        return {"feature": flat, "logits": self.head(flat)}


@pytest.fixture(scope="module")
def data():
    return limbeck.load("digits", limit=300)


@pytest.fixture(scope="module")
def weight(data):
    """The weights (10, 64) of a linear classifier of pixels from 0 to 1."""
    pixels = data.train.inputs.flatten(1).float() / 255
    network = nn.Linear(64, 10)
    optimizer = torch.optim.Adam(network.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(pixels), data.train.targets).backward()
        optimizer.step()
    return network.weight.detach()


@pytest.fixture
def teacher(weight):
    return Teacher(weight).eval()


def student():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))


def distill(teacher, data, **options):
    return limbeck.distill(teacher, student(), data, **QUICK | options)


def scripted(teacher):
    return torch.jit.trace(teacher, torch.rand(2, 1, 8, 8), strict=False)


def exported(teacher):
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(teacher, (torch.rand(3, 1, 8, 8),), dynamic_shapes=dynamic).module()


def as_function(teacher):
    return lambda inputs: {name: values.numpy() for name, values in teacher(inputs).items()}


FORMS = [as_function, scripted, exported]


@pytest.mark.filterwarnings("ignore")  # torch deprecates TorchScript
@pytest.mark.parametrize("form", FORMS)
def test_a_teacher_of_every_form_gets_its_own_inputs_and_classes(data, teacher, form):
    given = distill(teacher, data, teacher_input=PIXELS, teacher_classes=ORDER)
    other = distill(form(teacher), data, teacher_input=PIXELS, teacher_classes=ORDER)
    assert given[1].teacher.test.accuracy > 0.7
    assert other[1].teacher.test.accuracy == given[1].teacher.test.accuracy
    pairs = zip(given[0].parameters(), other[0].parameters(), strict=True)
    assert all(torch.allclose(one, another, atol=1e-3) for one, another in pairs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["mimic", "srrl", "rkd", {"name": "kd", "teacher_layer": "head"}])
def test_a_method_that_reads_layers_is_refused_with_the_reason(data, teacher, form, method):
    reason = r"is (a function|TorchScript|a module of torch\.export), .*or a method that reads only outputs, such as kd"
    with pytest.raises(LimbeckError, match=reason):
        distill(form(teacher), data, method=method, teacher_input=PIXELS)


def test_a_program_that_was_exported_with_a_fixed_batch_size_is_refused(data, teacher):
    fixed = torch.export.export(teacher, (torch.rand(3, 1, 8, 8),)).module()
    with pytest.raises(LimbeckError, match=r"Guard failed.*If its batch size is fixed, export it with a dynamic one"):
        distill(fixed, data)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda inputs: inputs.flatten(1), r"the teacher gives \(64,\) a sample, but the data has 10 classes"),
        (lambda inputs: torch.full((len(inputs), 10), torch.nan), "the teacher returns NaN or infinite logits"),
        (lambda inputs: torch.rand(len(inputs), 10) - 9, "the teacher returns different outputs in each run"),
        (lambda inputs: inputs.tolist(), "the teacher returns a list of no tensor"),
        (lambda inputs: inputs.missing, "the teacher does not run on samples of shape .*AttributeError"),
    ],
)
def test_the_outputs_of_a_function_are_checked(data, function, message):
    with pytest.raises(LimbeckError, match=message):
        distill(function, data)


@pytest.mark.parametrize("method", ["mutual", "class_distance"])
def test_a_method_that_trains_its_teacher_refuses_a_function(data, teacher, method):
    with pytest.raises(LimbeckError, match="is a function,"):
        distill(as_function(teacher), data, method=method, teacher_input=PIXELS, teacher_classes=ORDER)


def test_a_function_that_runs_at_every_step_is_told_and_a_store_calls_it_once(data, teacher):
    function = as_function(teacher)
    options = {"teacher_input": PIXELS, "teacher_classes": ORDER}
    told = "the teacher is called in every epoch, which may be slow: cache: true stores its outputs"
    live, stored = (distill(function, data, cache=cache, **options)[1] for cache in (False, True))
    assert told in live.notes
    assert told not in stored.notes
    assert (live.teacher.latency, live.teacher.macs) == (None, None)
    assert live.student.test == stored.student.test


def test_a_stopped_call_with_a_function_resumes_to_the_same_bits(data, teacher, tmp_path):
    options = {"teacher_input": PIXELS, "teacher_classes": ORDER, "cache": False}
    function = as_function(teacher)

    def stop(arm, epoch):
        raise KeyboardInterrupt

    whole = distill(function, data, **options)[0]
    with pytest.raises(KeyboardInterrupt):
        distill(function, data, out=tmp_path / "run", on_epoch=stop, **options)
    resumed = distill(function, data, out=tmp_path / "run", **options)[0]
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), resumed.parameters(), strict=True))
    with pytest.raises(LimbeckError, match="holds a run of another recipe"):
        distill(lambda inputs: function(inputs), data, out=tmp_path / "run", **options)


# --- ensembles


def test_each_member_of_a_list_has_its_own_inputs_and_classes(data, weight, teacher):
    def plain(pixels):
        return pixels.flatten(1) @ weight.T

    options = {
        "teacher_input": [PIXELS, limbeck.Input(mean=0.0, std=1.0)],
        "teacher_classes": [ORDER, None],
        "teacher_output": ["logits", None],
    }
    _, result = distill([teacher, plain], data, **options)
    members = [run.test for run in result.runs if run.arm == "member"]
    assert members[0].accuracy == members[1].accuracy == result.teacher.test.accuracy > 0.7
    with pytest.raises(LimbeckError, match=r"member 0 of the teacher: the teacher's outputs are in another order"):
        distill([teacher, plain], data, **options | {"teacher_classes": None})


@pytest.mark.parametrize(
    ("teachers", "options", "message"),
    [
        (1, {}, "teacher is a list of 1: pass two or more networks, or one without a list"),
        (2, {"teacher_input": [PIXELS]}, "teacher_input has 1 values, but the number of teachers is 2"),
        (2, {"teacher_classes": [ORDER, None, None]}, "teacher_classes has 3 values, but the number of teachers is 2"),
        (2, {"teacher_output": ["logits"] * 3}, "teacher_output has 3 values, but the number of teachers is 2"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(data, teacher, teachers, options, message):
    with pytest.raises(LimbeckError, match=message):
        distill([copy.deepcopy(teacher) for _ in range(teachers)], data, **options)


def test_a_list_that_has_a_module_twice_is_refused(data, teacher):
    with pytest.raises(LimbeckError, match="teacher lists the same module twice: pass a copy"):
        distill([teacher, teacher], data, teacher_input=[PIXELS, None])


# --- recipes

CODE = """
import torch

def load(classes, scale):
    weight = torch.load("weight.pt")
    assert classes == len(weight)
    return lambda inputs: inputs.flatten(1) @ weight.T * scale

def kind(classes):
    return dict
"""
RECIPE = """
name: taught
data: {source: digits, limit: 300}
teacher:
  model: {name: teacher.py:load, scale: 1.0}
  trained: true
  input: {mean: none, std: none}
student: {model: {name: mlp, hidden: [8]}}
method: kd
train: {epochs: 2}
baseline: false
evaluate: {latency_runs: 1}
precision: 32
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, weight):
    monkeypatch.chdir(tmp_path)
    torch.save(weight, "weight.pt")
    Path("teacher.py").write_text(CODE)
    Path("recipe.yaml").write_text(RECIPE)
    return tmp_path


def run(*overrides, out="run", **options):
    trial = Experiment(read(Path("recipe.yaml"), overrides=overrides, check_paths=True), Path(out), **options)
    with trial.factory:
        list(trial.run())
    return trial.result


def test_the_function_of_a_recipe_returns_a_trained_teacher(folder):
    result = run()
    assert result.teacher.test.accuracy > 0.7
    assert run(resume=True) == result


def test_a_changed_file_is_another_run_and_another_store(folder):
    run("cache={folder: store}")
    Path("teacher.py").write_text(CODE + "\n")
    with pytest.raises(LimbeckError, match=r"(?s)holds a run of another recipe.*# teacher\.py: "):
        run("cache={folder: store}", resume=True)
    with pytest.raises(LimbeckError, match=r"the teacher's structure .* is not that which the store was built with"):
        run("cache={folder: store}", out="other")


def test_what_the_function_of_a_recipe_returns_is_checked(folder):
    with pytest.raises(LimbeckError, match=r"teacher\.py:kind returned a type, a model must be a torch\.nn\.Module"):
        run("teacher.model=teacher.py:kind")
    with pytest.raises(LimbeckError, match=r"has no option 'scales': did you mean scale or classes\?"):
        run("teacher.model={name: teacher.py:load, scales: 1.0}")


def test_members_of_a_recipe_have_their_own_forms(folder, teacher):
    Path("net.py").write_text(
        "from torch import nn\n\ndef make(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    torch.save({f"1.{name[5:]}": value for name, value in teacher.state_dict().items()}, "theirs.pt")
    form = f"input: {{mean: 0.0, std: 1.0, range: 255}}, classes: {[*ORDER]}"
    theirs = f"{{model: net.py:make, weights: theirs.pt, {form}}}"
    ours = "{model: {name: teacher.py:load, scale: 1.0}, trained: true, input: {mean: none, std: none}}"
    members = f"teacher={{members: [{theirs}, {ours}], mean: geometric}}"
    result = run(members)
    assert {run.test.accuracy for run in result.runs if run.arm != "kd"} == {result.teacher.test.accuracy}
    assert result.teacher.test.accuracy > 0.7
    assert run(members, resume=True) == result


def test_a_file_of_onnx_teaches(folder, weight):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])],
        "teacher",
        [helper.make_tensor_value_info("x", kind, [8, 1, 8, 8])],
        [helper.make_tensor_value_info("y", kind, [8, 10])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(weight.T.numpy()), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    Path("teacher.onnx").write_bytes(model.SerializeToString())
    result = run("teacher={onnx: teacher.onnx, input: {mean: none, std: none}}")
    function = run(out="function").teacher.test
    assert result.teacher.test.accuracy == function.accuracy
    assert result.teacher.test.cross_entropy == pytest.approx(function.cross_entropy)
    with pytest.raises(LimbeckError, match=r"reads layers of the teacher, which is a file of ONNX"):
        run("teacher={onnx: teacher.onnx, input: {mean: none, std: none}}", "method=mimic", out="other")


# --- auxiliary heads


def test_auxiliary_heads_of_the_student_are_told_and_stay_as_they_are(data, teacher):
    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.aux = student()[:3], nn.Linear(8, 10), nn.Linear(8, 10)

        def forward(self, inputs):
            features = self.body(inputs)
            return (self.head(features), self.aux(features)) if self.training else self.head(features)

    learner = Student()
    before = learner.aux.weight.clone()
    options = {**QUICK, "teacher_input": PIXELS, "teacher_classes": ORDER}
    _, result = limbeck.distill(teacher, learner, data, **options)
    assert "auxiliary outputs of the student are not trained" in result.notes
    assert torch.equal(learner.aux.weight, before)
