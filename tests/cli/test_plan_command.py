"""What `limbeck plan` shows, and that it trains and writes nothing."""

import inspect
import json
import re
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.evaluate import parameters
from limbeck.experiment.forecast import _LAYERS
from limbeck.experiment.run import Experiment
from limbeck.experiment.verdicts import CHECKS
from limbeck.files import checkpoint
from limbeck.files.checkpoint import save
from limbeck.methods import METHODS
from limbeck.models import NetworkSpec, build, save_network
from limbeck.recipe.read import read

RECIPE = """\
name: tiny
precision: 32
data: {source: digits, limit: 64}
teacher:
  model: {name: mlp, hidden: [16]}
  train: {epochs: 1, batch_size: 32}
student:
  model: {name: mlp, hidden: [8]}
method: [kd, rkd]
train: {epochs: 3, batch_size: 32}
seeds: [0, 1]
cache: {use: true, dtype: float32}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    Path("recipe.yaml").write_text(RECIPE)


def planned(*settings, code=0, options=()):
    arguments = ["plan", "recipe.yaml", *options, *(part for one in settings for part in ("--set", one))]
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    assert [path.name for path in Path().iterdir() if path.suffix not in (".safetensors", ".pt")] == ["recipe.yaml"]
    return result.stdout


def as_json(*settings, code=0):
    return json.loads(planned(*settings, code=code, options=("--json",)))


def test_the_tables_fit_80_columns_and_name_networks_stages_terms_and_checks():
    shown = planned()
    tables = shown[: shown.index("runs/tiny will hold")].splitlines()
    assert max(map(len, tables)) <= 80
    words = (
        "train",
        "student",
        "teacher",
        "training kd+rkd, 2 times",
        "3 epochs of 2 steps",
        "hard",
        "overlap",
        "chance",
    )
    assert all(word in shown for word in words)
    assert shown.startswith("tiny: inputs of 1 x 8 x 8, targets of 10 classes; on cpu in 32 bits")
    assert "found: the input of the classifier" in " ".join(shown.split())
    assert "estimated time of all training steps" in shown


def test_checks_with_the_same_verdict_are_one_row():
    (row,) = re.findall(r"skipped (.*?no trained teacher.*?)\n(?:ok|warning|skipped)", planned(), re.DOTALL)
    told = set(re.findall("[a-z_]+", row))
    assert told >= {"not_finite", "probabilities", "random", "input", "permuted", "chance"}


def test_one_number_is_told_in_the_singular(tmp_path_factory):
    table = tmp_path_factory.mktemp("table") / "days.csv"
    table.write_text("x,y\n" + "".join(f"{row},{row % 7}\n" for row in range(40)))
    shown = planned(
        f"data={{source: table, path: {table}, features: true, task: regression, targets: [y]}}", "method=kd"
    )
    assert "targets of 1 number;" in " ".join(shown.split())


def test_the_json_holds_the_same_figures_that_the_run_has():
    found = as_json()
    experiment = Experiment(read(Path("recipe.yaml")), Path("elsewhere"))
    with experiment.factory:
        networks = experiment.built().networks
        assert {name: one["parameters"] for name, one in found["networks"].items()} == {
            name: parameters(network) for name, network in networks.items()
        }
    assert {name: one["samples"] for name, one in found["splits"].items()} == {
        "train": len(experiment.data.train),
        "validation": len(experiment.data.validation),
        "test": len(experiment.data.test),
    }
    assert {name: arm["trainings"] for name, arm in found["arms"].items()} == {"teacher": 2, "alone": 2, "kd+rkd": 2}
    assert found["kept"]["store"] == 2 * 64 * 4 * (10 + 16)  # teachers, samples, bytes, logits and features
    assert found["store"]["bytes"] == 64 * 4 * (10 + 16)  # of one teacher
    assert [verdict["check"] for verdict in found["verdicts"]] == list(CHECKS)
    assert found["seconds"] > 0
    assert found["memory"] > 0


@pytest.mark.parametrize(
    "training", [(), ("train.ema=0.9", "train.keep=best"), ("train.optimizer={name: sgd, lr: 0.1}",)]
)
def test_the_estimated_bytes_are_those_of_the_run(monkeypatch, tmp_path_factory, training):
    settings = ("method=fitnets", "teacher.model.hidden=[64, 64]", "student.model.hidden=[200, 200]", *training)
    kept = as_json(*settings)["kept"]
    sizes = [0]
    monkeypatch.setattr("limbeck.experiment.folder.CHECKPOINT_SHARE", 1e9)
    monkeypatch.setattr(checkpoint, "save", lambda path, state: save(path, state) or sizes.append(path.stat().st_size))
    folder = tmp_path_factory.mktemp("run")
    list(Experiment(read(Path("recipe.yaml"), overrides=settings), folder).run())
    files = [path.stat().st_size for path in folder.rglob("*.safetensors") if "store" not in path.parts]
    assert kept["weights"] == pytest.approx(sum(files), rel=0.1)
    assert kept["checkpoint"] == pytest.approx(max(sizes), rel=0.15)


def test_a_first_stage_that_the_seeds_share_is_counted_once(monkeypatch):
    monkeypatch.setattr("limbeck.experiment.forecast._step_seconds", lambda *_: 1.0)
    settings = ("method={name: fitnets, hint_epochs: 5}", "seeds=[0, 1, 2]", "teacher.seed=0", "baseline=false")
    apart, shared = (as_json(*settings, f"share_first_stage={value}") for value in ("false", "true"))
    assert [stage["trainings"] for stage in shared["arms"]["fitnets"]["stages"]] == [1, 3]
    assert apart["seconds"] - shared["seconds"] == 2 * 5 * 2  # seeds, epochs, steps
    told = " ".join(planned(*settings, "share_first_stage=true").split())
    assert "5 epochs of 2 steps, once for all seeds" in told


def test_a_layer_is_named_in_the_recipe_or_found():
    found = as_json("method={name: rkd, teacher_layer: 'head:input'}", "cache=false")
    reads = [read for term in found["arms"]["rkd"]["stages"][0]["terms"].values() for read in term["reads"]]
    assert {read["why"] for read in reads if read["tap"] == "teacher.head (input)"} == {"named in the recipe"}
    assert {read["why"] for read in reads if read["tap"] == "student.head (input)"} == {
        "found: the input of the classifier"
    }


def test_every_option_of_a_method_that_names_layers_is_known():
    options = {key for method in METHODS.values() for key in inspect.signature(method).parameters}
    named = {key for key in options if key.endswith(("_layer", "_layers"))}
    assert named == {key for keys in _LAYERS.values() for key in keys}


def test_the_training_of_a_teacher_is_shown_as_that_of_the_teacher():
    (stage,) = as_json()["arms"]["teacher"]["stages"]
    assert stage["learns"] == ["teacher"]
    assert [read["tap"] for read in stage["terms"]["hard"]["reads"]] == ["teacher", "batch.targets"]


def test_checks_that_need_the_network_of_a_teacher_are_skipped_for_a_table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    rows = ["file,cat,dog"]
    for number in range(24):
        file = folder / "images" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = numpy.random.default_rng(number).integers(0, 256, (8, 8), dtype=numpy.uint8)
        Image.fromarray(noise).save(file)
        rows.append(f"{file.parent.name}/{file.name},0.25,0.75")
    (folder / "labels.csv").write_text("\n".join(rows))
    data = f"data={{source: folder, path: {folder / 'images'}}}"
    teacher = f"teacher={{table: {folder / 'labels.csv'}, values: probabilities}}"
    found = {one["check"]: one for one in as_json(data, teacher, "method=kd", "cache.use=false")["verdicts"]}
    for check in ("chance", "buffers", "terms"):
        assert found[check]["state"] == "skipped"
    assert found["gradients"]["said"] == "the teacher is a table of soft labels"


def test_a_refusal_is_shown_with_its_override_beside_all_other_verdicts():
    spec = NetworkSpec("mlp", {"hidden": [16]}, 10, (1, 8, 8), tuple("0123456789"))
    torch.manual_seed(0)
    save_network(build("mlp", classes=10, shape=(1, 8, 8), hidden=[16]), Path("teacher.safetensors"), spec=spec)
    weights = ("teacher.train=null", "teacher.weights=[teacher.safetensors]")
    found = {verdict["check"]: verdict for verdict in as_json(*weights, code=2)["verdicts"]}
    assert found["chance"]["state"] == "refused"
    assert "--allow chance" in found["chance"]["said"]
    assert found["random"]["state"] == "ok"
    allowed = {verdict["check"]: verdict for verdict in as_json(*weights, "allow=[chance]")["verdicts"]}
    assert (allowed["chance"]["state"], allowed["permuted"]["state"]) == ("warning", "ok")


def test_a_teacher_that_is_trained_in_the_run_is_not_checked_yet():
    states = {verdict["check"]: verdict["state"] for verdict in as_json()["verdicts"]}
    assert states["chance"] == "skipped"


def test_what_stops_a_run_stops_the_plan_with_the_same_message():
    result = CliRunner().invoke(
        app, ["plan", "recipe.yaml", "--set", "train.optimizer={name: sgd, lr: 1, momentum: 0, nesterov: true}"]
    )
    assert result.exit_code == 2
    assert "Nesterov momentum requires" in result.stderr


def test_a_folder_that_holds_a_run_is_told_and_not_refused(monkeypatch):
    monkeypatch.setattr("limbeck.experiment.forecast.holds_epoch", lambda folder: True)
    monkeypatch.setattr("limbeck.experiment.folder.holds_epoch", lambda folder: True)
    told = "already holds a run: choose --resume, --overwrite or another --out for limbeck run"
    assert told in " ".join(planned().split())
