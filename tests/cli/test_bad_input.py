"""What a user gets wrong is told before any training: what was got, what is allowed, and what was probably meant."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import limbeck
from limbeck.cli import app
from limbeck.core import LimbeckError
from limbeck.models import NetworkSpec, build, save_network

RECIPE = """\
name: tiny
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
FROM_FILE = RECIPE.replace("  train: {epochs: 1, batch_size: 32}\n", "  weights: WEIGHTS\n", 1)
DIGITS = tuple("0123456789")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    Path("recipe.yaml").write_text(RECIPE)


def invoke(*arguments):
    result = CliRunner().invoke(app, ["run", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*arguments):
    """The message of a command that must fail before any training; nothing is written."""
    before = written()
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert written() == before
    return result.stderr.removeprefix("error: ").replace("\n", " ")


def written():
    """Every file of every run, by its content."""
    files = [path for path in Path().rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.name in ("metrics.jsonl", "last.pt", "result.json")}


def changed(*settings):
    return [argument for setting in settings for argument in ("--set", setting)]


def with_weights(*paths):
    """A recipe whose teacher comes from files."""
    Path("recipe.yaml").write_text(FROM_FILE.replace("WEIGHTS", json.dumps(list(map(str, paths)))))
    return "recipe.yaml"


def teacher_file(path, *, classes=10, shape=(1, 8, 8), labels=DIGITS, options=None):
    spec = NetworkSpec("mlp", options or {"hidden": [16]}, classes, shape, labels)
    save_network(build(spec.name, classes=classes, shape=shape, **spec.options), Path(path), spec=spec)
    return path


def image_folder(top, *, classes=("cat", "dog"), each=6):
    for number, name in enumerate(classes):
        folder = Path(top) / name
        folder.mkdir(parents=True)
        for index in range(each):
            Image.new("L", (8, 8), color=20 * number + index).save(folder / f"{index}.png")
    return Path(top)


def test_the_recipe_of_these_tests_runs_when_nothing_is_wrong():
    result = invoke("recipe.yaml")
    assert result.exit_code == 0, result.output
    assert {path.as_posix() for path in written()} >= {"runs/tiny/metrics.jsonl", "runs/tiny/checkpoint/last.pt"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["sede=3"], "sede: unknown key 'sede': did you mean 'seeds'? allowed are"),
        (["train.epoch=3"], "train.epoch: unknown key 'epoch': did you mean 'epochs'? allowed are"),
        (["student.model={name: resnet-20}"], "there is no model 'resnet-20': did you mean 'resnet20'? allowed are"),
        (["student.model={name: 'timm:resnet1'}"], "timm has no model 'resnet1': did you mean"),
        (["student.model={name: 'net.py:make'}"], "/net.py"),
        (["method=dk"], "there is no method 'dk': did you mean 'dkd'? allowed are ab, alone"),
        (["method={name: kd, student_layer: hed}"], "the student has no layer 'hed': did you mean head?"),
        (["method={name: kd, teacher_layer: hed}"], "the teacher has no layer 'hed': did you mean head?"),
        (["method={name: alone, student_layer: hed}"], "the student has no layer 'hed': did you mean head?"),
        (["method={name: kd, temperature: 0}"], "method.temperature: got 0: it must be above 0"),
        (["train.epochs=many"], "train.epochs: got 'many': it must be a whole number"),
        (["train.batch_size=8.5"], "train.batch_size: got 8.5: it must be a whole number"),
        (["train.schedule={name: linear, until: 7}"], "got until 7.0, allowed are fractions of the stage"),
        (["train.optimizer={name: sgd, lr: -1}"], "train.optimizer.lr: got -1: it must be above 0"),
        (["teacher.train.optimizer={name: sgd, lr: -1}"], "teacher.train.optimizer.lr: got -1: it must be above 0"),
        (["teacher.train.augment={shift: 100}"], "augmentation shift is 100, but the images are 8 x 8"),
        (["train.augment={cutout: 100}"], "augmentation cutout is 100, but the images are 8 x 8 pixels"),
        (["data.source=digitz"], "there is no source 'digitz': did you mean 'digits'?"),
        (["data.validation=999999"], "cannot split off 999999 of"),
        (["train.exclude=[12]"], "there is no class 12: allowed are 0 to 9, or 0, 1, 2"),
        (["train.exclude=[cat]"], "there is no class 'cat': allowed are 0 to 9, or 0, 1, 2"),
        (["train.exclude=[0,1,2,3,4,5,6,7,8,9]"], "exclude removes all classes of the data: 0, 1, 2"),
        (["teacher.train.exclude=[12]"], "there is no class 12: allowed are 0 to 9"),
        (["data.limit=10", "train.exclude=[0,1,2,3,4,5,6,7,8]"], "a single sample cannot be shuffled into batches"),
        (["evaluate.shift_bias=[12]"], "there is no class 12: allowed are 0 to 9"),
        (
            ["evaluate.shift_bias=[8]", "data.validation=1"],
            "the validation split has no samples of the classes in shift_bias: [8]",
        ),
        (["train.epochs"], "--set train.epochs: write it as key.key=value"),
        (["train.epochs=[1"], "--set train.epochs=[1: the value is not YAML"),
        (["device=tpu"], "device: got 'tpu': did you mean 'cpu'? allowed are auto, cpu, cuda, mps"),
        (["seeds=[]"], "seeds: got []"),
        (["seeds=[-1]"], "seeds.0: got -1: it must be at least 0"),
        (["seeds=[18446744073709551616]"], "seeds.0: got 18446744073709551616: it must be below 4294967296"),
    ],
)
def test_a_wrong_value_is_told_before_any_training(settings, message):
    assert message in refused("recipe.yaml", *changed(*settings))


def test_all_that_is_wrong_is_told_in_one_go():
    message = refused("recipe.yaml", *changed("method=dk", "train.epoch=3", "data.source=digitz"))
    assert all(word in message for word in ("'dk'", "'epoch'", "'digitz'"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_is_told_with_those_that_are():
    assert "device is 'cuda': this machine has auto, cpu" in refused("recipe.yaml", *changed("device=cuda"))


def test_a_missing_recipe_is_told_with_the_nearest_of_ours_and_of_those_beside_it():
    assert "there is no recipe digits_kdd: did you mean 'digits_kd'?" in refused("digits_kdd")
    assert "there is no recipe recpie.yaml: did you mean 'recipe.yaml'?" in refused("recpie.yaml")
    Path("mine").mkdir()
    Path("mine/first.yaml").write_text(RECIPE)
    assert "there is no recipe mine/fist.yaml: did you mean 'first.yaml'?" in refused("mine/fist.yaml")


def test_a_wrong_path_never_runs_one_of_our_recipes_instead():
    assert "there is no recipe mine/digits_kd.yaml" in refused("mine/digits_kd.yaml", "--smoke")


def test_a_recipe_that_is_no_text_is_refused():
    Path("recipe.yaml").write_bytes(b"\x89PNG\xff\xfe\x00")
    assert "recipe.yaml is not a recipe: it is not UTF-8 text" in refused("recipe.yaml")


def test_a_missing_image_folder_is_told_with_the_nearest():
    image_folder("pictures")
    message = refused("recipe.yaml", *changed("data={source: folder, path: picturs}"))
    assert "picturs does not exist: did you mean 'pictures'?" in message


@pytest.mark.parametrize("source", ["{source: folder, path: pictures}", "{source: mnist, download: false}"])
def test_a_missing_data_root_is_told_with_where_it_comes_from(monkeypatch, tmp_path, source):
    settings = changed(f"data={source}")
    wanted = str(tmp_path / "nowhere")
    message = refused("recipe.yaml", *settings, "--data-root", wanted)
    assert f"the data root {wanted} is not a folder" in message
    monkeypatch.setenv("LIMBECK_DATA", wanted)
    assert f"the data root {wanted} (from LIMBECK_DATA) is not a folder" in refused("recipe.yaml", *settings)


def test_an_empty_data_root_is_told_with_the_places_looked_at(tmp_path):
    (tmp_path / "[data] 1").mkdir()
    message = refused("recipe.yaml", *changed("data={source: mnist, download: false}"), "--data-root", "[data] 1")
    assert "MNIST not found: looked for" in message
    assert "[data] 1" in message


def test_an_empty_class_folder_is_refused():
    (image_folder("pictures") / "emu").mkdir()
    message = refused("recipe.yaml", *changed("data={source: folder, path: pictures}"))
    assert "class folder 'emu' of train has no images" in message


def test_a_cut_image_is_refused_by_name():
    file = image_folder("pictures") / "dog" / "3.png"
    file.write_bytes(file.read_bytes()[:40])
    message = refused("recipe.yaml", *changed("data={source: folder, path: pictures}"))
    assert re.search(r"dog/3.png in \S*pictures cannot be read as an image", message)


def test_an_image_folder_runs_when_nothing_is_wrong_with_it():
    image_folder("pictures")
    result = invoke("recipe.yaml", *changed("data={source: folder, path: pictures}"))
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("keep", [0, 100, 2000])
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_cut_teacher_file_is_refused(kind, keep):
    whole = Path(teacher_file(f"teacher.{kind}" if kind == "safetensors" else "whole.safetensors"))
    if kind == "pt":
        torch.save(load_file(whole), "teacher.pt")
    cut = Path(f"teacher.{kind}")
    cut.write_bytes(cut.read_bytes()[:keep])
    message = refused(with_weights(cut))
    assert f"/teacher.{kind} is" in message
    assert "damaged" in message


def test_a_teacher_file_that_is_not_there_is_told_with_the_nearest():
    teacher_file("teacher.safetensors")
    message = refused(with_weights("techer.safetensors"))
    assert "/techer.safetensors: did you mean 'teacher.safetensors'?" in message


def test_a_folder_without_a_trained_network_is_no_teacher():
    Path("empty").mkdir()
    assert "/empty contains none of student.safetensors" in refused(with_weights("empty"))


@pytest.mark.parametrize("settings", [[], ["teacher.model=null"]], ids=["with model", "without model"])
def test_a_teacher_of_another_class_count_is_refused(settings):
    file = teacher_file("seven.safetensors", classes=7, labels=DIGITS[:7])
    message = refused(with_weights(file), *changed(*settings))
    assert "seven.safetensors has 7 classes, but the data has 10" in message


def test_a_teacher_for_images_of_another_size_is_refused():
    file = teacher_file("large.safetensors", shape=(1, 28, 28))
    message = refused(with_weights(file), *changed("teacher.model=null"))
    assert "the teacher does not run on samples of shape (1, 8, 8)" in message


def test_weights_without_a_description_need_a_model():
    teacher_file("whole.safetensors")
    save_file(load_file("whole.safetensors"), "bare.safetensors")
    message = refused(with_weights("bare.safetensors"), *changed("teacher.model=null"))
    assert "bare.safetensors does not say which model it holds: name it under model:" in message


def test_a_students_own_network_that_does_not_fit_is_refused():
    Path("net.py").write_text(
        "from torch import nn\n"
        "def seven(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"
        "def coloured(): return nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten())\n"
    )
    message = refused("recipe.yaml", *changed("student.model='net.py:seven'"))
    assert "the student gives (7,) a sample, but the data has 10 classes" in message
    message = refused("recipe.yaml", *changed("student.model='net.py:coloured'"))
    assert "the student does not run on samples of shape (1, 8, 8)" in message
    assert "net.py has no function 'sevn': did you mean 'seven'?" in refused(
        "recipe.yaml", *changed("student.model='net.py:sevn'")
    )


def test_a_file_in_the_place_of_the_run_folder_is_refused():
    Path("afile").write_text("mine")
    assert "afile is not a folder" in refused("recipe.yaml", "--out", "afile")
    assert Path("afile").read_text() == "mine"


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_a_cut_checkpoint_is_not_resumed(keep):
    assert invoke("recipe.yaml").exit_code == 0
    checkpoint = Path("runs/tiny/checkpoint/last.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
    assert "last.pt is not a complete checkpoint" in refused("recipe.yaml", "--resume")


@pytest.mark.parametrize("job", ["teacher/seed0", "alone/seed0", "kd/seed0"])
@pytest.mark.parametrize("content", ["", '{"arm": "kd', "[]", "{}", "\x00\x01"])
def test_a_damaged_result_is_not_resumed(job, content):
    assert invoke("recipe.yaml").exit_code == 0
    file = Path("runs/tiny") / job / "result.json"
    file.write_text(content)
    message = refused("recipe.yaml", "--resume")
    assert f"{job}/result.json is damaged" in message
    assert f"delete runs/tiny/{job} to train {job} again" in message


def test_a_damaged_network_of_a_finished_job_is_not_resumed():
    assert invoke("recipe.yaml").exit_code == 0
    file = Path("runs/tiny/teacher/seed0/teacher.safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    assert "teacher.safetensors is missing, damaged or not the file that was written" in refused(
        "recipe.yaml", "--resume"
    )


def test_the_demo_says_that_its_folder_holds_another_run():
    assert invoke("recipe.yaml", "--out", "runs/demo").exit_code == 0
    before = written()
    result = CliRunner().invoke(app, ["demo"])
    assert (result.exit_code, written()) == (2, before)
    assert "runs/demo already holds a run" in result.stderr


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_data_set_that_is_not_finite_cannot_be_made(split):
    parts = {
        name: limbeck.data.Split(torch.zeros(4, 3), torch.arange(4) % 2) for name in ("train", "validation", "test")
    }
    parts[split].inputs[1, 0] = torch.nan
    with pytest.raises(LimbeckError, match=f"{split}: 1 values are NaN or infinite, the first in sample 1"):
        limbeck.Data(**parts, classes=("a", "b"), mean=(0.0,), std=(1.0,))


def small_data():
    generator = torch.Generator().manual_seed(0)
    return limbeck.arrays(torch.randn(40, 4, generator=generator), torch.arange(40) % 10)


def never(label, epoch):
    raise AssertionError(f"trained {label}")


@pytest.mark.parametrize(
    ("teacher", "student", "options", "message"),
    [
        (nn.Linear(4, 7), nn.Linear(4, 10), {}, r"the teacher gives \(7,\) a sample, but the data has 10 classes"),
        (nn.Linear(4, 10), nn.Linear(4, 7), {}, r"the student gives \(7,\) a sample, but the data has 10 classes"),
        (nn.Linear(5, 10), nn.Linear(4, 10), {}, r"the teacher does not run on samples of shape \(4,\)"),
        (nn.Linear(4, 10), nn.Linear(5, 10), {}, r"the student does not run on samples of shape \(4,\)"),
        (nn.Linear(4, 10), nn.Linear(4, 10), {"method": "dk"}, "there is no method 'dk': did you mean 'dkd'"),
        (nn.Linear(4, 10), nn.Linear(4, 10), {"optimizer": "sdg"}, "there is no optimizer 'sdg': did you mean 'sgd'"),
        (nn.Linear(4, 10), nn.Linear(4, 10), {"device": "tpu"}, "device is 'tpu': this machine has auto, cpu"),
        (nn.Linear(4, 10), nn.Linear(4, 10), {"method": {"name": "kd", "student_layer": "x"}}, "no layer 'x'"),
        (
            nn.Linear(4, 10),
            nn.Linear(4, 10),
            {"optimizer": {"name": "sgd", "lr": -1}},
            "lr: got -1: it must be above 0",
        ),
    ],
)
def test_distill_refuses_before_any_training(teacher, student, options, message):
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(LimbeckError, match=message):
        limbeck.distill(teacher, student, small_data(), epochs=1, on_epoch=never, **options)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_finished_network_whose_file_was_changed_is_not_resumed():
    assert invoke("recipe.yaml").exit_code == 0
    file = Path("runs/tiny/kd/seed0/student.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "student.safetensors is missing, damaged or not the file that was written" in refused(
        "recipe.yaml", "--resume"
    )


def test_a_folder_that_cannot_be_made_is_told():
    Path("file").write_text("mine")
    assert "file" in refused("recipe.yaml", "--out", "file/run")
