"""`limbeck compress`, on a run folder."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.models import load_network
from limbeck.train import loop

RECIPE = """\
name: tiny
precision: 32
data: {source: digits, limit: 200}
teacher:
  model: {name: mlp, hidden: [16]}
  train: {epochs: 1, batch_size: 32}
student:
  model: {name: mlp, hidden: [16]}
method: METHOD
train: {epochs: 1, batch_size: 32}
evaluate: {latency_runs: 1}
"""


def does(*arguments, code=0):
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(method, *settings):
        Path("recipe.yaml").write_text(RECIPE.replace("METHOD", method))
        does("run", "recipe.yaml", "--out", "run", *settings)

    return make


SHORT = ("--epochs", 1, "--centroid-epochs", 1)


def test_a_run_gives_a_small_file_that_loads_alone_like_other_weights(run):
    pytest.importorskip("constriction")
    run("kd")
    said = does("compress", "run", *SHORT, "--keep", "linear=0.2", "--keep", "head=0.5", "--bits", "head=2")
    assert "kd/seed0: test split" in said
    assert all(word in said for word in ("original", "pruned", "quantised", "coded", "ratio", "accuracy"))
    assert "weights that are not 0: stage1.linear 20.0%, head 50.0%" in said
    loaded, spec = load_network("run/compressed.safetensors")
    assert spec.name == "mlp"
    assert len(torch.unique(loaded.head.weight)) == 5
    does("compress", "run", "--network", "alone/seed0", *SHORT, "--out", "alone.safetensors")
    assert not torch.equal(load_network("alone.safetensors")[0].head.weight, loaded.head.weight)


def test_a_method_of_several_stages_retrains_by_its_last_one(run, monkeypatch):
    pytest.importorskip("constriction")
    run("fitnets")
    trained = []

    def record(stages, *arguments, **options):
        trained.extend((stage.name, stage.epochs, tuple(stage.terms)) for stage in stages)
        return loop.run(stages, *arguments, **options)

    monkeypatch.setattr("limbeck.exports.compress.run", record)
    does("compress", "run", "--epochs", 2, "--centroid-epochs", 1)
    assert trained == [("kd", 2, ("hard", "soft")), ("kd", 1, ("hard", "soft"))]


def test_a_method_that_does_more_than_to_train_the_student_needs_alone(run):
    pytest.importorskip("constriction")
    run("mimic")
    assert "compress without the teacher (--alone)" in does("compress", "run", *SHORT, code=2)
    does("compress", "run", *SHORT, "--alone")
    slow = load_network("run/compressed.safetensors")[0].head.weight
    does("compress", "run", *SHORT, "--alone", "--lr", 0.05)
    assert not torch.equal(load_network("run/compressed.safetensors")[0].head.weight, slow)
    assert "optimizer.lr: got -1.0" in does("compress", "run", *SHORT, "--alone", "--lr", -1, code=2)


def test_what_belongs_to_the_first_training_is_not_repeated(run):
    pytest.importorskip("constriction")
    options = "train={epochs: 2, warmup: 1, freeze: {layers: [head], epochs: 1}, keep: best, quantise: {epochs: 2}}"
    run("kd", "--set", options)
    does("compress", "run", *SHORT)
    assert load_network("run/compressed.safetensors")[1].name == "mlp"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--keep", "head"), "--keep is 'head': write NAME=SHARE, such as head=0.3"),
        (("--keep", "head=much"), "--keep is 'head=much': write NAME=SHARE"),
        (("--bits", "head=2.5"), "--bits is 'head=2.5': write NAME=BITS, such as head=5"),
        ((), "there is no folder none"),
    ],
)
def test_a_mistake_is_told_before_anything_is_read(arguments, message):
    assert message in does("compress", "none", *arguments, code=2)
