"""Options of a training in a recipe and in `limbeck.distill`: what is kept, what is written, and errors."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import limbeck
from limbeck.core import LimbeckError
from limbeck.experiment import fit as fit_module
from limbeck.experiment.events import Found
from limbeck.experiment.results import read as read_result
from limbeck.experiment.run import Experiment
from limbeck.methods import METHODS
from limbeck.recipe.read import read, smoke

RECIPE = """\
name: tiny
data: {source: digits, limit: 96}
teacher: {model: {name: mlp, hidden: [16]}, train: {epochs: 3, batch_size: 32, keep: best}}
student: {model: {name: mlp, hidden: [8]}}
method: kd
train: {epochs: 4, batch_size: 32}
evaluate: {latency_runs: 1}
precision: 32
"""
QUICK = {"epochs": 4, "batch_size": 16, "device": "cpu", "precision": "32", "baseline": False, "cache": False}
OPTIONS = {"clip": 1.0, "accumulate": 2, "ema": 0.9, "warmup": 1, "rates": {"0": 0.5}, "keep": "best", "stop_after": 2}
FREEZE = {"freeze": {"layers": [0], "epochs": 1}}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)


def recipe(*settings):
    return read(Path("recipe.yaml"), overrides=settings)


def scored(monkeypatch, *scores):
    """Give the students of each training these scores on the validation split, one an epoch, then the last again."""
    given = {}

    def score(network, workspace):
        seen = given.setdefault(id(network), list(scores))
        return seen.pop(0) if len(seen) > 1 else seen[0]

    monkeypatch.setattr(fit_module, "score", score)


def lines(folder, job):
    every = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return [line for line in every if line["job"] == job]


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def data():
    torch.manual_seed(0)
    targets = torch.arange(120) % 3
    return limbeck.arrays(torch.randn(120, 6) + 2 * targets[:, None], targets)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_result_says_which_epoch_was_kept_and_the_training_stops(monkeypatch):
    scored(monkeypatch, 0.5, 0.7, 0.6)
    trial = Experiment(recipe("train.keep=best", "train.stop_after=1"), Path("run"))
    list(trial.run())
    result = read_result(Path("run"))
    assert (result.teacher.best_epoch, result.alone.best_epoch, result.student.best_epoch) == (2, 2, 2)
    assert len(lines("run", "teacher/seed0")) == 3
    assert len(lines("run", "kd/seed0")) == 3
    again = Experiment(recipe("train.epochs=2", "train.keep=best", "train.schedule=constant"), Path("again"))
    list(again.run())  # the students of two epochs, of which the second is the best
    both = Experiment(recipe("train.keep=best", "train.stop_after=1", "train.schedule=constant"), Path("stopped"))
    list(both.run())
    one, other = (limbeck.load_network(f"{run}/student.safetensors")[0] for run in ("again", "stopped"))
    assert same(one, other)


def test_a_student_alone_that_is_found_beside_the_run_keeps_its_best_epoch(monkeypatch):
    scored(monkeypatch, 0.5, 0.7, 0.6)
    for name in ("one", "other"):
        trial = Experiment(recipe("train.keep=best", f"name={name}"), Path("runs") / name)
        found = [event for event in trial.run() if isinstance(event, Found)]
    assert found
    assert read_result(Path("runs/other")).alone.best_epoch == 2


@pytest.mark.parametrize(("training", "reused"), [({}, True), ({"keep": "best"}, False), ({"stop_after": 3}, False)])
def test_a_student_alone_that_a_validation_split_selected_is_not_reused_with_another_one(data, training, reused):
    options = QUICK | {"baseline": True, "training": training}
    torch.manual_seed(2)
    teacher = nn.Linear(6, 3)
    other = replace(data, validation=data.test)
    limbeck.distill(teacher, network(), data, out="runs/one", allow=["chance"], **options)
    limbeck.distill(teacher, network(), other, out="runs/other", allow=["chance"], **options)
    one, two = (read_result(Path("runs") / name).alone for name in ("one", "other"))
    assert (one.trained_as == two.trained_as) == reused


def test_an_error_in_the_training_of_the_teacher_names_its_block():
    with pytest.raises(LimbeckError, match=r"teacher\.train: the network has no layer 'stag1': did you mean stage1"):
        Experiment(recipe("teacher.train.rates={stag1: 0.1}"), Path("run"))


def in_two_stages(setup):
    (stage,) = METHODS["alone"](setup)
    return replace(stage, name="first"), replace(stage, name="second")


def test_the_best_epoch_is_one_of_the_last_stage(data, monkeypatch):
    scored(monkeypatch, 0.9, 0.9, 0.9, 0.9, 0.1, 0.2, 0.1)
    training = {"keep": "best", "stop_after": 1}
    _, result = limbeck.distill(None, network(), data, method=in_two_stages, training=training, out="run", **QUICK)
    assert result.student.best_epoch == 2
    assert [line["epoch"] for line in lines("run", "in_two_stages/seed0")] == [1, 2, 3, 4, 1, 2, 3]


@pytest.mark.parametrize("setting", ["train.keep=best", "train.stop_after=3", "teacher.train.stop_after=3"])
def test_without_a_validation_split_epochs_are_not_compared(setting):
    with pytest.raises(LimbeckError, match="need a validation split, but the data has none"):
        Experiment(recipe(setting, "data.validation=0", "teacher.train.keep=last"), Path("run"))
    assert not Path("run").exists()


def test_a_smoke_run_has_a_short_warm_up():
    short = smoke(recipe("train.warmup=3", "teacher.train.warmup=2"))
    assert (short.train.warmup, short.teacher.train.warmup, short.train.epochs) == (1, 1, 2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.clp=1", "unknown key 'clp': did you mean 'clip'"),
        ("train.clip=0", "train.clip: got 0: it must be above 0"),
        ("train.ema=1", "it must be below 1"),
        ("train.accumulate=0", "it must be at least 1"),
        ("train.freeze={layers: [], epochs: 1}", "train.freeze.layers"),
        ("train.freeze={layer: [a], epochs: 1}", "unknown key 'layer': did you mean 'layers'"),
        ("train.rates={head: -1}", "it must be above 0"),
        ("train.keep=bst", "did you mean 'best'"),
    ],
)
def test_what_a_recipe_gets_wrong_is_told(setting, message):
    with pytest.raises(LimbeckError, match=message):
        recipe(setting)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_stopped_call_with_every_option_resumes_to_the_same_bits(data, monkeypatch, count):
    monkeypatch.setattr("limbeck.experiment.folder.CHECKPOINT_SHARE", 1e9)
    options = QUICK | {"method": "alone", "training": OPTIONS | FREEZE}
    whole, _ = limbeck.distill(None, network(), data, **options)

    def stop(arm, epoch):
        if epoch.number == count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        limbeck.distill(None, network(), data, out="run", on_epoch=stop, **options)
    resumed, result = limbeck.distill(None, network(), data, out="run", **options)
    assert same(whole, resumed)
    assert 1 <= result.student.best_epoch <= 4


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_the_call_changes_the_student_or_the_number_of_epochs(data, monkeypatch, option):
    scored(monkeypatch, 0.9, 0.1)
    told = []
    options = QUICK | {"method": "alone", "on_epoch": lambda arm, epoch: told.append(arm)}
    plain, _ = limbeck.distill(None, network(), data, **options)
    trained, _ = limbeck.distill(None, network(), data, training={option: OPTIONS[option]}, **options)
    assert not same(plain, trained)
    assert len(told) == (7 if option == "stop_after" else 8)


def test_an_unknown_option_of_the_call_has_a_nearest_name(data):
    with pytest.raises(LimbeckError, match="training: clp: unknown key 'clp': did you mean 'clip'"):
        limbeck.distill(None, network(), data, method="alone", training={"clp": 1.0}, **QUICK)


def test_the_evaluated_student_is_the_one_that_is_saved(data, monkeypatch):
    held, really = [], fit_module.score

    def score(student, workspace):
        held.append(student[0].weight.clone())
        return really(student, workspace)

    monkeypatch.setattr(fit_module, "score", score)
    student, _ = limbeck.distill(None, network(), data, method="alone", training={"ema": 0.9}, out="run", **QUICK)
    saved, _ = limbeck.load_network("run/student.safetensors", network=network())
    assert same(student, saved)
    assert torch.equal(held[-1], student[0].weight)
    plain, _ = limbeck.distill(None, network(), data, method="alone", **QUICK)
    assert not torch.equal(student[0].weight, plain[0].weight)
