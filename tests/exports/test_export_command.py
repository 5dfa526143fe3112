"""`limbeck export`, and the page docs/how-to/export.md."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import limbeck
from limbeck.cli import app
from limbeck.cli.export import _evidence
from limbeck.experiment.measuring import outputs_of
from limbeck.exports import EXPORTERS
from limbeck.exports.base import missing_of
from limbeck.exports.card import read_card
from limbeck.exports.parity import LIMITS
from limbeck.exports.source import Finished
from limbeck.tasks import task_of
from limbeck.train.engine import make_engine

pytestmark = pytest.mark.skipif(bool(missing_of(EXPORTERS["onnx"].modules)), reason="needs limbeck[export]")

PAGE = Path(__file__).parents[2].joinpath("docs/how-to/export.md").read_text(encoding="utf-8")
RECIPE = """\
name: tiny
data: {source: digits, limit: 300}
teacher:
  model: {name: mlp, hidden: [32]}
  train: {epochs: 6, batch_size: 32, optimizer: {name: adam, lr: 0.01}}
student:
  model: {name: mlp, hidden: [8]}
method: {name: kd, temperature: 3}
train: {epochs: 4, batch_size: 32, optimizer: {name: adam, lr: 0.01}}
seeds: [0, 1]
evaluate: {latency_runs: 1}
precision: 32
"""


def limbeck_command(*arguments, code=0):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with a run and a comparison; do not change them."""
    place = tmp_path_factory.mktemp("runs")
    (place / "recipe.yaml").write_text(RECIPE)
    limbeck_command("run", place / "recipe.yaml", "--out", place / "run")
    limbeck_command("compare", place / "recipe.yaml", "--methods", "kd", "--seeds", 1, "--out", place / "compared")
    return place


def test_the_student_of_a_run_is_exported_with_its_teacher_behind_it(folders, tmp_path):
    out = tmp_path / "out"
    shown = limbeck_command("export", folders / "run", "--int8", "--probabilities", "--defer-share", 0.5, "--out", out)
    assert "kd/seed0: test split" in shown
    assert "batch sizes 1, 2, 8: greatest difference" in shown
    assert "ask the teacher if the confidence is at most" in shown
    card = json.loads((out / "card.json").read_text())
    result = json.loads((folders / "run" / "kd" / "seed0" / "result.json").read_text())
    assert (card["network"], card["weights_sha256"]) == ("kd/seed0", result["weights_sha256"])
    assert card["results"]["student"] == result["test"]["accuracy"]
    assert card["deferring"]["validation"]["share"] >= 0.5
    run = Finished(folders / "run")
    test = run.source.data.test
    logits = EXPORTERS["onnx"].load(out / "student.onnx")(test.inputs.permute(0, 2, 3, 1).contiguous())
    taught = outputs_of(run.teacher(), test, run.source.data, make_engine(device="cpu", precision="32"))
    alone = logits.double().softmax(dim=1).amax(dim=1) > card["deferring"]["threshold"]
    assert 0 < alone.sum() < len(test)
    right = torch.where(alone, logits.argmax(dim=1), taught.argmax(dim=1)) == test.targets
    found = [one.double().mean().item() for one in (alone, right)]
    assert [card["deferring"]["test"][key] for key in ("share", "accuracy")] == pytest.approx(found)
    known = read_card(out)  # as where the file does not run
    known = replace(known, deferring=replace(known.deferring, test=None), results=replace(known.results, parity=None))
    assert [*_evidence(known)][-2:] == [
        "the file was not compared with the student: it does not run on this system",
        f"ask the teacher if the confidence is at most {card['deferring']['threshold']:.4f} "
        "(chosen on the validation split)",
    ]


def test_the_default_place_is_in_the_folder_and_any_network_can_be_chosen(folders):
    options = ("--network", "alone/seed1", "--batch", 1, "--layout", "nchw", "--size", "24x32")
    shown = limbeck_command("export", folders / "run", *options)
    file = folders / "run" / "export" / "alone-seed1-onnx-fp32-24x32-nchw-batch1" / "student.onnx"
    assert f"written: {file}" in shown.replace("\n", "")
    card = json.loads((file.parent / "card.json").read_text())
    assert card["reads"]["shape"] == [1, 1, 24, 32]


def test_a_file_for_a_camera_is_tested_on_the_data_in_images_of_its_size(folders, tmp_path):
    shown = limbeck_command("export", folders / "run", "--size", "24x32", "--out", tmp_path / "out")
    assert "all figures are those of the data in images of 24 x 32 pixels" in shown
    assert json.loads((tmp_path / "out" / "card.json").read_text())["reads"]["shape"] == [None, 24, 32, 1]


def test_a_student_of_a_comparison_is_named(folders, tmp_path):
    assert "choose a student with --network" in limbeck_command("export", folders / "compared", code=2)
    chosen = ("--network", "kd/seed0", "--defer-share", 0.5)
    shown = limbeck_command("export", folders / "compared", *chosen, "--out", tmp_path / "out")
    assert "ask the teacher if" in shown
    assert (tmp_path / "out" / "student.onnx").exists()


NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(64, 10)

    def forward(self, inputs):
        return {"softmax": self.head(inputs.flatten(1)).softmax(dim=1)}

def net(*, classes, shape):
    return Net()
"""


@pytest.mark.parametrize(
    "overrides",
    [
        ("teacher.input={mean: 0.9, std: 0.1}",),
        ("teacher={weights: {teacher}, classes: [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]}", "allow=[chance, permuted]"),
        tuple(f"{one}.{key}" for one in ("student", "teacher") for key in ("model={file}:net", "output=probabilities")),
    ],
)
def test_teacher_and_student_of_a_run_are_read_as_its_recipe_says(folders, tmp_path, overrides, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the weights name net.py without its folder
    names = {"{teacher}": f"{folders / 'run' / 'teacher' / 'seed0'}", "{file}": f"{tmp_path / 'net.py'}"}
    (tmp_path / "net.py").write_text(NET)
    for name, value in names.items():
        overrides = [one.replace(name, value) for one in overrides]
    sets = [argument for one in ("seeds=[0]", "baseline=false", *overrides) for argument in ("--set", one)]
    limbeck_command("run", folders / "recipe.yaml", "--out", tmp_path / "run", *sets)
    found = Finished(tmp_path / "run", trust_code=True)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    data = found.source.data
    outputs = outputs_of(found.teacher(), data.test, data, make_engine(device="cpu", precision="32"))
    assert task_of(data).score(outputs, data.test.targets) == result["teacher"]["test"]["accuracy"]
    limbeck_command("export", tmp_path / "run", "--probabilities", "--out", tmp_path / "out", "--trust-code")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onx"], "there is no export to 'onx': did you mean 'onnx'"),
        (["--int8", "--fp16"], "--fp16 or --int8, not both"),
        (["--batch", "4"], "--batch is '4'"),
        (["--network", "kd/seed9"], "has no student 'kd/seed9': did you mean 'kd/seed"),
        (["--defer-accuracy", "1.0"], "do not reach an accuracy of 1"),
        (["--to", "litert", "--fp16"], "litert has no fp16"),
    ],
)
def test_what_is_wrong_is_one_error_with_exit_code_2(folders, tmp_path, arguments, message):
    shown = limbeck_command("export", folders / "run", "--out", tmp_path / "out", *arguments, code=2)
    assert message in " ".join(shown.split())
    assert not (tmp_path / "out").exists()


def test_two_goals_of_a_deferral_are_refused_before_the_run_is_read(tmp_path):
    shown = limbeck_command("export", tmp_path / "none", "--defer-share", 0.5, "--defer-accuracy", 0.5, code=2)
    assert "--defer-accuracy or --defer-share, not both" in shown


def test_changed_data_is_refused(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.data.split.Split.digest", lambda split: "0" * 32)
    shown = limbeck_command("export", folders / "run", "--out", tmp_path / "out", code=2)
    assert "the test split has changed since" in " ".join(shown.split())


def test_the_page_states_the_limits_and_the_backends():
    for name, limit in LIMITS.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| {name}"))
        numbers = [float(one) for one in re.findall(r"(?<!fp)(?<!int)\b\d+(?:\.\d+)?\b", row)]
        assert numbers == [one for one in (limit.difference, limit.numbers) if one < 1] + [100 * limit.agreement]
    for name, backend in EXPORTERS.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}`"))
        assert ", ".join(backend.precisions) in row
        assert f"limbeck[{backend.extra}]" in row


def test_the_code_of_the_page_runs(folders, tmp_path, monkeypatch, capsys):
    onnx_code, pair_code, call_code = (code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    monkeypatch.chdir(tmp_path)
    limbeck_command("export", folders / "run", "--int8", "--out", "runs/demo/export/onnx-int8")
    exec(onnx_code, {})
    assert capsys.readouterr().out.strip() in map(str, range(10))
    data = limbeck.load("digits", limit=100)
    networks = [
        limbeck.load_network(folders / "run" / name / "seed0" / f"{file}.safetensors")[0]
        for name, file in (("kd", "student"), ("teacher", "teacher"))
    ]
    names = {"limbeck": limbeck, "student": networks[0], "teacher": networks[1], "data": data}
    exec(pair_code, {**names, "inputs": torch.rand(5, 1, 8, 8)})
    assert sum(map(int, capsys.readouterr().out.split())) == 5
    exec(call_code.replace("0.97", "0.1"), names)
    assert "student.onnx" in capsys.readouterr().out


def test_deferred_asks_the_teacher_only_when_the_student_is_not_sure():
    student, teacher = torch.nn.Identity(), torch.nn.Hardtanh(max_val=-1.0, min_val=-2.0)
    pair = limbeck.Deferred(student, teacher, threshold=0.9)
    inputs = torch.tensor([[9.0, 0.0], [0.1, 0.0], [0.0, 7.0]])
    found = pair(inputs)
    np.testing.assert_array_equal(found, [[9.0, 0.0], [-1.0, -1.0], [0.0, 7.0]])
    assert (pair.answered, pair.deferred) == (2, 1)
    with pytest.raises(limbeck.LimbeckError, match="the threshold is 90"):
        limbeck.Deferred(student, teacher, threshold=90)
