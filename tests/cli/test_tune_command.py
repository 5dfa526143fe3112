"""`limbeck tune`: what it prints and writes, and its processes."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.comparison import tuning
from limbeck.recipe.read import read

RECIPE = """\
name: tiny
data: {source: digits, limit: 96}
teacher:
  model: {name: mlp, hidden: [16]}
  train: {epochs: 2, batch_size: 32}
student:
  model: {name: mlp, hidden: [8]}
method: {name: kd, temperature: 3}
methods: [kd, {name: srrl, alpha: 2.0}]
train: {epochs: 2, batch_size: 32, optimizer: {name: adam, lr: 0.01}}
seeds: [0, 1]
evaluate: {latency_runs: 1}
precision: 32
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)


def limbeck(*arguments, code=0):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


def test_it_prints_the_trials_and_writes_a_recipe_that_compare_takes():
    untaught = ("--set", "teacher.train.optimizer={name: sgd, lr: 1.0e-9}")
    shown = limbeck("tune", "recipe.yaml", "--method", "srrl", "--trials", 3, "--search", "beta=0..2", *untaught)
    assert "note: teacher/seed1000000: the accuracy of the teacher is not clearly higher than chance" in shown
    assert " % with alpha 2, beta 1, lr 0.01" in shown
    rows = [line.split() for line in shown.split("validation split\n")[1].splitlines()]
    assert rows[0] == ["trial", "alpha", "beta", "lr", "accuracy"]
    assert [row[0] for row in rows[2:5]] == ["0", "1", "2"]
    assert "test accuracy" not in shown
    assert "compare it: limbeck compare runs/tiny-tuned/srrl.yaml --methods srrl --seeds 6" in shown
    assert read(Path("runs/tiny-tuned/srrl.yaml")).method["name"] == "srrl"
    assert "srrl: no evidence" in limbeck("compare", "runs/tiny-tuned/srrl.yaml", "--methods", "srrl", "--seeds", 2)


def test_the_method_of_the_recipe_is_tuned_by_default():
    limbeck("tune", "recipe.yaml", "--trials", 2)
    assert [block["name"] for block in read(Path("runs/tiny-tuned/kd.yaml")).methods] == ["kd", "srrl"]


def test_the_gain_over_the_options_of_the_recipe_is_called_optimistic(monkeypatch):
    monkeypatch.setattr(tuning.Tuning, "_trained", lambda self, trial, *_: iter_of(0.5 + trial.number / 10))
    shown = limbeck("tune", "recipe.yaml", "--trials", 3)
    assert "trial 2 is the best: accuracy 70.00 % on the validation split" in shown
    assert "the recipe's own options (trial 0): 50.00 %. This difference is optimistic: the best of 3 trials" in shown


def test_if_no_trial_is_better_the_recipe_keeps_its_options(monkeypatch):
    monkeypatch.setattr(tuning.Tuning, "_trained", lambda self, trial, *_: iter_of(1 - trial.number / 100))
    assert "no trial is better than the recipe's own options, accuracy 100" in limbeck("tune", "recipe.yaml")
    assert read(Path("runs/tiny-tuned/kd.yaml")).method == read(Path("recipe.yaml")).method


def iter_of(value):
    """A training without events that returns the value."""
    yield from ()
    return value


def test_a_stop_shows_the_command_that_continues(monkeypatch):
    def run(self, track, *, wait):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(tuning.Tuning, "run", run)
    shown = limbeck("tune", "recipe.yaml", "--trials", 5, "--search", "soft=0..2", "--jobs", 2, code=130)
    assert "To resume: limbeck tune recipe.yaml --trials 5 --seed 1000000 --search soft=0..2 --jobs 2\n" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "srr"), "there is no method 'srr': did you mean 'srrl'"),
        (("--search", "softt=0..2"), "kd has no number 'softt': did you mean 'soft'"),
        (("--seed", "1"), "--seed 1 is a seed of the recipe"),
    ],
)
def test_wrong_options_are_told_before_anything_is_written(arguments, message):
    assert message in limbeck("tune", "recipe.yaml", *arguments, code=2)
    assert not Path("runs").exists()


def test_two_processes_share_the_trials():
    command = [sys.executable, "-m", "limbeck", "tune", "recipe.yaml", "--trials", "6", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    rows = done.stdout.split("validation split\n")[1].splitlines()[2:8]
    assert [row.split()[0] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    log = Path("runs/tiny-tuned/locks/process1.log").read_text()
    assert "tiny: 96 training" in log
    assert "validation split" not in log  # only the first process writes the recipe
