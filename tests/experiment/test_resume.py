"""A run that is killed and resumed gives the same bits, with a real process."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from limbeck.files import checkpoint

RECIPE = """\
name: killed
data: {source: digits, limit: 480}
teacher:
  model: {name: mlp, hidden: [64], dropout: 0.2}
  train: {epochs: 24, batch_size: 16, augment: {shift: 1}}
student:
  model: {name: mlp, hidden: [16], dropout: 0.1}
method: kd
train:
  epochs: 40  # so long that no kill comes after the end
  batch_size: 16
  clip: 1.0
  accumulate: 2
  ema: 0.9
  freeze: {layers: [stage1], epochs: 2}
  keep: best
  stop_after: 35
evaluate: {latency_runs: 1}
precision: 32
compile: false
"""  # auto decides by timing, which on a busy machine may come out one way or the other


@pytest.fixture(scope="module")
def limbeck():
    """Starts the command; what still runs at the end is killed."""
    started = []

    def start(*arguments, folder):
        process = subprocess.Popen(
            [sys.executable, "-m", "limbeck", "run", "recipe.yaml", *arguments],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # a shell that runs the tests in the background has them ignore SIGINT, which a child would inherit
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def lines(file):
    """The complete lines: the run may be in the middle of writing the last one."""
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, "the run made no progress"
        time.sleep(0.002)


def same(one, other):
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, limbeck):
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "recipe.yaml").write_text(RECIPE)
    process = limbeck(folder=folder)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return folder / "runs" / "killed"


def test_a_run_that_is_killed_in_its_teacher_and_in_its_student_resumes_to_the_same_bits(tmp_path, whole, limbeck):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run = tmp_path / "runs" / "killed"
    process, jobs, held, said = limbeck(folder=tmp_path), ("teacher/seed0", "kd/seed0"), [], []
    for job in jobs:
        wait_for(lambda job=job: sum(line["job"] == job for line in lines(run / "metrics.jsonl")) >= 4, process)
        time.sleep(0.02)  # into the middle of the next epoch
        process.send_signal(signal.SIGKILL)
        said.append(process.communicate(timeout=60)[0])
        assert process.returncode == -signal.SIGKILL
        assert not (run / "result.json").exists()
        # a slow disk may have put the first one off
        held.append(checkpoint.load(run / "checkpoint" / "last.pt")["job"] == job)
        process = limbeck("--resume", folder=tmp_path)

    said.append(process.communicate(timeout=200)[0])
    assert process.returncode == 0, said[-1]
    assert [f"{job}: resuming from its checkpoint" in now for job, now in zip(jobs, said[1:], strict=True)] == held
    for name in ("teacher/seed0/teacher", "alone/seed0/student", "kd/seed0/student"):
        assert same(whole / f"{name}.safetensors", run / f"{name}.safetensors"), name
    assert same(whole / "student.safetensors", run / "student.safetensors")
    kept = [(line["job"], line["epoch"], line["loss"]) for line in lines(run / "metrics.jsonl")]
    assert kept == [(line["job"], line["epoch"], line["loss"]) for line in lines(whole / "metrics.jsonl")]


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tmp_path, limbeck):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run = tmp_path / "runs" / "killed"
    process = limbeck(folder=tmp_path)
    held = run / "checkpoint" / "last.pt"  # a slow disk may put the first one off
    wait_for(lambda: held.exists() and len(lines(run / "metrics.jsonl")) >= 2, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "To resume: limbeck run recipe.yaml --resume" in output
    assert "Traceback" not in output
    assert held.exists()
