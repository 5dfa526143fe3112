"""Whole runs of each task: the store, resume, results, tables, the commands."""

import json
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
import torch
from kinds import OTHERS, Places, data_of, network, trained
from rich.console import Console
from typer.testing import CliRunner

import limbeck
from limbeck.cli import app
from limbeck.cli.runs import _table as runs_table
from limbeck.cli.tables import result_table, verdicts
from limbeck.comparison.listing import list_runs
from limbeck.core import LimbeckError, from_teacher
from limbeck.data import Augment
from limbeck.experiment.results import Gain, from_json, plain, read, summarise
from limbeck.files.atomic import write_sealed
from limbeck.recipe.blocks import Recipe
from limbeck.tasks import TASKS, Shown
from limbeck.train.fuse import fuse

PLAIN = {"batch_size": 16, "precision": "32", "progress": False}
every_task = pytest.mark.parametrize("task", OTHERS)


@cache
def data(task):
    return data_of(task)


@cache
def teacher(task):
    return trained(data(task))


def distilled(task, **options):
    options = PLAIN | {"epochs": 3} | options
    return limbeck.distill(teacher(task), network(data(task), 2, seed=5), data(task), **options)


def same(one, other):
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A finished run of two seeds of each task."""
    folder = tmp_path_factory.mktemp("runs")
    for task in OTHERS:
        distilled(task, out=folder / task, seeds=(0, 1))
    return folder


@pytest.mark.parametrize("augment", [Augment(), Augment(cutout=3)], ids=["plain", "cutout"])
@every_task
def test_a_store_of_the_teachers_outputs_gives_the_losses_of_the_live_teacher(task, augment):
    losses = {}
    for cached in (False, {"use": True, "views": 1, "dtype": "float32"}):
        seen = losses[bool(cached)] = []
        distilled(
            task,
            cache=cached,
            epochs=2 if augment == Augment() else 1,  # with one view stored, later epochs see the same view
            augment=augment,
            baseline=False,
            on_epoch=lambda arm, epoch, seen=seen: seen.append(dict(epoch.terms)),
        )
    assert losses[True]
    for live, stored in zip(losses[False], losses[True], strict=True):
        assert stored == pytest.approx(live, rel=1e-5)


@every_task
def test_an_interrupted_run_resumes_to_the_same_bits(task, tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.experiment.folder.CHECKPOINT_SHARE", 1e9)
    options = {"training": {"keep": "best"}} | ({"augment": Augment(flip=True)} if task == "segmentation" else {})
    whole, expected = distilled(task, out=tmp_path / "whole", **options)

    def interrupt(arm, epoch):
        if arm == "kd" and epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distilled(task, out=tmp_path / "part", on_epoch=interrupt, **options)
    epochs = []
    student, found = distilled(
        task, out=tmp_path / "part", on_epoch=lambda arm, epoch: epochs.append((arm, epoch.number)), **options
    )
    assert epochs == [("kd", 3)]
    assert same(student, whole)
    assert found.summary == expected.summary


@every_task
def test_results_are_read_as_they_were_written(task, folders):
    result = read(folders / task)
    assert result.task == task
    for one in (result.teacher, result.alone, result.student, *result.runs):
        assert type(one.test) is type(result.student.test)
        assert one.test.samples == 24
        assert one.macs > 0
        assert from_json(type(one), plain(one)) == one
    assert all(one.latency.median_ms > 0 for one in (result.teacher, result.alone, result.student))
    assert from_json(type(result), plain(result)) == result
    values = json.loads((folders / task / "result.json").read_text())
    assert values["task"] == task
    assert values["summary"]["kd"]["errors"] is None


@every_task
def test_the_headline_is_compared_so_that_better_is_above_0(task, folders):
    result, figure = read(folders / task), TASKS[task].headline
    kd, alone = ([getattr(one.test, figure.key) for one in result.of(arm)] for arm in ("kd", "alone"))
    sign = -1 if figure.falls else 1
    found = result.summary["kd"]
    assert found.headline.mean == pytest.approx(sum(kd) / 2)
    assert found.better_than_alone.mean == pytest.approx(sign * (sum(kd) - sum(alone)) / 2)
    assert (found.errors, found.fewer_errors_than_alone) == (None, None)
    assert result.summary["teacher"].better_than_alone is None
    assert summarise(result.runs, task) == result.summary


@every_task
def test_figures_of_another_task_are_refused(task, folders, tmp_path):
    values = json.loads((folders / task / "result.json").read_text())
    values.pop("sha256")
    values["task"] = "regression" if task != "regression" else "classification"
    write_sealed(tmp_path / "result.json", values)
    with pytest.raises(LimbeckError, match=f"is not the result of a run: its figures are not of {values['task']}"):
        read(tmp_path)


def test_a_figure_that_is_wrong_is_named_without_those_of_other_tasks(folders):
    values = plain(read(folders / "regression"))
    values["student"]["test"]["rmse"] = "small"
    with pytest.raises(LimbeckError, match=r"^student\.test\.rmse: .*number"):
        from_json(limbeck.RunResult, values)


def shown(thing):
    console = Console(file=StringIO(), width=80)
    console.print(thing)
    return console.file.getvalue()


@every_task
def test_the_table_fits_in_80_columns_and_has_every_figure(task, folders):
    result = read(folders / task)
    large = replace(result, runs=tuple(replace(one, parameters=12_345_678) for one in result.runs))
    text = shown(result_table(large))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for figure in (TASKS[task].headline, *TASKS[task].others):
        assert figure.label.split()[0] in text
    for row in result.summary.values():
        assert TASKS[task].headline.number(row.headline.mean) in text
    assert ("agrees" in text) == (task == "segmentation")


SENTENCES = {
    "multi_label": ("1.50 points better mAP", "0.25"),
    "regression": ("0.0150 better RMSE", "0.0025"),
    "landmarks": ("1.50 points better NME", "0.25"),
    "segmentation": ("1.50 points better mIoU", "0.25"),
}


@every_task
def test_the_gain_is_told_in_the_units_of_the_headline(task, folders):
    result, recipe = read(folders / task), Recipe.model_construct(teacher=None, allow=())
    summary = {"kd": replace(result.summary["kd"], better_than_alone=Gain(0.015, 0.0035, 2, 0.0025))}
    what, error = SENTENCES[task]
    expected = f"kd: {what} than alone (standard error {error}, 2 pairs)"
    assert expected in verdicts(replace(result, summary=summary), recipe)
    summary = {"kd": replace(result.summary["kd"], better_than_alone=Gain(-0.015, None, 1, None))}
    expected = f"kd: {what.replace('better', 'worse')} than alone (one pair, so no standard error)"
    assert expected in verdicts(replace(result, summary=summary), recipe)
    for tie in (0.0, 0.00004, -0.00004):
        summary = {"kd": replace(result.summary["kd"], better_than_alone=Gain(tie, 0.0035, 2, 0.0025))}
        expected = f"kd: no difference from alone in {TASKS[task].headline.label} (standard error {error}, 2 pairs)"
        assert expected in verdicts(replace(result, summary=summary), recipe)


def test_a_figure_is_shown_in_its_units():
    assert Shown("nme", "NME", percent=True, falls=True).text(0.0512) == "5.12 %"
    assert Shown("rmse", "RMSE", falls=True).text(0.0512) == "0.0512"
    assert Shown("rmse", "RMSE", falls=True).score(2.0) == -2.0


def test_runs_are_listed_by_task_and_the_best_is_first(folders, tmp_path):
    found = list_runs(folders)
    assert [run.task for run in found] == sorted(OTHERS)
    assert all(run.state == "finished" and run.student is not None for run in found)
    assert all(task in shown(runs_table(found)) for task in ("landmarks", "regression"))
    values = json.loads((folders / "regression" / "result.json").read_text())
    values.pop("sha256")
    recipe = (folders / "regression" / "recipe.yaml").read_text()
    for name, rmse in (("good", 0.1), ("bad", 0.9)):
        values["summary"]["kd"]["headline"]["mean"] = rmse
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(recipe)
        write_sealed(tmp_path / name / "result.json", values)
    assert [Path(run.folder).name for run in list_runs(tmp_path)] == ["good", "bad"]


@pytest.mark.parametrize(("task", "best"), [("landmarks", 2), ("regression", 2), ("multi_label", 1)])
def test_the_best_epoch_is_that_of_the_best_headline_also_if_it_falls(task, best, tmp_path, monkeypatch):
    teacher(task)  # trained with its own scores
    scores = iter([0.9, 0.1, 0.5])
    monkeypatch.setattr("limbeck.experiment.fit.score", lambda network, workspace: next(scores))
    _, result = distilled(task, out=tmp_path, training={"keep": "best"}, method="alone")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line[f"validation_{TASKS[task].headline.key}"] for line in lines] == [0.9, 0.1, 0.5]
    assert result.student.best_epoch == best


def test_a_network_of_pixels_is_fused():
    torch.manual_seed(0)
    plain_network, images = Places(4, 3), torch.randn(6, 3, 16, 16)
    plain_network(images)  # statistics that are not those of a fresh network
    plain_network.eval()
    fused, reason = fuse(plain_network, images, [from_teacher()], precision="32", channels_last=False)
    assert reason == ""
    assert fused is not plain_network
    torch.testing.assert_close(fused(images), plain_network(images), rtol=1e-4, atol=1e-5)


SOURCE = """\
import sys
sys.path.insert(0, {folder!r})
from kinds import Places, arrays_of
from limbeck.data import Parts, Split
from limbeck.data.targets import as_targets, outputs_of

def drawn(*, task: str):
    inputs, targets = arrays_of(task)
    targets = as_targets(targets, task, None)
    names = tuple(f"n{{number}}" for number in range(outputs_of(targets, task)))
    return Parts(Split(inputs, targets), names, task=task)

def places(*, classes, shape, width: int = 2):
    return Places(width, classes)
"""


@every_task
def test_plan_and_run_read_the_task_from_a_source(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(SOURCE.format(folder=str(Path(__file__).parent)))
    model = "{name: mine.py:places}" if task == "segmentation" else "{name: mlp, hidden: [8]}"
    Path("recipe.yaml").write_text(
        f"name: drawn\ndata: {{source: 'mine.py:drawn', task: {task}}}\n"
        f"teacher: {{model: {model}, train: {{epochs: 1}}}}\n"
        f"student: {{model: {model}}}\nmethod: kd\ntrain: {{epochs: 1}}\nevaluate: {{latency_runs: 1}}\nprecision: 32\n"
    )
    planned = CliRunner().invoke(app, ["plan", "recipe.yaml"], env={"COLUMNS": "120"})
    assert planned.exit_code == 0, planned.output
    units = ("3 labels", "3 numbers", "3 points", "2 classes")
    assert f"inputs of 3 x 16 x 16, targets of {units[OTHERS.index(task)]}; on cpu" in planned.output
    done = CliRunner().invoke(app, ["run", "recipe.yaml"], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    assert f"kd/seed0: test {TASKS[task].headline.label} " in done.output
    assert read(Path("runs/drawn")).task == task
