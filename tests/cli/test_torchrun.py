"""`torchrun -m limbeck run`: several processes, one run folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from limbeck.experiment.run import Experiment
from limbeck.models import load_network
from limbeck.recipe.read import read

RECIPE = """
name: several
data: {source: digits}
teacher: {model: {name: mlp, hidden: [100]}, train: {epochs: 1, batch_size: 64, optimizer: {name: sgd, lr: 0.01}}}
student: {model: {name: mlp, hidden: [50]}}
method: kd
train: {epochs: 60, batch_size: 64, optimizer: {name: sgd, lr: 0.01}}
baseline: false
precision: 32
device: cpu
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="torchrun's gloo on Windows is not tested")


def run_here(folder, *, resume=False):
    for _ in (experiment := Experiment(read(Path("recipe.yaml")), Path(folder), resume=resume)).run():
        pass
    return experiment.result


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def children(pid):
    """The processes that a process has started, by their command lines."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                values = dict(one.split("=", 1) for one in (place / "environ").read_text().split("\0") if "=" in one)
                found[int(values.get("RANK", -1))] = int(place.name)
        except (OSError, ValueError):
            continue
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
def test_a_process_that_is_killed_ends_all_and_another_number_of_processes_resumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    whole = run_here("one")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    started = subprocess.Popen(
        [*launcher, "-m", "limbeck", "run", "recipe.yaml", "--out", "two"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
        text=True,
    )
    log, deadline = Path("two/metrics.jsonl"), time.monotonic() + 200
    while not (log.exists() and log.read_text().count("kd/seed0") >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(children(started.pid)[1], signal.SIGKILL)
    killed = time.monotonic()
    output = started.communicate(timeout=100)[0]
    assert started.returncode != 0
    assert time.monotonic() - killed < 60
    assert "To resume: start torchrun again with --resume" in output
    assert output.count("teacher/seed0: epoch 1/1") == 1  # only the first process prints
    assert not Path("two/result.json").exists()
    resumed = run_here("two", resume=True)
    ours, theirs = (load_network(Path(name) / "student.safetensors")[0].state_dict() for name in ("two", "one"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)
    assert abs(resumed.student.test.accuracy - whole.student.test.accuracy) < 0.01


def test_only_run_takes_several_processes(tmp_path):
    asked = [sys.executable, "-m", "limbeck", "compare", "digits_kd"]
    ended = subprocess.run(asked, env=environment() | {"WORLD_SIZE": "2", "RANK": "0"}, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "torchrun ... -m limbeck run RECIPE" in ended.stderr
