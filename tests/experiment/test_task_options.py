"""The block `task` of a recipe and the argument of `limbeck.distill`: the loss of the targets, eyes and a metric."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

import limbeck
from limbeck.cli import app
from limbeck.cli.tables import result_table
from limbeck.core import LimbeckError
from limbeck.experiment.plan import plan
from limbeck.experiment.results import read as read_result
from limbeck.experiment.run import Experiment
from limbeck.experiment.workspace import Training
from limbeck.methods import METHODS
from limbeck.methods.alone import hard_loss
from limbeck.optimizers import sgd
from limbeck.recipe.blocks import HARD_LOSSES as NAMES
from limbeck.recipe.read import RecipeError, read
from limbeck.schedules import constant
from limbeck.tasks import HARD_LOSSES
from limbeck.user_code import code_notices

RECIPE = """\
name: days
data: {source: table, path: days.csv, features: [a, b], targets: [x, y, u, v], task: landmarks}
teacher: {model: {name: mlp, hidden: [16]}, train: {epochs: 2}}
student: {model: {name: mlp, hidden: [4]}}
method: kd
train: {epochs: 2, batch_size: 8}
evaluate: {latency_runs: 1}
precision: '32'
seeds: [0, 1]
"""
CODE = """
import torch
CALLS = []

def l1(outputs, targets):
    CALLS.append(tuple(outputs.shape))
    return (outputs - targets.view_as(outputs)).abs().mean()

def largest(outputs, targets):
    return (outputs - targets.view_as(outputs)).abs().max()

def undefined(outputs, targets):
    return float("nan")

def fails(outputs, targets):
    raise IndexError("no such point")

def text(outputs, targets):
    return {"nme": 1}

def changes(outputs, targets):
    return outputs.mul_(0).sum()

def rows(outputs, targets):
    return (outputs - targets.view_as(outputs)).abs()
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{i % 7},{i % 5},{i % 7 / 7},{i % 5 / 5},{1 + i % 3},{2 + i % 2}" for i in range(60)]
    Path("days.csv").write_text("\n".join(["a,b,x,y,u,v", *rows]))
    Path("mine.py").write_text(CODE)
    Path("recipe.yaml").write_text(RECIPE)


def prepared(*settings, folder="run", **options):
    return Experiment(read(Path("recipe.yaml"), overrides=settings, check_paths=True), Path(folder), **options)


def run(*settings, **options):
    trial = prepared(*settings, **options)
    with trial.factory:
        list(trial.run())
    return trial


def test_the_names_are_those_of_the_losses():
    assert sorted(NAMES) == sorted(HARD_LOSSES)


def test_loss_eyes_and_metric_of_a_recipe():
    plain = run(folder="plain")
    options = "task={hard_loss: mine.py:l1, eyes: [0, 1], metric: mine.py:largest}"
    trial = run(options)
    assert plain.result.metric is None
    assert all(one.own_metric is None for one in plain.result.runs)
    assert trial.result.metric == "largest"
    assert all(one.own_metric > 0 for one in trial.result.runs)
    assert trial.result.student.test.nme != plain.result.student.test.nme
    assert read_result(Path("run")) == trial.result
    values = json.loads(Path("run/kd/seed0/result.json").read_text())
    assert values["own_metric"] == trial.result.student.own_metric
    column = next(one for one in result_table(trial.result).columns if one.header == "largest")
    assert all("±" in cell for cell in column.cells)
    assert run(options, resume=True).result == trial.result


def test_eyes_are_names_or_indices_of_points():
    named = run("task.eyes=[x, u]", "seeds=[0]", folder="named")
    numbered = run("task.eyes=[0, 1]", "seeds=[0]", folder="numbered")
    assert named.data.task_options["eyes"] == (0, 1)
    assert [one.test for one in named.result.runs] == [one.test for one in numbered.result.runs]
    assert named.result.alone.trained_as == numbered.result.alone.trained_as


def test_a_trained_teacher_that_is_no_better_than_chance_is_told_before_the_students_and_after_a_resume():
    command = ["run", "recipe.yaml", "--out", "run", "--set", "seeds=[0]", "--set", "teacher.train.epochs=1"]
    for more in ([], ["--resume"]):
        shown = CliRunner().invoke(app, [*command, *more]).stdout
        told = "note: teacher/seed0: the NME of the teacher on "
        assert shown.count(told) == 1
        assert shown.index("teacher/seed0") < shown.index(told) < shown.index("alone/seed0")
    (note,) = read_result(Path("run")).notes
    assert note.startswith(told.removeprefix("note: "))
    assert "which is no better than" in note


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_by_name(name):
    trial = prepared(f"task.hard_loss={name}")
    assert trial.data.task_options["hard_loss"] is HARD_LOSSES[name]
    assert trial.data.task_options.keys() == {"hard_loss"}


def test_a_metric_that_is_not_finite_is_null():
    result = run("task.metric=mine.py:undefined", "seeds=[0]").result
    assert [one.own_metric for one in result.runs] == [None] * 3
    assert read_result(Path("run")) == result


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("task={hard_loss: wings}", "there is no loss 'wings': did you mean 'wing'. .* and path/to/file.py:function"),
        ("task={hard_loss: other.py:l1}", "task.hard_loss: there is no file .*other.py"),
        ("task={metric: largest}", "got 'largest': it must be path/to/file.py:function"),
        ("task={metric: other.py:l1}", "task.metric: there is no file .*other.py"),
        ("task={eyes: [0]}", "task.eyes"),
        ("task={eyes: [0, -1]}", "task.eyes.1: got -1: it must be at least 0"),
        ("task={metrics: mine.py:l1}", "unknown key 'metrics': did you mean 'metric'"),
    ],
)
def test_a_wrong_block_is_refused_with_its_place(setting, message):
    with pytest.raises(RecipeError, match=message):
        read(Path("recipe.yaml"), overrides=[setting], check_paths=True)


DIGITS = ("data={source: digits, limit: 60}",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["task={eyes: [0, 2]}"], "there is no point 2: allowed are 0 to 1, or x, u"),
        (["task={eyes: [1, 1]}"], "allowed are two different indices"),
        (["task={eyes: [x, eye]}"], "task.eyes: there is no point 'eye': allowed are 0 to 1, or x, u"),
        (["task={hard_loss: mine.py:l2}"], "has no function 'l2': did you mean 'l1'"),
        (["task={hard_loss: mine.py:rows}"], "'hard' returns a tensor of shape .*: a loss must be a scalar"),
        (["task={hard_loss: mine.py:fails}"], "term 'hard' cannot read .*: IndexError: no such point"),
        (["task={metric: mine.py:fails}"], "the metric fails failed: IndexError: no such point"),
        (["task={metric: mine.py:text}"], "the metric text failed: TypeError"),
        (["task={metric: mine.py:changes}"], "the metric changes changes its arguments"),
        ([*DIGITS, "task={eyes: [0, 1]}"], "task.eyes is for landmarks; the task of the data is classification"),
        ([*DIGITS, "task={hard_loss: wing}"], "hard_loss: wing is for regression and landmarks .* classification"),
        (["data.targets=[x, y, x2, y2]"], "has no column 'x2'"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_training(settings, message):
    with pytest.raises(LimbeckError, match=message):
        prepared(*settings)
    assert not Path("run").exists()


def test_a_face_without_a_size_is_refused():
    text = Path("days.csv").read_text().splitlines()
    Path("days.csv").write_text("\n".join([*text, "1,1,3,3,3,3"]))
    with pytest.raises(LimbeckError, match=r"sample .* has size 0, because all points are the same"):
        prepared("data.validation=0")
    Path("days.csv").write_text("\n".join([*text[:3], "1,1,3,3,3,3"]))
    with pytest.raises(LimbeckError, match=r"sample .* has size 0, because points 1 and 0 are the same"):
        prepared("data.validation=0", "task.eyes=[1, 0]")


# other networks, or no term of the labels
WITHOUT = ("mutual", "assistants", "born_again", "specialists", "logits", "mimic", "simkd")


@pytest.mark.parametrize("name", [name for name in METHODS if name not in WITHOUT])
def test_every_term_of_the_labels_is_the_loss_of_the_user(name):
    data = limbeck.arrays(torch.rand(60, 1, 8, 8), torch.arange(60) % 3)

    def own(outputs, targets):
        return functional.cross_entropy(outputs, targets)

    def network():
        convolution = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)]
        return nn.Sequential(*convolution, nn.BatchNorm2d(8), nn.ReLU(), *headed())

    def headed():
        return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)

    training = Training(1, 8, sgd(lr=0.1), constant())
    networks = {"student": network(), "teacher": network()}
    stages = plan(METHODS[name], networks, replace(data, task_options={"hard_loss": own}), training)
    losses = [term.loss for stage in stages for term in stage.terms.values()]
    assert own in losses
    assert hard_loss not in losses


def test_functions_in_distill_and_what_identifies_them(tmp_path):
    data = limbeck.arrays(torch.rand(60, 4), torch.rand(60, 2), task="regression")

    def own(outputs, targets):
        return (outputs - targets).abs().mean()

    def another(outputs, targets):
        return (outputs - targets).abs().mean() + 1

    def trained(**task):
        quick = {"epochs": 1, "precision": "32", "progress": False, "out": tmp_path / "out"}
        return limbeck.distill(None, nn.Linear(4, 2), data, method="alone", task=task, **quick)[1]

    torch.manual_seed(0)
    result = trained(hard_loss=own, metric=own)
    assert result.metric == "own"
    assert result.student.own_metric == pytest.approx(result.student.test.mean_absolute_error)
    assert result.student.trained_as is None
    torch.manual_seed(0)
    assert trained(hard_loss=own, metric=own).student == result.student
    torch.manual_seed(0)
    with pytest.raises(LimbeckError, match="holds a run of another recipe"):
        trained(hard_loss=another, metric=own)


def test_a_metric_of_a_classification_sees_no_sample_without_a_label():
    labels = torch.arange(60) % 3
    labels[::2] = -1
    data = limbeck.arrays(torch.rand(60, 4), labels)
    task = {"metric": functional.cross_entropy}
    result = limbeck.distill(None, nn.Linear(4, 3), data, method="alone", epochs=1, task=task, progress=False)[1]
    assert result.student.own_metric == pytest.approx(result.student.test.cross_entropy)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"eyes": max}, "task: eyes: got"),
        ({"loss": max}, "unknown key 'loss'"),
        ({"hard_loss": "wings"}, "there is no loss 'wings'"),
        ({"hard_loss": nn.Linear(2, 2)}, "task.hard_loss has parameters"),
    ],
)
def test_distill_refuses_other_options(task, message):
    data = limbeck.arrays(torch.rand(60, 4), torch.rand(60, 2), task="regression")
    with pytest.raises(LimbeckError, match=message):
        limbeck.distill(None, nn.Linear(4, 2), data, method="alone", epochs=1, task=task)


def test_the_code_is_announced_and_decides_the_identity_of_a_run():
    settings = ("task={hard_loss: mine.py:l1, metric: mine.py:largest}", "seeds=[0]", "method=alone", "teacher=null")
    recipe = read(Path("recipe.yaml"), overrides=settings)
    assert [notice.split(" (")[1] for notice in code_notices(recipe.model_dump())] == [
        "function l1)",
        "function largest)",
    ]
    first = run(*settings)
    same = run(*settings, folder="same")
    Path("mine.py").write_text(CODE + "\n# changed")
    other = run(*settings, folder="other")
    known = [one.result.student.trained_as for one in (first, same, other)]
    assert known[0] == known[1] != known[2]
    with pytest.raises(LimbeckError, match="holds a run of another recipe"):
        prepared(*settings, resume=True)


def test_a_student_alone_is_only_reused_for_the_same_task():
    base = ("method=alone", "teacher=null", "seeds=[0]", "data.targets=[x, y]")
    tasks = [run(*base, f"data.task={task}", folder=task) for task in ("regression", "multi_label")]
    again = run(*base, "data.task=regression", "task.hard_loss=smooth_l1", folder="smooth")
    assert len({one.result.student.trained_as for one in (*tasks, again)}) == 3
