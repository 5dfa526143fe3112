"""Thirty faults of data, networks, files and runs: one clear message, the exit code, and nothing lost or half written.

The exit code is 2 for an error that is found before training, and 3 for an error that stops a training. A fault that
limbeck can repair does not stop a run.
"""

import json
import os
import resource
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import one_hot
from typer.testing import CliRunner

import limbeck
from limbeck.cli import app
from limbeck.core import LimbeckError
from limbeck.data import normalise
from limbeck.files import checkpoint
from limbeck.models import build, load_network

RECIPE = """\
name: tiny
precision: 32
data: {source: digits, limit: 64}
teacher:
  model: {name: mlp, hidden: [16]}
  train: {epochs: 1, batch_size: 32}
student:
  model: {name: mlp, hidden: [8]}
method: kd
train: {epochs: 1, batch_size: 32}
evaluate: {latency_runs: 1}
"""
NETWORKS = """\
import torch
from torch import nn

def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

class Breaks(nn.Module):
    \"\"\"Gives NaN from its fifth step on.\"\"\"
    def __init__(self):
        super().__init__()
        self.body = linear()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, inputs):
        self.steps += self.training
        return self.body(inputs) * torch.where(self.steps > 4, torch.nan, 1.0)
"""
FROM_FILE = ("teacher.train=null", "teacher.weights=[teacher.pt]")
FOLDER = "data={source: folder, path: pictures}"
LINEAR = ("data={source: digits}", "teacher.model='net.py:linear'", *FROM_FILE)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    Path("recipe.yaml").write_text(RECIPE)
    Path("net.py").write_text(NETWORKS)


def run(*settings, command=("run", "recipe.yaml")):
    """The result of `limbeck run` with these keys of the recipe set."""
    arguments = [*command, *(part for setting in settings for part in ("--set", setting))]
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def works(*settings, command=("run", "recipe.yaml")):
    result = run(*settings, command=command)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def refused(*settings, command=("run", "recipe.yaml")):
    """The message of a run that is refused before it trains or writes anything."""
    before = written()
    result = run(*settings, command=command)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert written() == before
    return " ".join(result.stderr.split())


def written():
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and "runs" in path.parts}


def draw(place, *, colour=False, side=8, seed=0):
    """A picture of noise."""
    noise = numpy.random.default_rng(seed).integers(0, 256, (side, side, 3)[: 3 if colour else 2], dtype=numpy.uint8)
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(place)
    return Path(place)


def pictures(top="pictures", classes=("cat", "dog"), each=8, **options):
    for number, name in enumerate(classes):
        for index in range(each):
            draw(f"{top}/{name}/{index}.png", seed=100 * number + index, **options)
    return Path(top)


def linear_teacher(*, order=range(10), classes=10, raw=False):
    """A linear network that knows the digits, fitted by least squares; its logits are in this order."""
    data = limbeck.load("digits")
    mean, std = ((0.0,), (1.0,)) if raw else (data.mean, data.std)
    inputs = normalise(data.train.inputs, mean, std).flatten(1)
    with_bias = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    weights = torch.linalg.lstsq(with_bias, 5 * one_hot(data.train.targets).float(), driver="gelsd").solution
    weights = weights[:, list(order)][:, :classes]
    return {"1.weight": weights[:-1].T.contiguous(), "1.bias": weights[-1].contiguous()}


# the data


def test_labels_out_of_range_are_refused_by_sample():
    Path("own.py").write_text(
        "import torch\nfrom limbeck.data import Parts, Split\n"
        "def points(): return Parts(Split(torch.rand(20, 4), torch.arange(20) % 3), classes=('a', 'b'))\n"
    )
    message = refused("data={source: 'own.py:points'}")
    assert "train: target 2 of sample 2 is not a class; allowed are 0 to 1" in message


def test_a_grey_image_among_coloured_ones_is_read_in_colour():
    draw(pictures(colour=True) / "cat" / "3.png", seed=7)
    works(FOLDER)
    assert load_network(Path("runs/tiny/student.safetensors"))[1].shape == (3, 8, 8)


def test_an_image_without_a_byte_is_refused_by_name():
    (pictures() / "dog" / "3.png").write_bytes(b"")
    message = refused(FOLDER)
    assert "dog/3.png in" in message
    assert "cannot be read as an image" in message


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite_are_refused(bad):
    inputs = numpy.zeros((20, 4), dtype="float32")
    inputs[7, 2] = bad
    with pytest.raises(LimbeckError, match="1 values are NaN or infinite, the first in sample"):
        limbeck.arrays(inputs, numpy.arange(20) % 2, validation=0)


def test_an_empty_split_is_refused_by_name():
    Path("own.py").write_text(
        "import torch\nfrom limbeck.data import Parts, Split\n"
        "def points():\n"
        "    train = Split(torch.rand(20, 4), torch.arange(20) % 2)\n"
        "    return Parts(train, test=train.select(torch.arange(0)), classes=('a', 'b'))\n"
    )
    assert "the test split is empty" in refused("data={source: 'own.py:points'}")


def test_images_of_several_sizes_without_a_size_are_brought_to_one_and_it_is_said():
    draw(pictures() / "cat" / "3.png", side=12)
    shown = works(FOLDER)
    assert "note: images of 2 different sizes are resized to 8 x 8, as no size is given" in shown


def test_paths_with_spaces_and_letters_of_any_language_work():
    pictures("Grüße aus 東京/my pictures", classes=("кошка", "größer als"))
    Path("mein Rezept é.yaml").write_text(RECIPE)
    works(
        "data={source: folder, path: Grüße aus 東京/my pictures}",
        command=("run", "mein Rezept é.yaml", "--out", "Läufe/erster Lauf"),
    )
    assert Path("Läufe/erster Lauf/result.json").is_file()


def test_a_link_to_itself_is_refused_and_not_followed_for_ever():
    (pictures() / "cat" / "loop.png").symlink_to("loop.png")
    assert "cat/loop.png" in refused(FOLDER)


def test_a_zip_file_that_leads_elsewhere_is_refused_and_nothing_is_written_there():
    with zipfile.ZipFile("pictures.zip", "w") as archive:
        archive.writestr("cat/../../../escaped.png", b"x")
    assert "allowed are names that stay inside the zip file" in refused("data={source: folder, path: pictures.zip}")
    assert not Path("../escaped.png").exists()


def test_a_zip_file_that_unpacks_to_far_too_much_is_refused_unread():
    with zipfile.ZipFile("pictures.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", b"x")
    content = bytearray(Path("pictures.zip").read_bytes())
    for place in (22, content.rindex(b"PK\x01\x02") + 24):  # the size that the file and the table declare
        struct.pack_into("<I", content, place, 2**32 - 2)
    Path("pictures.zip").write_bytes(content)
    message = refused("data={source: folder, path: pictures.zip}")
    assert "it has 4,294,967,294 bytes; allowed are 268,435,456" in message


def test_an_image_that_would_be_far_too_large_is_refused_before_it_is_decoded():
    file = pictures() / "cat" / "3.png"
    content = bytearray(file.read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)  # width and height in the header, and its checksum
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    file.write_bytes(content)
    message = refused(FOLDER)
    assert "cat/3.png" in message
    assert "pixels" in message


def test_a_folder_that_may_not_be_read_is_refused(monkeypatch):
    pictures()
    listed = os.scandir

    def scandir(path):  # root may read every folder, so that its mode shows nothing
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    message = refused(FOLDER)
    assert "cat cannot be listed" in message
    assert "Permission denied" in message


def test_a_transform_that_cannot_be_repeated_is_refused():
    Path("own.py").write_text(
        "import os, torch\n"
        "def drawn(size): return lambda image: torch.frombuffer(bytearray(os.urandom(3 * 64)), dtype=torch.uint8)"
        ".view(3, 8, 8)\n"
    )
    pictures(colour=True)
    message = refused("data={source: folder, path: pictures, streaming: true, workers: 0, transform: 'own.py:drawn'}")
    assert "own.py:drawn gives two different views of" in message


def test_test_images_that_are_in_the_training_split_are_refused_with_their_names():
    for part, seed in (("train", 0), ("test", 50)):
        for name in ("cat", "dog"):
            for index in range(8):
                draw(f"pictures/{part}/{name}/{index}.png", seed=seed + index + 10 * (name == "dog"))
    Path("pictures/test/dog/5.png").write_bytes(Path("pictures/train/cat/2.png").read_bytes())
    message = refused(FOLDER, "data.validation=0")
    assert "1 of 16 test images (6.25%) is identical to images of other splits" in message
    assert "test/dog/5.png (test) and train/cat/2.png (train)" in message
    assert "--allow overlap" in message


# the recipe


def test_keys_that_are_given_twice_are_refused_with_their_line():
    Path("recipe.yaml").write_text(RECIPE + "method: dkd\n")
    assert "duplicate key 'method': it is also in line 9" in refused()


def test_an_unknown_key_is_told_with_the_nearest():
    assert "train.epoch: unknown key 'epoch': did you mean 'epochs'?" in refused("train.epoch=3")


def test_an_unknown_layer_is_told_with_the_nearest():
    assert "the student has no layer 'hed': did you mean head?" in refused("method={name: kd, student_layer: hed}")


# the networks


def test_a_teacher_of_another_number_of_classes_is_refused():
    torch.save(build("mlp", classes=7, shape=(1, 8, 8), hidden=[16]).state_dict(), "teacher.pt")
    message = refused(*FROM_FILE)
    assert "the checkpoint has 7 classes, the network 10 (those of the data, or of classes:); all other" in message


def test_weights_that_are_not_finite_are_refused():
    state = linear_teacher()
    state["1.weight"][3, 5] = torch.nan
    torch.save(state, "teacher.pt")
    assert "the teacher returns NaN or infinite logits for all" in refused(*LINEAR)


def test_weights_of_which_half_is_missing_are_refused_by_name():
    state = linear_teacher()
    del state["1.bias"]
    torch.save(state, "teacher.pt")
    assert "1.bias" in refused(*LINEAR)


def test_the_prefix_of_a_parallel_training_is_taken_off():
    torch.save({f"module.{name}": value for name, value in linear_teacher().items()}, "teacher.pt")
    works(*LINEAR)


def test_a_teacher_at_chance_is_refused_with_likely_causes():
    torch.save({name: torch.randn_like(value) for name, value in linear_teacher().items()}, "teacher.pt")
    message = refused(*LINEAR)
    assert "is not clearly higher than chance" in message
    assert "--allow chance" in message


def test_a_teacher_with_its_classes_in_another_order_is_refused_with_the_line_that_describes_it():
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    torch.save(linear_teacher(order=order), "teacher.pt")
    assert f"in a recipe teacher: {{classes: {order}}}" in refused(*LINEAR)
    works(*LINEAR, f"teacher.classes={order}")


def test_a_teacher_of_inputs_of_another_form_is_refused_with_the_line_that_describes_them():
    torch.save(linear_teacher(raw=True), "teacher.pt")
    assert "in a recipe teacher: {input: {mean: none, std: none}}" in refused(*LINEAR)
    works(*LINEAR, "teacher.input={mean: none, std: none}")


def blobs():
    """Three classes that are easy to tell apart."""
    centres = torch.eye(3)[torch.arange(90) % 3] * 4
    return limbeck.arrays(
        centres + torch.randn(90, 3, generator=torch.Generator().manual_seed(0)), torch.arange(90) % 3
    )


QUICK = {"epochs": 1, "baseline": False, "precision": "32", "progress": False}


def test_a_teacher_that_was_left_in_train_mode_teaches_in_eval_mode_and_stays_in_train_mode():
    data = blobs()
    teacher = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9), nn.Linear(3, 3))
    with torch.no_grad():
        teacher[2].weight.copy_(torch.eye(3))
        teacher[2].bias.zero_()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    _, result = limbeck.distill(teacher.train(), nn.Linear(3, 3), data, **QUICK)
    assert result.teacher.test.accuracy > 0.9  # a dropout of 90 % would leave about 40 %
    assert all(module.training for module in teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_networks_that_return_tuples_work():
    class Pair(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs), inputs.mean()

    teacher = Pair(3, 3)
    with torch.no_grad():
        teacher.weight.copy_(torch.eye(3))
    _, result = limbeck.distill(teacher, Pair(3, 3), blobs(), **QUICK)
    assert result.teacher.test.accuracy > 0.9


def test_two_networks_that_share_a_module_are_refused_and_left_as_they_were():
    teacher = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    student = nn.Sequential(teacher[0], nn.ReLU(), nn.Linear(4, 3))
    before = student[0].weight.clone()
    with pytest.raises(LimbeckError, match=r"share layers: student.0 \(Linear\) is teacher.0\. .*--allow"):
        limbeck.distill(teacher, student, blobs(), **QUICK)
    assert torch.equal(student[0].weight, before)


# the run


def test_a_run_folder_that_is_in_use_is_refused():
    works()
    message = refused()
    assert "runs/tiny already holds a run: resume it with --resume, choose another folder with --out" in message


def test_an_interrupted_run_is_not_resumed_with_another_recipe():
    works("train.epochs=2", command=("run", "recipe.yaml"))
    Path("runs/tiny/result.json").unlink()
    message = refused("train.epochs=3", command=("run", "recipe.yaml", "--resume"))
    assert "runs/tiny holds a run of another recipe, so it cannot be resumed" in message
    assert "it has train.epochs: 2" in message
    assert "asked for train.epochs: 3" in message


def test_a_store_of_another_teacher_is_refused_and_kept():
    stored = ("cache={use: true, folder: stored}", "baseline=false")
    torch.save(linear_teacher(), "teacher.pt")
    works(*LINEAR, *stored)
    kept = {path: path.read_bytes() for path in Path("stored").rglob("*") if path.is_file()}
    state = linear_teacher()
    state["1.bias"] += 1
    torch.save(state, "teacher.pt")
    result = run(*LINEAR, *stored, command=("run", "recipe.yaml", "--out", "other"))
    assert result.exit_code == 2
    assert "stored/teacher-seed0 does not fit: " in " ".join(result.stderr.split())
    assert kept == {path: path.read_bytes() for path in Path("stored").rglob("*") if path.is_file()}


def test_a_full_disk_ends_the_run_with_code_3_and_leaves_what_was_written_whole(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    settings = ("student.model={name: mlp, hidden: [300]}", "teacher.model={name: mlp, hidden: [8]}")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, usual[1]))
    try:
        done = run(*settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert done.exit_code == 3, done.output
    assert "cannot be written" in done.stderr
    assert "Free some disk space first. To resume: limbeck run recipe.yaml" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(Path("runs").rglob("*.tmp"))
    works(*settings, command=("run", "recipe.yaml", "--resume"))


def test_nan_while_training_ends_the_run_with_code_3_and_keeps_the_last_good_state():
    result = run("student.model='net.py:Breaks'", "train.epochs=4", "data.limit=60")
    assert result.exit_code == 3, result.output
    assert "error: stage 'alone', epoch 3: hard, loss became NaN or infinite at step 1 of 2" in result.stderr
    assert "Traceback" not in result.output
    lines = [json.loads(line) for line in Path("runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["job"] == "alone/seed0"] == [1, 2]
    state = checkpoint.load(Path("runs/tiny/checkpoint/last.pt"))["train"]
    assert state["epoch"] <= 2
    assert all(value.isfinite().all() for value in state["modules"].values())
    assert load_file("runs/tiny/teacher/seed0/teacher.safetensors")
