"""`limbeck cache build --ray`."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from limbeck.cache.manifest import info
from limbeck.cli import app
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
