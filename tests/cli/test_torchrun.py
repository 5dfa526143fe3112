"""`torchrun -m limbeck run`: several processes, one run folder."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer import Exit
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.cli.reporting import reporting
from limbeck.errors import DamagedStore
from limbeck.experiment.results import read as read_result
from limbeck.experiment.run import Experiment
from limbeck.models import NetworkSpec, build, load_network, save_network
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

FAILS = """
import os
from torch import nn

class Fails(nn.Sequential):
    def forward(self, inputs):
        self.calls = getattr(self, "calls", 0) + self.training
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if first and os.environ.get("RANK") == "1" and self.calls > 50:
            raise ValueError("of process 1")
        return super().forward(inputs)

def fails():
    return Fails(nn.Flatten(), nn.Linear(64, 10))
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="torchrun's gloo on Windows is not tested")


def run_here(folder, *, resume=False):
    for _ in (experiment := Experiment(read(Path("recipe.yaml")), Path(folder), resume=resume)).run():
        pass
    return experiment.result


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def torchrun(*options):
    """The command that runs the recipe in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    return [*launcher, "-m", "limbeck", "run", "recipe.yaml"]


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
    Path("recipe.yaml").write_text(RECIPE.replace("batch_size: 64", "batch_size: 32, per_device: true"))
    started = subprocess.Popen(
        [*torchrun(), "--out", "two"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(), text=True
    )
    log, deadline = Path("two/metrics.jsonl"), time.monotonic() + 200
    while not (log.exists() and log.read_text().count("kd/seed0") >= 2):
        assert started.poll() is None, f"torchrun has ended before the second epoch: {started.communicate()[0]}"
        if time.monotonic() > deadline:
            started.kill()
            pytest.fail(f"the second epoch was not reached in 200 s: {started.communicate()[0]}")
        time.sleep(0.02)
    os.kill(children(started.pid)[1], signal.SIGKILL)
    killed = time.monotonic()
    output = started.communicate(timeout=100)[0]
    assert started.returncode != 0
    assert time.monotonic() - killed < 60
    again = "torchrun --nproc-per-node 2 -m limbeck run recipe.yaml --out two --resume"
    assert f"2 processes; to resume if one of them fails: {again}" in output
    assert "batch size of all 2 processes together: 64 for the student, 64 for the teacher" in output
    assert output.count("teacher/seed0: epoch 1/1") == 1  # only the first process prints
    assert not Path("two/result.json").exists()
    resumed = run_here("two", resume=True)
    ours, theirs = (load_network(Path(name) / "student.safetensors")[0].state_dict() for name in ("two", "one"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)
    assert abs(resumed.student.test.accuracy - whole.student.test.accuracy) < 0.01


def test_after_an_error_in_one_process_its_traceback_is_shown_and_torchrun_resumes_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(FAILS)
    teacher = NetworkSpec("mlp", {"hidden": [100]}, 10, (1, 8, 8))
    save_network(build("mlp", classes=10, shape=(1, 8, 8), hidden=[100]), Path("teacher.safetensors"), spec=teacher)
    recipe = RECIPE.replace("{name: mlp, hidden: [50]}", "'net.py:fails'").replace("60", "4")
    sharded = "teacher: {weights: teacher.safetensors, shard: true}"
    Path("recipe.yaml").write_text(re.sub("teacher: .*", sharded, recipe) + "allow: [chance]\n")
    command = [*torchrun("--max-restarts", "1"), "--out", "two"]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    again = "To resume: torchrun --nproc-per-node 2 -m limbeck run recipe.yaml --out two --resume"
    assert f"process 1 has failed. {again}" in ended.stderr
    assert ended.stderr.count("ValueError: of process 1") == 1
    assert ended.stdout.count("kd/seed0: epoch 1/4") == 1  # the run was resumed, not started again
    assert ended.stdout.count("kd/seed0: epoch 4/4") == 1
    divided = read_result(Path("two")).teacher
    assert (divided.parameters, divided.latency) == (7510, None)


@pytest.mark.parametrize(("rank", "machines"), [(0, 1), (1, 1), (0, 2), (2, 2)])
def test_a_process_that_loses_another_says_how_to_resume(monkeypatch, capsys, rank, machines):
    for name, value in {"RANK": rank, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4 // machines}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(Exit), reporting("limbeck run a.yaml --resume", several=True):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    again = "torchrun --nproc-per-node 4" if machines == 1 else "start torchrun again on each machine, with"
    expected = f"Connection closed by peer). To resume: {again} -m limbeck run a.yaml --resume"
    said = capsys.readouterr().err
    assert (expected in said) == (rank < 2)  # two of many processes are enough
    assert said.count("\n") == 1


def test_an_error_of_all_processes_is_printed_once_and_before_the_line_on_resuming(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE.replace("kd", "kt"))
    ended = subprocess.run(torchrun(), env=environment(), capture_output=True, text=True, timeout=200)
    assert ended.returncode == 1
    assert (ended.stdout + ended.stderr).count("there is no method 'kt'") == 1
    assert "error: " in ended.stderr.partition("Traceback")[0]
    assert "to resume" not in ended.stdout


def test_an_error_of_another_process_alone_is_printed_after_a_while(monkeypatch, capsys):
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    waited = []
    monkeypatch.setattr("limbeck.cli.reporting.time.sleep", waited.append)
    with pytest.raises(Exit), reporting("limbeck run a.yaml --resume", several=True):
        raise DamagedStore("a file is damaged")
    assert len(waited) == 1
    again = "Build the store again first. To resume: torchrun --nproc-per-node 2 -m limbeck run a.yaml --resume"
    assert capsys.readouterr().err == f"process 1: error: a file is damaged\n{again}\n"


def test_an_error_of_the_process_itself_is_shown_in_each_process(monkeypatch, capsys):
    for name, value in {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    error = "NCCL error: unhandled cuda error"
    with pytest.raises(RuntimeError, match=error), reporting("limbeck run a.yaml --resume", several=True):
        raise RuntimeError(error)
    assert "process 3 has failed. To resume: torchrun" in capsys.readouterr().err


def test_a_process_ends_when_torchrun_is_killed():
    child = (
        "import os; parent = os.getppid(); from limbeck.train.processes import _end_with; print(); "
        "from threading import Event; _end_with(parent, Event())"
    )
    asked = [sys.executable, "-uc", f"import subprocess, sys; subprocess.run([sys.executable, '-uc', {child!r}])"]
    launcher = subprocess.Popen(asked, stdout=subprocess.PIPE)
    launcher.stdout.readline()
    time.sleep(1)
    assert launcher.poll() is None  # as long as its process runs
    launcher.kill()
    launcher.communicate(timeout=60)  # until the process has ended, too


def test_only_run_takes_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = CliRunner().invoke(app, ["compare", "digits_kd"])
    assert ended.exit_code == 2
    assert "torchrun ... -m limbeck run RECIPE" in ended.stderr
