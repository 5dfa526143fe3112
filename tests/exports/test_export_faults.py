"""What goes wrong in an export is one message; nothing half-written stays, and an earlier export does."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from typer.testing import CliRunner

import limbeck
from limbeck.cli import app
from limbeck.exports import EXPORTERS
from limbeck.exports.base import Exporter, missing_of
from limbeck.exports.card import CARD
from limbeck.exports.options import Options
from limbeck.files.atomic import NoSpace, write_sealed
from limbeck.models import build

needs_onnx = pytest.mark.skipif(bool(missing_of(EXPORTERS["onnx"].modules)), reason="needs limbeck[export]")
RECIPE = """\
name: tiny
data: {source: digits, limit: 300}
student: {model: {name: mlp, hidden: [8]}}
method: alone
train: {epochs: 1, batch_size: 64}
evaluate: {latency_runs: 1}
precision: 32
allow: [chance, permuted]
"""


def plain(**changes):
    """A backend that writes the card and runs the module itself."""
    modules = {}

    def export(graph, path):
        modules[path] = graph.module
        path.write_text(graph.card)

    def load(path, output=0):
        def run(raw):
            outputs = modules[path](raw)
            return outputs[output] if isinstance(outputs, tuple) else outputs

        return run

    whole = Exporter(".plain", ("torch",), "export", export, load, ("fp32", "int8"), True, Path.read_text, ("torch",))
    return replace(whole, **changes)


@pytest.fixture
def backend(monkeypatch):
    """What sets the backend ``plain`` to one that differs from it."""

    def use(**changes):
        known = {"plain": plain(**changes)}
        for module in ("options", ""):
            monkeypatch.setattr(f"limbeck.exports{module and '.'}{module}.EXPORTERS", known)

    use()
    return use


@pytest.fixture(scope="module")
def data():
    return limbeck.load("digits", limit=200)


def mlp(classes=10, shape=(1, 8, 8)):
    torch.manual_seed(0)
    return build("mlp", classes=classes, shape=shape, hidden=(9,)).eval()


def refused(folder, message, *arguments, **options):
    """The error of an export, which is one line and leaves nothing; or the export before it, unchanged."""
    before = {one: one.read_bytes() for one in folder.parent.rglob("*") if one.is_file()}
    with pytest.raises(limbeck.LimbeckError, match=message) as caught:
        limbeck.export(*arguments, folder, **options)
    assert "\n" not in str(caught.value)
    assert {one: one.read_bytes() for one in folder.parent.rglob("*") if one.is_file()} == before
    return caught.value


class TwoInputs(nn.Module):
    def forward(self, one, two):
        return one + two


class OfTheInput(nn.Module):
    """A function of the inputs after a linear layer."""

    def __init__(self, function):
        super().__init__()
        self.head, self.function = nn.Linear(64, 10), function

    def forward(self, inputs):
        return self.function(self.head(inputs.flatten(1)))


def of_locks():
    network = mlp()
    network.lock = threading.Lock()
    return network


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (TwoInputs, "the student fails on a batch of the data: .*missing 1 required positional argument"),
        (lambda: OfTheInput(lambda outputs: outputs / 0), "the student's outputs are not finite"),
        (lambda: mlp(classes=7), "the student gives .7,. a sample, but the data has 10 classes"),
        (of_locks, "the student cannot be copied, because its lock is a lock"),
        (lambda: nn.DataParallel(mlp()), "the student is a DataParallel"),
    ],
)
def test_a_student_that_cannot_be_exported_is_told(network, message, data, tmp_path, backend):
    refused(tmp_path / "out", message, network(), data, to="plain")


@needs_onnx
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (torch.special.bessel_j0, "cannot be exported to onnx: No ONNX function found for .*bessel_j0"),
        (lambda outputs: outputs if outputs.sum() > 0 else -outputs, "its forward depends on the values of tensors"),
    ],
)
def test_an_operator_and_control_flow_that_a_backend_does_not_take_are_told(function, message, data, tmp_path):
    refused(tmp_path / "out", message, OfTheInput(function), data)


REPORTED = """
import sys
from limbeck.exports.openvino import load
try:
    load("none")
except RuntimeError:
    print(sys.modules["openvino"] and sys.modules["openvino_telemetry"])
"""


@pytest.mark.skipif(bool(missing_of(EXPORTERS["openvino"].modules)), reason="needs limbeck[openvino]")
def test_openvino_does_not_report_its_use_to_a_server(tmp_path):
    places = {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", REPORTED], env=os.environ | places, timeout=60, capture_output=True, text=True
    )
    assert done.stdout == "None\n"
    assert list(tmp_path.iterdir()) == []


def test_students_with_computed_weights_and_compiled_ones_are_copied(data, tmp_path, backend):
    pruned = mlp()
    prune.l1_unstructured(pruned.head, "weight", 0.5)
    pruned(data.test.inputs[:2].float())  # the weight of its head has a history now
    for number, network in enumerate((pruned, torch.compile(mlp()))):
        assert limbeck.export(network, data, tmp_path / str(number), to="plain").card.results.parity.relative < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "plane"}, "there is no export to 'plane': did you mean 'plain'"),
        ({"precision": "int4"}, "precision is 'int4': did you mean 'int8'"),
        ({"precision": "fp16"}, "plain has no fp16: allowed are fp32, int8"),
        ({"layout": "nwhc"}, "layout is 'nwhc': did you mean 'nhwc'"),
        ({"batch": 3}, "batch is 3: allowed are 1, and None"),
        ({"runtime": Path("here")}, "plain has no runtime"),
    ],
)
def test_a_wrong_option_is_told(options, message, data, tmp_path, backend):
    refused(tmp_path / "out", message, mlp(), data, **{"to": "plain"} | options)


def test_a_missing_package_is_told_with_the_command_that_installs_it(data, tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.exports.base.find_spec", lambda name: None)
    refused(tmp_path / "out", r"needs onnx, onnxscript, onnxruntime: pip install 'limbeck\[export\]'", mlp(), data)


def raising(error):
    def raises(*arguments):
        raise error

    return raises


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"export": raising(ImportError("cannot import name 'quantize'"))}, "exported to plain: cannot import name"),
        ({"export": raising(RuntimeError(""))}, "exported to plain: RuntimeError"),
        ({"load": raising(RuntimeError("opset 99 is unknown\nsecond line"))}, "file does not run: opset 99 is unknown"),
        ({"load": lambda path: raising(ValueError("no kernel"))}, "the exported file does not run: no kernel"),
        (
            {"load": lambda path: lambda inputs: torch.full((len(inputs), 10), torch.nan)},
            "does not answer .* are not finite, or have",
        ),
        ({"load": lambda path: lambda inputs: torch.zeros(len(inputs), 9)}, "does not answer .* or have another shape"),
    ],
)
def test_a_backend_that_fails_is_told(changes, message, data, tmp_path, backend):
    limbeck.export(mlp(), data, tmp_path / "out", to="plain")
    backend(**changes)
    refused(tmp_path / "out", message, mlp(), data, to="plain")


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def without_space(monkeypatch, where):
    if where == "card":
        monkeypatch.setattr("limbeck.exports.make.write_sealed", raising(FULL))
    if where == "library":  # it raises an error that does not say why; the next write does
        monkeypatch.setattr("limbeck.exports.errors.refusal", lambda file: FULL)


@pytest.mark.parametrize("where", ["file", "library", "card"])
def test_a_full_disk_is_told_and_the_earlier_export_stays(where, data, tmp_path, backend, monkeypatch):
    limbeck.export(mlp(), data, tmp_path / "out", to="plain")
    backend(**{} if where == "card" else {"export": raising(FULL if where == "file" else RuntimeError("bad stream"))})
    without_space(monkeypatch, where)
    error = refused(tmp_path / "out", "out cannot be written: No space left on device", mlp(), data, to="plain")
    assert isinstance(error, NoSpace)


@pytest.mark.parametrize("name", ["mkdir", "rename"])
def test_a_folder_that_cannot_be_written_is_told_and_the_earlier_export_stays(
    name, data, tmp_path, backend, monkeypatch
):
    limbeck.export(mlp(), data, tmp_path / "out", to="plain")
    whole = getattr(Path, name)

    def denied(path, *arguments, **options):
        if path.name == "export" or name == "mkdir":  # the new export; what was there has been moved
            raise PermissionError(errno.EACCES, "Permission denied")
        return whole(path, *arguments, **options)

    monkeypatch.setattr(Path, name, denied)
    refused(tmp_path / "out", "out cannot be written: Permission denied", mlp(), data, to="plain")


def test_an_interrupted_export_leaves_nothing(data, tmp_path, backend):
    backend(load=raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        limbeck.export(mlp(), data, tmp_path / "out", to="plain")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from test_export_faults import limbeck, mlp, plain
import limbeck.exports.options
limbeck.exports.options.EXPORTERS = {"plain": plain(load=lambda path: os.kill(os.getpid(), signal.SIGKILL))}
limbeck.export(mlp(), limbeck.load("digits", limit=200), sys.argv[1], to="plain")
"""


@pytest.mark.timeout(120)
def test_a_killed_export_leaves_no_card_and_the_next_one_works(data, tmp_path, backend):
    places = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "out"], env=os.environ | places, timeout=100)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob(CARD))
    assert limbeck.export(mlp(), data, tmp_path / "out", to="plain").file.exists()


def test_two_exports_to_one_folder_leave_the_one_that_ends_last(data, tmp_path, backend):
    inner = plain()

    def export(graph, path):
        inner.export(graph, path)
        if not (tmp_path / "out").exists():
            backend()
            limbeck.export(mlp(), data, tmp_path / "out", to="plain", batch=1)

    backend(export=export, load=inner.load)
    done = limbeck.export(mlp(), data, tmp_path / "out", to="plain")
    assert json.loads(done.file.read_text())["reads"]["shape"][0] is None
    assert list(tmp_path.iterdir()) == [done.folder]


def test_a_folder_that_is_no_export_is_not_replaced(data, tmp_path, backend):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    refused(tmp_path / "out", r"holds thesis\.tex, which no export writes", mlp(), data, to="plain")
    refused(tmp_path / "out" / "thesis.tex", r"exists and holds thesis\.tex", mlp(), data, to="plain")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    refused(tmp_path / "link", "link is a link, which an export does not replace", mlp(), data, to="plain")


@pytest.mark.parametrize("name", ["thesis.tex", "student.safetensors"])
def test_an_export_with_other_files_beside_it_is_not_replaced(name, data, tmp_path, backend):
    folder = limbeck.export(mlp(), data, tmp_path / "out", to="plain").folder
    (folder / name).write_text("mine")
    refused(folder, f"holds {name}, which no export writes", mlp(), data, to="plain")
    (folder / name).unlink()
    working = plain()
    backend(export=working.export, load=lambda path: (folder / name).write_text("mine") and working.load(path))
    with pytest.raises(limbeck.LimbeckError, match=f"holds {name}, which no export writes"):
        limbeck.export(mlp(), data, folder, to="plain")
    assert (folder / name).read_text() == "mine"


def test_a_link_in_an_export_is_replaced_and_what_it_leads_to_stays(data, tmp_path, backend):
    folder, other = limbeck.export(mlp(), data, tmp_path / "out", to="plain").folder, tmp_path / "other"
    other.write_text("mine")
    (folder / "student.plain").unlink()
    (folder / "student.plain").symlink_to(other)
    done = limbeck.export(mlp(), data, folder, to="plain")
    assert not done.file.is_symlink()
    assert other.read_text() == "mine"


def without_validation(data):
    nothing = data.train.select(torch.arange(0))
    return limbeck.Data(data.train, nothing, data.test, data.classes, data.mean, data.std)


class NotFinite(nn.Module):
    def forward(self, inputs):
        return inputs.flatten(1)[:, :10] / 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probabilities": True}, "probabilities need a classification task and a validation split"),
        ({"deferral": limbeck.Deferral(mlp(), share=0.5)}, "a deferral needs a classification task and a validation"),
    ],
)
def test_what_is_chosen_on_validation_needs_a_validation_split(options, message, data, tmp_path, backend):
    refused(tmp_path / "out", message, mlp(), without_validation(data), to="plain", **options)


@pytest.mark.parametrize("goal", [{}, {"accuracy": 0.9, "share": 0.5}, {"accuracy": 90}, {"share": -0.1}])
def test_a_deferral_has_one_goal(goal):
    with pytest.raises(limbeck.LimbeckError, match=r"a deferral has an accuracy or a share, in \[0, 1\]: got"):
        limbeck.Deferral(mlp(), **goal)


def test_a_layout_that_the_page_does_not_read_is_told_before_the_data_is_read(tmp_path):
    with pytest.raises(limbeck.LimbeckError, match="the page of web reads images in nhwc, not in nchw"):
        Options("web", layout="nchw").check(tmp_path / "out")


def test_calibration_needs_training_samples(data):
    with pytest.raises(limbeck.LimbeckError, match="the train split is empty"):
        replace(data, train=data.train.select(torch.arange(0)))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (lambda: mlp(classes=12), "the teacher gives .12,. a sample, but the data has 10 classes"),
        (NotFinite, "the teacher's outputs on the validation split are not finite"),
        (TwoInputs, "the teacher fails on a batch of the data"),
        (lambda: mlp().double(), "the teacher fails on a batch of the data: mat1 and mat2 must have the same dtype"),
    ],
)
def test_a_teacher_that_does_not_fit_is_told(teacher, message, data, tmp_path, backend):
    deferral = limbeck.Deferral(teacher(), share=0.5)
    refused(tmp_path / "out", message, mlp(), data, to="plain", deferral=deferral)


def test_numbers_far_from_0_are_compared_with_their_spread(tmp_path, backend):
    inputs = torch.randn(60, 3)
    data = limbeck.arrays(inputs, inputs[:, :2] + 2000, task="regression")
    network = nn.Linear(3, 2)
    backend(load=lambda path: lambda raw: network(raw) + 1.0)  # 0.0005 of the greatest output
    for precision in ("fp32", "int8"):
        message = "differ by .* of the greatest deviation from the mean"
        refused(tmp_path / "out", message, network.eval(), data, to="plain", precision=precision)


def test_networks_modes_devices_and_random_numbers_stay_as_they_were(data, tmp_path, backend):
    student, teacher = mlp().train(), mlp().train()
    state, before = torch.get_rng_state(), [one.clone() for one in student.parameters()]
    limbeck.export(
        student, data, tmp_path / "out", to="plain", probabilities=True, deferral=limbeck.Deferral(teacher, share=0.5)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert student.training
    assert teacher.training
    assert all(torch.equal(one, two) for one, two in zip(before, student.parameters(), strict=True))
    assert all(one.requires_grad for one in (*student.parameters(), *teacher.parameters()))


@needs_onnx
def test_what_the_page_cannot_show_and_a_wrong_runtime_are_told(data, tmp_path, monkeypatch):
    inputs = torch.randn(60, 5)
    features = limbeck.arrays(inputs, torch.arange(60) % 3)
    refused(tmp_path / "out", "the page classifies grey or RGB images", mlp(3, (5,)), features, to="web")
    images = limbeck.arrays(data.train.inputs[:60], inputs[:, :2], task="regression")
    refused(tmp_path / "out", "the page classifies grey or RGB images", mlp(2), images, to="web")
    package = tmp_path / "package"
    message = r"package is not onnxruntime-web@.*, unpacked: dist/ort\.wasm\.min\.mjs is missing or differs"
    refused(tmp_path / "out", message, mlp(), data, to="web", runtime=package)
    (package / "dist").mkdir(parents=True)
    (package / "dist" / "ort.wasm.min.mjs").write_text("fetch('https://elsewhere')")
    refused(tmp_path / "out", message, mlp(), data, to="web", runtime=package)
    monkeypatch.setenv("PATH", "")
    refused(tmp_path / "out", "npm cannot fetch .*name its folder with --runtime", mlp(), data, to="web")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder; restore what is changed in it."""
    place = tmp_path_factory.mktemp("runs")
    (place / "recipe.yaml").write_text(RECIPE)
    result = CliRunner().invoke(app, ["run", str(place / "recipe.yaml"), "--out", str(place / "run")])
    assert result.exit_code == 0, result.output
    return place / "run"


@pytest.fixture
def changed(finished):
    """What changes a file of the run until the test ends."""
    kept = {}

    def change(name, function):
        (path,) = finished.glob(name)
        kept[path] = path.read_bytes()
        function(path)

    yield change
    for path, content in kept.items():
        path.write_bytes(content)


def of_another_version(path):
    values = json.loads(path.read_text())
    write_sealed(path, {key: value for key, value in values.items() if key != "sha256"} | {"schema": 99})


def told(*arguments):
    """The message of the command, which leaves nothing."""
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "*/seed0/student.safetensors",
            lambda path: path.write_bytes(b"0" * 99),
            "is missing, damaged or not the file",
        ),
        ("recipe.yaml", lambda path: path.write_text(path.read_text() + "\n# mine"), "recipe.yaml was changed after"),
        ("result.json", of_another_version, "result.json"),
        ("*/seed0/result.json", lambda path: path.write_text("{}"), "is damaged, or was changed"),
    ],
)
def test_a_file_of_the_run_that_was_changed_is_told(finished, tmp_path, changed, name, change, message):
    changed(name, change)
    assert message in told(finished, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_the_folder_does_not_have_is_told(finished, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert "there is no folder" in told(tmp_path / "none", "--out", out)
    assert "result.json" in told(finished.parent, "--out", out)
    assert "has no teacher" in told(finished, "--defer-share", 0.5, "--out", out)
    (finished / "export").symlink_to(tmp_path)
    assert "export is a link, which limbeck does not write to" in told(finished)
    (finished / "export").unlink()
    monkeypatch.setattr("limbeck.data.split.Split.digest", lambda split: "0" * 32)
    assert "the test split has changed since" in told(finished, "--out", out)
    assert list(tmp_path.iterdir()) == []
