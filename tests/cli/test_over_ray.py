"""`limbeck cache build --ray`."""

import sys
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from limbeck.cache.manifest import info
from limbeck.cli import app
from limbeck.cli.over_ray import RETRIES, built
from limbeck.errors import LimbeckError
from limbeck.models import NetworkSpec, build, save_network

RECIPE = """
name: shards
data: {source: digits, limit: 100}
teacher: {weights: teacher.safetensors}
student: {model: {name: mlp, hidden: [8]}}
method: kd
train: {epochs: 1}
cache: {folder: store}
precision: 32
device: cpu
allow: [chance]
"""


def limbeck_does(*arguments):
    return CliRunner().invoke(app, ["cache", "build", "recipe.yaml", *arguments])


@pytest.fixture(autouse=True)
def _recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = NetworkSpec("mlp", {"hidden": [16]}, 10, (1, 8, 8))
    save_network(build("mlp", classes=10, shape=(1, 8, 8), hidden=[16]), Path("teacher.safetensors"), spec=spec)
    Path("recipe.yaml").write_text(RECIPE)


def test_without_ray_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = limbeck_does("--ray", "2")
    assert (ended.exit_code, "pip install 'limbeck[ray]'" in ended.output) == (2, True)
    assert "remove --shard" in limbeck_does("--ray", "2", "--shard", "0/2").output


class StandIn:
    """The part of Ray that limbeck uses, on a cluster with GPUs; a task runs when its result is asked for."""

    exceptions = SimpleNamespace(RayError=KeyError)

    def init(self, **_):
        return nullcontext()

    def cluster_resources(self):
        return {"GPU": 2.0}

    def remote(self, **options):
        self.options = options
        return lambda build: SimpleNamespace(remote=lambda *given: partial(build, *given))

    def wait(self, tasks):
        return tasks[:1], tasks[1:]

    def get(self, task):
        for _ in range(1 + self.options["retry_exceptions"] * self.options["max_retries"]):
            with suppress(RuntimeError):
                return task()
        raise KeyError("a task has failed")


@pytest.mark.parametrize(("code", "times", "said"), [(2, 1, "why"), (3, 1, "why"), (1, 1 + RETRIES, "has failed")])
def test_a_shard_that_fails_is_built_again_unless_the_user_has_to_fix_its_error(monkeypatch, code, times, said):
    ray, ran = StandIn(), list[str]()

    def run(line, **_):
        ran.append(line[-1])
        return SimpleNamespace(returncode=code if line[-1] == "1/2" else 0, stderr="why")

    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr("subprocess.run", run)
    shards = built(["limbeck"], 2, gpus=True)
    assert (next(shards), ray.options["num_gpus"]) == (0, 1)
    with pytest.raises(LimbeckError, match=rf"shard 1/2 was not built: .*{said}"):
        next(shards)
    assert ran == ["0/2", *["1/2"] * times]


def test_the_command_that_continues_after_a_stop_builds_the_same_shards(monkeypatch):
    def stopped(command, count, *, gpus):
        assert (command[-1], count, gpus) == ("recipe.yaml", 2, False)
        raise KeyboardInterrupt

    monkeypatch.setattr("limbeck.cli.over_ray.built", stopped)
    assert "limbeck cache build recipe.yaml --ray 2" in limbeck_does("--ray", "2").output


@pytest.mark.filterwarnings("ignore")  # those of Ray
def test_tasks_of_ray_build_a_store_and_say_what_is_wrong():
    pytest.importorskip("ray")
    ended = limbeck_does("--ray", "2")
    assert "2 of 2" in ended.output, ended.output
    (folder,) = Path("store").iterdir()
    assert info(folder).finished
    Path("teacher.safetensors").write_bytes(b"damaged")
    ended = limbeck_does("--ray", "1", "--set", "cache.seed=1")
    assert ended.exit_code == 2
    assert "shard 0/1 was not built" in ended.output
    assert "teacher.safetensors" in ended.output
