"""`limbeck compare`: what it prints, and its processes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.cli.compare import processes
from limbeck.comparison.results import read
from limbeck.comparison.sweep import Sweep

RECIPE = """\
name: tiny
data: {source: digits, limit: 96}
teacher:
  model: {name: mlp, hidden: [16]}
  train: {epochs: 2, batch_size: 32}
student:
  model: {name: mlp, hidden: [8]}
method: kd
train: {epochs: 2, batch_size: 32}
evaluate: {latency_runs: 1}
precision: 32
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)


def compare(*arguments, code=0):
    result = CliRunner().invoke(app, ["compare", "recipe.yaml", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def test_it_prints_a_row_for_each_arm_and_a_sentence_for_each_method():
    shown = compare("--methods", "kd,fitnets,fsp", "--seeds", 2)
    assert "note: fsp is left out: fsp compares maps" in shown
    rows = [line.split()[0] for line in shown.split("verdict")[1].splitlines() if "±" in line or "teacher" in line]
    assert rows == ["teacher", "alone", "kd", "fitnets", "alone@2x"]
    assert "kd: no evidence that it helps or hurts (compared with alone, n = 2" in shown
    assert "fitnets: no evidence that it helps or hurts (compared with alone@2x, n = 2" in shown
    assert "with 2 seeds the smallest p of an exact test is 0.5, so there can be no verdict" in shown
    assert "written: runs/tiny-compared/comparison.json" in shown
    assert shown.endswith("written: runs/tiny-compared/report.html\n")
    assert read(Path("runs/tiny-compared")).seeds == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "lists no methods to compare"),
        (("--methods", "kd,srr"), "--methods kd,srr: methods.1.name: there is no method 'srr': did you mean 'srrl'"),
        (("--methods", "kd", "--adjust", "bonferroni"), "--adjust is 'bonferroni'"),
        (("--methods", "kd", "--set", "cache=true"), "a comparison does not have cache: true"),
    ],
)
def test_wrong_options_are_told_before_anything_is_written(arguments, message):
    assert message in compare(*arguments, code=2)
    assert not Path("runs").exists()


def test_two_processes_share_a_comparison():
    command = [sys.executable, "-m", "limbeck", "compare", "recipe.yaml", "--methods", "kd", "--seeds", "4"]
    done = subprocess.run([*command, "--jobs", "2"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout
    log = Path("runs/tiny-compared/locks/process1.log").read_text()
    assert "tiny: 96 training" in log
    assert "verdict" not in log  # only the first process compares
    shared = read(Path("runs/tiny-compared"))
    compare("--methods", "kd", "--seeds", 4, "--out", "one")
    alone = read(Path("one"))
    assert [one.test for one in shared.runs] == [one.test for one in alone.runs]
    assert [arm.alone for arm in shared.arms] == [arm.alone for arm in alone.arms]


def test_another_process_that_fails_is_told_with_its_log(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    shown = compare("--methods", "kd", "--seeds", 2, "--jobs", 2)
    assert "a process of --jobs failed with exit code 1: see runs/tiny-compared/locks/process1.log" in shown
    assert "written: runs/tiny-compared/comparison.json" in shown


def test_a_process_that_is_stopped_has_not_failed(tmp_path):
    for code in ("130", "0"):
        script = tmp_path / code
        script.write_text(f"#!/bin/sh\nexit {code}\n")
        script.chmod(0o755)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sys, "executable", str(script))
            with processes(1, "limbeck compare x", tmp_path) as failed:
                assert failed() == []


def test_a_stop_shows_the_whole_command(monkeypatch):
    def run(self, track, *, wait):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(Sweep, "run", run)
    shown = compare("--methods", "kd", "--seeds", 2, "--jobs", 2, code=130)
    assert "To resume: limbeck compare recipe.yaml --methods kd --seeds 2 --jobs 2\n" in shown


def test_the_methods_are_planned_without_a_store():
    planned = CliRunner().invoke(app, ["plan", "recipe.yaml", "--methods", "srrl, fitnets"])
    assert planned.exit_code == 0, planned.output
    assert re.findall(r"^training (\w+),", planned.output, re.MULTILINE) == ["teacher", "alone", "srrl", "fitnets"]
    assert "runs/tiny-compared will hold" in planned.output
    assert "outputs of the teacher" not in planned.output
    refused = CliRunner().invoke(app, ["plan", "recipe.yaml", "--methods", "kd", "--set", "cache=true"])
    assert refused.exit_code == 2
    assert "a comparison does not have cache: true" in refused.output


def test_a_recipe_that_only_lists_methods_is_planned_and_compared():
    Path("recipe.yaml").write_text(RECIPE.replace("method: kd", "methods: [kd, fitnets]"))
    planned = CliRunner().invoke(app, ["plan", "recipe.yaml"])
    assert planned.exit_code == 0, planned.output
    assert "fitnets" in planned.output
    assert "written: runs/tiny-smoke-compared/comparison.json" in compare("--smoke")
    refused = CliRunner().invoke(app, ["run", "recipe.yaml"])
    assert refused.exit_code == 2
    assert "use limbeck compare" in refused.output
