"""The commands about a store, and the runs that use one."""

import json
import re
from pathlib import Path

import numpy
import pytest
from PIL import Image
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.core import LimbeckError
from limbeck.experiment.events import Started, StoreEstimate, StoreProgress
from limbeck.experiment.preflight import resolved
from limbeck.experiment.run import Experiment
from limbeck.experiment.stores import stores
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
        assert re.search(
            rf"teacher/seed{seed}: keeping its outputs takes 3.0 kB \(.*B are free\) and under a second", shown
        )
        assert f"teacher/seed{seed}: its outputs, 128 rows, are kept" in shown
    shown = limbeck_does("cache", "info", "recipe.yaml")
    assert shown.count("finished") == 2
    assert "64, 2 views of seed 0" in shown
    assert "float16" in shown
    shown = limbeck_does("cache", "verify", "recipe.yaml")
    assert shown.count("random rows of") == 2
    shown = limbeck_does("run", "recipe.yaml", "--resume")
    assert "teacher/seed1 (not trained in this run)" in shown
    result = json.loads(Path("runs/tiny/result.json").read_text())
    assert result["summary"]["kd"]["errors"]["n"] == 2


def test_a_store_that_is_not_there_or_damaged_is_not_verified():
    assert "build it first" in limbeck_does("cache", "verify", "recipe.yaml", code=2)
    limbeck_does("cache", "build", "recipe.yaml")
    file = next(Path("runs/tiny/store/teacher-seed0").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert str(file.name) in limbeck_does("cache", "verify", "recipe.yaml", code=2)


def test_a_recipe_without_a_teacher_has_no_store():
    experiment = Experiment(read(Path("recipe.yaml"), overrides=["cache=false"]), Path("run"))
    with pytest.raises(LimbeckError, match="no teacher whose outputs can be kept"):
        stores(experiment)


def test_the_store_may_lie_elsewhere():
    experiment = Experiment(read(Path("recipe.yaml"), overrides=["cache.folder=kept"]), Path("run"))
    assert list(stores(experiment).values()) == [Path.cwd() / "kept" / f"teacher-seed{seed}" for seed in (0, 1)]


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


def test_a_store_has_no_choice_of_runtime():
    shown = limbeck_does("run", "recipe.yaml", "--set", "cache.runtime=torch", code=2)
    assert "unknown key 'runtime'" in shown
    assert not Path("runs").exists()


def test_a_teacher_that_was_trained_elsewhere_is_not_trained_to_be_compared():
    limbeck_does("cache", "build", "recipe.yaml", "--set", "cache.folder=kept")
    shown = limbeck_does("cache", "verify", "recipe.yaml", "--set", "cache.folder=kept", "--out", "other", code=2)
    assert "teacher/seed0, which the store is of, was not trained in other: name its run folder by --out" in shown
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
    assert "another seed" in shown
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
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = Path("pictures") / part / name
            folder.mkdir(parents=True)
            for number in range(4):
                values = numpy.full((8, 8, 3), 60 * number + (10 if name == "cat" else 0), dtype=numpy.uint8)
                Image.fromarray(values).save(folder / f"{number}.png")


def table(rows=slice(None)):
    lines = [f"{name}/{number}.png,{p},{1 - p:.1f}" for name, p in (("cat", 0.9), ("dog", 0.2)) for number in range(4)]
    Path("labels.csv").write_text("\n".join(["file,cat,dog", *lines[rows]]) + "\n")


BOUGHT = ("data={source: folder, path: pictures, validation: 0}", "teacher={table: labels.csv}", "cache={}")


def test_a_table_of_soft_labels_is_a_teacher():
    pictures()
    table()
    events = list(Experiment(read(Path("recipe.yaml"), overrides=BOUGHT), Path("run")).run())
    result = json.loads(Path("run/result.json").read_text())
    assert result["teacher"] is None
    assert "agreement" not in result["student"]["test"]
    assert not any(isinstance(event, StoreProgress) for event in events)
    assert not Path("run/store").exists()


def test_a_table_without_some_images_is_refused_before_training():
    pictures()
    table(slice(6))
    with pytest.raises(LimbeckError, match=r"dog/2\.png"):
        Experiment(read(Path("recipe.yaml"), overrides=BOUGHT), Path("run"))


def test_a_table_needs_data_of_files():
    table()
    with pytest.raises(LimbeckError, match="names its rows by image files"):
        Experiment(read(Path("recipe.yaml"), overrides=BOUGHT[1:]), Path("run"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("teacher={table: labels.csv, members: 2}", "cache={}"), "a teacher with a table: has no network"),
        (("teacher={table: labels.csv}",), "the table: is what is kept of this teacher"),
        (("teacher.values=logits",), "says what is in a table:, which is missing"),
        (("cache.views=0",), "cache.views"),
        (("cache=sometimes",), "cache"),
        (("compile=maybe",), "compile"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_place(settings, words):
    with pytest.raises(RecipeError, match=words):
        read(Path("recipe.yaml"), overrides=settings)
