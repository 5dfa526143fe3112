"""The runs and comparisons of a folder: the best first, with what makes or resumes them; damaged ones with why."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import limbeck
from limbeck.cli import app
from limbeck.comparison import listing, results
from limbeck.comparison.listing import ListedRun, list_runs
from limbeck.comparison.locks import claim
from limbeck.comparison.sweep import Sweep
from limbeck.core import LimbeckError
from limbeck.experiment.events import Trained
from limbeck.experiment.results import plain, read
from limbeck.experiment.run import Experiment
from limbeck.files.alone import alone
from limbeck.files.atomic import write_sealed
from limbeck.recipe.read import read as read_recipe

RECIPE = """\
name: tiny
data: {source: digits, limit: 64}
teacher: {model: {name: mlp, hidden: [8]}, train: {epochs: 1, batch_size: 32}}
student: {model: {name: mlp, hidden: [8]}}
method: kd
train: {epochs: 2, batch_size: 32}
seeds: [0, 3]
evaluate: {latency_runs: 1}
precision: 32
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run and an interrupted one."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "recipe.yaml").write_text(RECIPE)
    recipe = read_recipe(folder / "recipe.yaml")
    list(Experiment(recipe, folder / "runs" / "whole").run())
    events = Experiment(recipe, folder / "runs" / "part").run()
    for event in events:
        if isinstance(event, Trained) and event.job.arm == "kd":
            break
    events.close()
    return folder / "runs"


@pytest.fixture(scope="module")
def made_comparison(tmp_path_factory):
    """A finished comparison."""
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "recipe.yaml").write_text(RECIPE)
    sweep = Sweep(read_recipe(folder / "recipe.yaml", methods=("kd", "srrl")), folder / "compared")
    list(sweep.run())
    sweep.conclude()
    return folder / "compared"


@pytest.fixture
def compared(made_comparison, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made_comparison, "runs/compared")
    return Path("runs/compared")


@pytest.fixture
def runs(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copytree(made, "runs")
    return Path("runs")


def better(source, folder, accuracy):
    """A copy of a run with another accuracy of the student."""
    shutil.copytree(source, folder)
    values = plain(read(source))
    values["summary"]["kd"]["headline"]["mean"] = accuracy
    write_sealed(folder / "result.json", values)


def test_the_best_student_is_first_and_runs_without_one_are_last(runs):
    better(runs / "whole", runs / "best", 0.99)
    better(runs / "whole", runs / "worst", 0.0)
    assert [Path(run.folder).name for run in list_runs(runs)] == ["best", "whole", "worst", "part"]


def test_a_smoke_test_is_marked_and_follows_the_runs_that_were_trained(runs):
    better(runs / "whole", runs / "tried", 0.99)
    recipe = runs / "tried" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("name: tiny\n", "name: tiny-smoke\n"))
    assert [(Path(run.folder).name, run.state) for run in list_runs(runs)[:2]] == [
        ("whole", "finished"),
        ("tried", "smoke test"),
    ]


def test_a_finished_run_has_the_means_over_its_seeds(runs):
    (run,) = [run for run in list_runs(runs) if run.state == "finished"]
    result = read(runs / "whole")
    assert (run.name, run.method, run.seeds) == ("tiny", "kd", (0, 3))
    assert (run.teacher, run.alone, run.student) == tuple(
        result.summary[arm].headline.mean for arm in ("teacher", "alone", "kd")
    )


def test_an_interrupted_run_says_where_and_its_command_resumes_it(runs):
    (run,) = [run for run in list_runs(runs) if Path(run.folder).name == "part"]
    assert (run.state, run.student, run.seeds) == ("interrupted at epoch 1 of kd/seed0", None, (0, 3))
    assert run.command == "limbeck run runs/part/recipe.yaml --out runs/part --resume"
    done = CliRunner().invoke(app, shlex.split(run.command)[1:])
    assert done.exit_code == 0, done.output
    assert read(runs / "part").summary == read(runs / "whole").summary


def test_a_run_whose_process_trains_is_running(runs):
    with alone(runs / "part"):
        (run,) = list_runs(runs / "part")
        assert (run.state, run.command, run.seeds) == ("running", None, (0, 3))
    (run,) = list_runs(runs / "part")
    assert run.state.startswith("interrupted")


@pytest.mark.parametrize(
    ("environment", "begins"),
    [
        ({"processes": 4, "processes_here": 4}, "torchrun --nproc-per-node 4 -m limbeck run runs/part/recipe.yaml"),
        ({"processes": 4, "processes_here": 2}, "start torchrun again on each machine, with -m limbeck run "),
        ({"processes": "4"}, "limbeck run runs/part/recipe.yaml"),
    ],
)
def test_a_run_of_several_processes_is_resumed_by_as_many(runs, environment, begins):
    write_sealed(runs / "part" / "environment.json", environment)
    (run,) = list_runs(runs / "part")
    assert run.command.startswith(begins)
    assert run.command.endswith(" --out runs/part --resume")


def test_a_damaged_environment_is_none_of_several_processes(runs):
    (runs / "part" / "environment.json").write_text("{}")
    assert list_runs(runs / "part")[0].command.startswith("limbeck run")


def test_the_command_of_a_finished_run_makes_it_again(runs):
    (run,) = [run for run in list_runs(runs) if run.state == "finished"]
    assert CliRunner().invoke(app, shlex.split(run.command)[1:]).exit_code == 0
    assert read(runs / "whole-again").summary == read(runs / "whole").summary


def test_a_run_folder_itself_is_listed(runs):
    assert [run.folder for run in list_runs(runs / "whole")] == ["runs/whole"]


def test_a_run_that_has_no_epoch_yet_is_interrupted_at_the_beginning(runs):
    Path("runs/new").mkdir()
    for name in ("recipe.yaml", "environment.json"):
        shutil.copy(runs / "whole" / name, "runs/new")
    assert "interrupted at the beginning" in [run.state for run in list_runs(runs)]


def test_a_folder_with_a_recipe_of_the_user_is_no_run(runs):
    shutil.copy(runs / "whole" / "recipe.yaml", runs)
    assert {Path(run.folder).name for run in list_runs(runs)} == {"whole", "part"}


def test_a_comparison_is_one_row_with_its_best_method(compared):
    (row,) = list_runs(compared.parent)
    assert list_runs(compared) == [row]
    result = results.read(compared)
    means = {arm.arm: arm.headline.mean for arm in result.arms}
    assert (row.name, row.method, row.seeds, row.state) == ("tiny", "kd, srrl", (0, 3), "finished")
    assert (row.teacher, row.alone, row.student) == (
        result.teachers.mean,
        means["alone"],
        max(means["kd"], means["srrl"]),
    )
    assert means[row.best] == row.student
    assert f"{100 * row.student:.2f} {row.best}" in CliRunner().invoke(app, ["runs"], env={"COLUMNS": "200"}).output


def test_the_command_of_a_comparison_makes_it_again(compared):
    (row,) = list_runs(compared)
    assert row.command == "limbeck compare runs/compared/comparison.yaml --out runs/compared-again"
    assert CliRunner().invoke(app, shlex.split(row.command)[1:]).exit_code == 0
    assert [one.test for one in results.read(Path("runs/compared-again")).runs] == [
        one.test for one in results.read(compared).runs
    ]


def test_the_command_of_an_interrupted_comparison_resumes_it(compared):
    before = results.read(compared)
    (compared / "comparison.json").unlink()
    shutil.rmtree(compared / "srrl-seed3")
    (row,) = list_runs(compared)
    assert (row.state, row.method, row.seeds, row.student) == ("interrupted", "kd, srrl", (0, 3), None)
    assert row.command == "limbeck compare runs/compared/comparison.yaml --out runs/compared"
    shown = CliRunner().invoke(app, shlex.split(row.command)[1:])
    assert shown.exit_code == 0, shown.output
    assert "kd/seed0: test" not in shown.output
    assert results.read(compared).runs == before.runs


def test_a_comparison_in_which_a_process_trains_a_seed_is_running(compared):
    (compared / "comparison.json").unlink()
    held = claim(compared, "seed3")
    (row,) = list_runs(compared)
    assert (row.state, row.command) == ("running", None)
    held.release()
    (row,) = list_runs(compared)
    assert row.state == "interrupted"


def test_a_comparison_to_which_seeds_are_added_is_interrupted_until_they_are_trained(compared):
    recipe = read_recipe(compared / "comparison.yaml", overrides=["seeds=[0, 3, 4]"])
    events = Sweep(recipe, compared).run()
    next(events)
    events.close()
    (row,) = list_runs(compared)
    assert (row.state, row.seeds) == ("interrupted", (0, 3, 4))
    assert row.command.endswith("--out runs/compared")
    assert row.student is not None


def test_the_networks_of_a_comparison_or_a_tuning_are_no_runs(compared):
    Path("runs/tuned/locks").mkdir(parents=True)
    shutil.copytree(compared / "kd-seed0", "runs/tuned/teacher")
    assert [row.folder for row in list_runs(Path("runs"))] == ["runs/compared"]
    assert list_runs(Path("runs/tuned")) == []
    assert list_runs(compared / "kd-seed0") == []
    assert "no run or comparison in runs/tuned" in CliRunner().invoke(app, ["runs", "runs/tuned"]).output


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "comparison.json").write_text("{}"), "comparison.json is damaged, or was changed"),
        (lambda folder: write_sealed(folder / "comparison.json", {"schema": 1}), "is not the result of a comparison"),
        (lambda folder: (folder / "comparison.json").write_bytes(b" " * (2**24 + 1)), "has more than 16,777,216 bytes"),
        (lambda folder: (folder / "comparison.yaml").unlink(), "comparison.yaml is missing"),
        (lambda folder: (folder / "comparison.yaml").write_text("a: *b"), "undefined alias"),
    ],
)
def test_a_damaged_comparison_is_listed_with_the_reason(compared, damage, reason):
    damage(compared)
    (row,) = list_runs(compared)
    with pytest.raises(LimbeckError, match=f"damaged: .*{reason}"):
        raise LimbeckError(row.state)


def test_a_comparison_without_arms_has_no_best_method(compared):
    write_sealed(compared / "comparison.json", plain(replace(results.read(compared), arms=(), seeds=())))
    (row,) = list_runs(compared)
    assert (row.state, row.best, row.student) == ("interrupted", None, None)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda run: (run / "result.json").write_text("{}"), "result.json is damaged, or was changed"),
        (lambda run: (run / "recipe.yaml").unlink(), "recipe.yaml is missing"),
        (lambda run: (run / "recipe.yaml").write_text("a: *b"), "undefined alias"),
        (lambda run: (run / "recipe.yaml").write_bytes(b"#" * (4 * 2**20 + 1)), "has more than 4,194,304 bytes"),
        (
            lambda run: (run / "result.json").unlink() or (run / "metrics.jsonl").write_text("{}\n"),
            "line 1 does not describe",
        ),
        (
            lambda run: (run / "result.json").unlink() or (run / "metrics.jsonl").write_text('{"job": "kd/seed0"}\n'),
            "the last line of .*metrics.jsonl does not describe an epoch",
        ),
    ],
)
def test_a_damaged_run_is_listed_with_the_reason_and_does_not_stop_the_list(runs, damage, reason):
    shutil.copytree(runs / "whole", runs / "bad")
    damage(runs / "bad")
    found = {Path(run.folder).name: run for run in list_runs(runs)}
    assert set(found) == {"whole", "part", "bad"}
    with pytest.raises(LimbeckError, match=f"damaged: .*{reason}"):
        raise LimbeckError(found["bad"].state)
    assert (found["bad"].command, found["bad"].student) == (None, None)


def test_a_time_that_is_no_date_does_not_stop_the_list(runs, monkeypatch):
    monkeypatch.setattr(listing, "LATEST", 86_400)  # most file systems do not have times beyond the real limit
    assert [run.date[:4] for run in list_runs(runs / "whole")] == ["1970"]


def test_other_folders_and_links_are_left_out(runs):
    Path("runs/notes").mkdir()
    Path("runs/link").symlink_to(Path("runs/whole").absolute())
    assert {Path(run.folder).name for run in list_runs(runs)} == {"whole", "part"}


def test_a_folder_with_too_many_entries_is_refused(runs, monkeypatch):
    monkeypatch.setattr(listing, "MOST", 1)
    with pytest.raises(LimbeckError, match="more than 1 entries"):
        list_runs(runs)
    with pytest.raises(LimbeckError, match="there is no folder none"):
        list_runs(Path("none"))


def test_a_run_of_distill_has_no_command(runs):
    data = limbeck.arrays(torch.randn(60, 4), torch.arange(60) % 3)
    limbeck.distill(None, nn.Linear(4, 3), data, method="alone", epochs=1, precision="32", out="runs/own")
    (run,) = list_runs(runs / "own")
    assert (run.state, run.name, run.command) == ("finished", "distill", None)


def test_the_command_prints_a_table_or_json(runs):
    shown = CliRunner().invoke(app, ["runs"]).output
    assert "whole" in shown
    assert "interrupted at epoch 1 of kd/seed0" in shown
    assert "limbeck run runs/part/recipe.yaml --out runs/part --resume" in shown
    found = json.loads(CliRunner().invoke(app, ["runs", "runs", "--json"]).output)
    assert [(run["folder"], run["seeds"]) for run in found] == [("runs/whole", [0, 3]), ("runs/part", [0, 3])]
    assert CliRunner().invoke(app, ["runs", "none"]).exit_code == 2


def test_the_table_names_the_figure_of_each_run_and_says_where_lower_is_better(runs, monkeypatch):
    points = ListedRun("faces", "finished", "2026-01-01T00:00:00", task="landmarks", student=0.0712)
    found = [*list_runs(runs), points, replace(points, folder="none", task=None, student=None)]
    monkeypatch.setattr(listing, "list_runs", lambda folder: found)
    lines = {line.split()[0]: line for line in CliRunner().invoke(app, ["runs"]).output.splitlines() if line.split()}
    assert "accuracy % " in lines["whole"]
    assert "NME %, lower is better" in lines["faces"]
    assert not any(word in lines[name] for name in ("part", "none") for word in ("accuracy", "better"))
