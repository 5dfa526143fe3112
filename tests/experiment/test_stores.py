"""The commands about a store, and the runs that use one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image
from typer.testing import CliRunner

from limbeck.cache.manifest import digest_of
from limbeck.cli import app
from limbeck.core import LimbeckError
from limbeck.experiment import results
from limbeck.experiment.events import Started, StoreEstimate, StoreProgress
from limbeck.experiment.preflight import resolved
from limbeck.experiment.run import Experiment
from limbeck.experiment.store_folders import store_folders
from limbeck.recipe.read import RecipeError, read, smoke

RECIPE = """\
name: tiny
data: {source: digits, limit: 64}
teacher:
  model: {name: mlp, hidden: [16]}
  train: {epochs: 1, batch_size: 32}
student:
  model: {name: mlp, hidden: [8]}
method: kd
train: {epochs: 2, batch_size: 32, augment: {shift: 1}}
evaluate: {latency_runs: 1}
seeds: [0, 1]
cache: {use: true, views: 2}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    Path("recipe.yaml").write_text(RECIPE)


def limbeck_does(*arguments, code=0):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def test_a_store_is_built_looked_at_compared_and_used():
    shown = limbeck_does("cache", "build", "recipe.yaml")
    for seed in (0, 1):
        assert re.search(rf"teacher/seed{seed}: the store of its outputs will take about 2.6 kB \(.*B free\)", shown)
        assert f"teacher/seed{seed}: stored 128 rows of its outputs" in shown
    shown = limbeck_does("cache", "info", "recipe.yaml")
    assert shown.count("finished") == 2
    assert "64, 2 views of seed 0" in shown
    assert "float16" in shown
    shown = limbeck_does("cache", "verify", "recipe.yaml")
    assert shown.count("random rows of") == 2
    shown = limbeck_does("run", "recipe.yaml", "--resume")
    assert "teacher/seed1 (not trained in this run)" in shown
    assert results.read(Path("runs/tiny")).summary["kd"].errors.n == 2


def test_a_store_that_is_not_there_or_damaged_is_not_verified():
    assert "build it first" in limbeck_does("cache", "verify", "recipe.yaml", code=2)
    limbeck_does("cache", "build", "recipe.yaml")
    file = next(Path("runs/tiny/store/teacher-seed0").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert str(file.name) in limbeck_does("cache", "verify", "recipe.yaml", code=2)


def test_a_recipe_without_a_teacher_has_no_store():
    with pytest.raises(LimbeckError, match="no teacher whose outputs can be stored"):
        store_folders(read(Path("recipe.yaml"), overrides=["cache=false"]), Path("run"))


def test_the_store_may_lie_elsewhere():
    recipe = read(Path("recipe.yaml"), overrides=["cache.folder=kept"])
    assert store_folders(recipe, Path("run")) == {seed: Path("kept") / f"teacher-seed{seed}" for seed in (0, 1)}


def test_every_command_finds_a_store_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    recipe = read(Path("recipe.yaml"), overrides=["cache.folder=~/kept", "teacher.seed=3"])
    assert store_folders(recipe, Path("run")) == {3: tmp_path / "home" / "kept" / "teacher-seed3"}
    asked = ("recipe.yaml", "--set", "cache.folder=~/kept", "--seed", "0")
    for command in ("build", "info", "verify"):
        limbeck_does("cache", command, *asked)
    assert (tmp_path / "home" / "kept" / "teacher-seed0" / "manifest.json").is_file()
    assert not Path("~").exists()


@pytest.mark.parametrize("part", [{"seed": None}, {"more": 1}])
def test_a_received_store_with_a_damaged_description_is_refused_by_every_command(part):
    asked = ("recipe.yaml", "--set", "cache.folder=kept", "--seed", "0")
    limbeck_does("run", *asked)
    file = Path("kept/teacher-seed0/manifest.json")
    values = json.loads(file.read_text())
    values.pop("xxh3_128")
    values["fingerprint"] |= part
    file.write_text(json.dumps({**values, "xxh3_128": digest_of(values)}))
    for command in (("cache", "info"), ("cache", "build"), ("cache", "verify"), ("run", "--overwrite")):
        shown = limbeck_does(*command, *asked, code=2)
        assert f"{file} is damaged: delete it and build the store again" in shown


@pytest.mark.parametrize("option", [("--trust-code",), ("--allow", "chance")])
def test_info_has_no_options_about_networks(option):
    assert "No such option" in limbeck_does("cache", "info", "recipe.yaml", *option, code=2)


def test_a_teacher_that_all_students_share_has_one_store():
    recipe = read(Path("recipe.yaml"), overrides=["teacher.seed=3"])
    assert store_folders(recipe, Path("run")) == {3: Path("run/store/teacher-seed3")}


def test_info_needs_neither_data_nor_torch_and_says_which_command_builds_a_store():
    code = (
        "import sys\nfrom limbeck.cli import app\n"
        "try:\n    app(['cache', 'info', 'recipe.yaml'])\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )

    def shown():
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return found.stderr, found.stdout.split()[-2:]

    said, end = shown()
    assert "there is no store yet in runs/tiny/store/teacher-seed0, runs/tiny/store/teacher-seed1" in said
    assert "To build it: limbeck cache build recipe.yaml" in said
    assert end == ["2", "False"]
    limbeck_does("cache", "build", "recipe.yaml")
    assert shown() == ("", ["0", "False"])


def test_a_run_builds_its_store_and_students_of_one_teacher_share_it():
    recipe = read(Path("recipe.yaml"), overrides=["teacher.seed=0"])
    events = list(Experiment(recipe, Path("run")).run())
    kept = [event for event in events if isinstance(event, StoreProgress)]
    assert [event.done for event in kept[-2:]] == [128, 128]
    (expected,) = [event for event in events if isinstance(event, StoreEstimate)]
    assert expected.bytes == kept[-1].bytes
    assert events.index(expected) < events.index(kept[0])
    assert sum(isinstance(event, Started) for event in events) == 5
    assert [path.name for path in Path("run/store").iterdir()] == ["teacher-seed0"]


def test_what_auto_decided_holds_on_resume():
    open_recipe = read(Path("recipe.yaml"), overrides=["cache={}"])
    assert resolved(open_recipe, Path("run")) == open_recipe
    first = Experiment(read(Path("recipe.yaml"), overrides=["precision=bf16", "cache.views=1"]), Path("run"))
    next(first.run())
    known = resolved(open_recipe, Path("run"))
    assert (known.precision, known.compile, known.cache.use, known.cache.views) == ("bf16", False, True, 1)
    said = resolved(read(Path("recipe.yaml"), overrides=["cache.views=2", "precision=32"]), Path("run"))
    assert (said.precision, said.cache.views) == ("32", 2)


def test_of_a_run_that_only_one_process_trains_an_edited_batch_size_is_not_the_old_one():
    edited = read(Path("recipe.yaml"), overrides=["train.batch_size=16", "train.per_device=true"])
    Experiment(read(Path("recipe.yaml")), Path("run")).folder.open({})
    assert resolved(edited, Path("run")).train.batch_size == 32
    with pytest.raises(LimbeckError, match="another recipe"):
        Experiment(edited, Path("run"), resume=True, keep="trials")


def test_a_store_is_not_built_for_a_number_of_processes_that_is_not_known():
    shown = limbeck_does("cache", "build", "recipe.yaml", "--set", "train.per_device=true", code=2)
    assert "write the batch_size of all of them, without per_device" in shown
    assert not Path("runs").exists()


def test_a_store_has_no_choice_of_runtime():
    shown = limbeck_does("run", "recipe.yaml", "--set", "cache.runtime=torch", code=2)
    assert "unknown key 'runtime'" in shown
    assert not Path("runs").exists()


def test_a_teacher_that_was_trained_elsewhere_is_not_trained_to_be_compared():
    limbeck_does("cache", "build", "recipe.yaml", "--set", "cache.folder=kept")
    shown = limbeck_does("cache", "verify", "recipe.yaml", "--set", "cache.folder=kept", "--out", "other", code=2)
    assert "teacher/seed0, whose outputs are stored, was not trained in other: name its run folder with --out" in shown
    assert not Path("other").exists()


def test_the_tiny_version_leaves_a_shared_store_alone():
    recipe = read(Path("recipe.yaml"), overrides=["cache.folder=kept"])
    assert smoke(recipe).cache.folder is None


def test_what_hinders_a_store_is_said_before_a_student_is_trained():
    limbeck_does("run", "recipe.yaml", "--set", "precision=32", "--set", "cache.folder=kept")
    shown = limbeck_does(
        "run",
        "recipe.yaml",
        "--set",
        "precision=32",
        "--set",
        "cache.folder=kept",
        "--set",
        "cache.seed=1",
        "--out",
        "b",
        code=2,
    )
    assert "the seed of the views is 0 in the store, needed is 1" in shown
    assert "alone" not in shown
    shown = limbeck_does("run", "recipe.yaml", "--set", "cache.top_k=10", "--out", "c", code=2)
    assert "top_k is 10" in shown
    assert not Path("c").exists()


def test_images_that_a_transform_changes_are_not_kept_by_auto():
    pictures()
    streamed = "source: folder, path: pictures, validation: 0, size: [8, 8], streaming: true"
    settings = [f"data={{{streamed}, transform: random_resized_crop}}"]
    settings += ["cache={}", "train.augment={}", "student.model={name: mlp, hidden: [4]}"]
    experiment = Experiment(read(Path("recipe.yaml"), overrides=settings), Path("run"))
    assert experiment.recipe.cache.use is False


def pictures():
    numbers = numpy.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = Path("pictures") / part / name
            folder.mkdir(parents=True)
            for number in range(4):
                values = numbers.integers(0, 256, (8, 8, 3), dtype=numpy.uint8)
                Image.fromarray(values).save(folder / f"{number}.png")


def table(rows=slice(None)):
    lines = [f"{name}/{number}.png,{p},{1 - p:.1f}" for name, p in (("cat", 0.9), ("dog", 0.2)) for number in range(4)]
    Path("labels.csv").write_text("\n".join(["file,cat,dog", *lines[rows]]) + "\n")


TABLE = ("data={source: folder, path: pictures, validation: 0}", "teacher={table: labels.csv}", "cache={}")


def test_a_table_of_soft_labels_is_a_teacher():
    pictures()
    table()
    events = list(Experiment(read(Path("recipe.yaml"), overrides=TABLE), Path("run")).run())
    result = results.read(Path("run"))
    assert result.teacher is None
    assert result.student.test.agreement is None
    assert not any(isinstance(event, StoreProgress) for event in events)
    assert not Path("run/store").exists()


def test_a_table_without_some_images_is_refused_before_training():
    pictures()
    table(slice(6))
    with pytest.raises(LimbeckError, match=r"dog/2\.png"):
        Experiment(read(Path("recipe.yaml"), overrides=TABLE), Path("run"))


def test_a_table_needs_data_of_files():
    table()
    with pytest.raises(LimbeckError, match="has a row for each file, but the data has no files"):
        Experiment(read(Path("recipe.yaml"), overrides=TABLE[1:]), Path("run"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("teacher={table: labels.csv, members: 2}", "cache={}"), "a teacher with a table: has no network"),
        (("teacher={table: labels.csv}",), "the table: already contains this teacher's outputs"),
        (("teacher.values=logits",), "describes a table:, which is missing"),
        (("cache.views=0",), "cache.views"),
        (("cache=sometimes",), "cache"),
        (("compile=maybe",), "compile"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_place(settings, words):
    with pytest.raises(RecipeError, match=words):
        read(Path("recipe.yaml"), overrides=settings)


def test_workers_build_their_shards_and_the_last_one_finishes_the_store():
    whole, parts = ("--set", "cache.folder=whole"), ("--set", "cache.folder=parts")
    refused = limbeck_does("cache", "build", "recipe.yaml", *parts, "--shard", "0/2", code=2)
    assert "train it first with limbeck run" in refused
    limbeck_does("cache", "build", "recipe.yaml", *whole, "--out", "run")
    Path("run2").mkdir()
    limbeck_does("cache", "build", "recipe.yaml", *parts, "--out", "run2")  # trains the teachers
    for folder in sorted(Path("parts").iterdir()):
        for file in folder.iterdir():
            file.unlink()
    for number in (1, 0):  # in any order
        for folder in Path("parts").iterdir():
            assert not (folder / "manifest.json").exists()
        limbeck_does("cache", "build", "recipe.yaml", *parts, "--out", "run2", "--shard", f"{number}/2")
    ours, theirs = (
        {str(one.relative_to(name)): one.read_bytes() for one in Path(name).rglob("*.*")} for name in ("parts", "whole")
    )
    assert ours == theirs


@pytest.mark.parametrize("shard", ["2/2", "1", "a/b", "-1/2", "0/0"])
def test_a_shard_that_does_not_exist_is_refused(shard):
    assert "allowed are i/N" in limbeck_does("cache", "build", "recipe.yaml", "--shard", shard, code=2)
