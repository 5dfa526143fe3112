import json
import subprocess

import pytest
import torch

from limbeck.experiment import environment as module
from limbeck.experiment.environment import PACKAGES, environment


def test_all_that_a_run_depends_on_is_there():
    found = environment()
    names = {"python", "platform", "packages", "cpu", "cores", "threads", "processes_here", "gpus", "commit"}
    assert set(found) == names
    assert tuple(found["packages"]) == PACKAGES
    assert found["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu"]
    assert found["cores"] >= 1


def test_it_can_be_written_as_json():
    found = environment()
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("git"),
        PermissionError("git"),
        subprocess.CalledProcessError(128, "git", stderr="fatal: not a git repository"),
        subprocess.TimeoutExpired("git", 5),
    ],
)
def test_outside_a_checkout_there_is_no_commit(monkeypatch, error):
    def fails(*given, **options):
        raise error

    monkeypatch.setattr(module.subprocess, "run", fails)
    assert environment()["commit"] is None


@pytest.mark.parametrize(("changes", "shown"), [("", "0123abc"), (" M src/limbeck/core.py", "0123abc-dirty")])
def test_in_a_checkout_the_commit_is_the_checkouts(monkeypatch, changes, shown):
    said = {"ls-files": "environment.py", "rev-parse": "0123abc", "status": changes}

    def git(command, **options):
        assert command[:2] == ["git", "-C"]
        return subprocess.CompletedProcess(command, 0, stdout=said[command[3]] + "\n", stderr="")

    monkeypatch.setattr(module.subprocess, "run", git)
    assert environment()["commit"] == shown


def test_a_checkout_that_only_surrounds_the_package_gives_no_commit(monkeypatch):
    def git(command, **options):
        if "ls-files" in command:
            raise subprocess.CalledProcessError(1, command)
        return subprocess.CompletedProcess(command, 0, stdout="0123abc\n", stderr="")

    monkeypatch.setattr(module.subprocess, "run", git)
    assert environment()["commit"] is None


@pytest.mark.parametrize(
    ("content", "name"),
    [("processor\t: 0\nmodel name\t: Some: CPU @ 2 GHz\nmodel name\t: other\n", "Some: CPU @ 2 GHz"), ("", None)],
)
def test_the_processor_is_named(monkeypatch, tmp_path, content, name):
    (tmp_path / "cpuinfo").write_text(content)
    monkeypatch.setattr(module, "Path", lambda path: tmp_path / "cpuinfo" if path == "/proc/cpuinfo" else tmp_path)
    monkeypatch.setattr(module.platform, "processor", lambda: "")
    monkeypatch.setattr(module.platform, "machine", lambda: "riscv")
    assert environment()["cpu"] == (name or "riscv")


def test_a_machine_without_cpuinfo_is_named_too(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "Path", lambda path: tmp_path / "nothing")
    monkeypatch.setattr(module.platform, "processor", lambda: "arm")
    assert environment()["cpu"] == "arm"
