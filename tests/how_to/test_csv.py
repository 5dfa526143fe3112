"""The recipes and the call of docs/how-to/csv.md, on images that the test draws."""

import re
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import limbeck
from limbeck.experiment.run import Experiment
from limbeck.recipe.read import read

PAGE = Path(__file__).parents[2].joinpath("docs/how-to/csv.md").read_text(encoding="utf-8")
TABLE, RECIPE, CALL, FEATURES = (code for _, code in re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL))
SMALL = ("data.size=32", "data.validation=4", "train.epochs=1", "precision=32", "train.batch_size=8")


@pytest.fixture
def birds(tmp_path, monkeypatch):
    """Photographs that a table lists, in the form of the page's table, and a teacher."""
    monkeypatch.chdir(tmp_path)
    heads, *rows = TABLE.splitlines()
    assert [len(row.split(",")) for row in rows] == [len(heads.split(","))] * len(rows)
    for number in range(36):
        folder, label = f"day{number % 3}", ("finch", "robin", "wren")[number % 3]
        Path("photos", folder).mkdir(parents=True, exist_ok=True)
        colour = [40 + number, 40, 40]
        colour[number % 3] = 220
        Image.new("RGB", (40, 32), tuple(colour)).save(f"photos/{folder}/{number:04}.jpg")
        heads += f"\n{folder}/{number:04}.jpg,{label},{'test' if number > 26 else 'train'}"
    Path("labels.csv").write_text(heads)
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet18", num_classes=3).state_dict(), "teacher.pth")


def test_the_recipe_runs(birds):
    Path("recipe.yaml").write_text(RECIPE)
    teacher = "teacher.model={name: mlp, hidden: [8]}", "teacher.weights=null", "teacher.train={epochs: 1}"
    recipe = read(Path("recipe.yaml"), overrides=[*SMALL, *teacher], allow=["chance", "permuted"])
    trial = Experiment(recipe, Path("run"))
    with trial.factory:
        list(trial.run())
    assert trial.result.student.test.samples == 9
    assert trial.data.classes == ("finch", "robin", "wren")
    assert len(RECIPE.splitlines()) <= 15


def test_the_teacher_of_the_recipe_is_one_of_timm(birds):
    Path("recipe.yaml").write_text(RECIPE)
    assert read(Path("recipe.yaml")).teacher.model["name"] == "timm:resnet18"


def test_the_call_runs(birds):
    networks = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 96 * 96, 3)) for _ in range(2))
    space = {"limbeck": limbeck, **dict(zip(("teacher", "student"), networks, strict=True))}
    exec(CALL.replace("\n)", "").replace("flip=True))", 'flip=True), epochs=1, allow=["chance", "permuted"])'), space)
    assert space["result"].student.test.samples == 9


def test_the_recipe_of_features_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{i % 7},{i % 5 + 9 * (i % 2)},{'ab'[i % 2]}" for i in range(40)]
    Path("flowers.csv").write_text("\n".join(["width,height,species", *rows]))
    rest = "student: {model: {name: mlp, hidden: [4]}}\nmethod: alone\ntrain: {epochs: 1}\nprecision: '32'\n"
    Path("recipe.yaml").write_text(f"name: flowers\n{FEATURES}{rest}")
    trial = Experiment(read(Path("recipe.yaml")), Path("run"))
    with trial.factory:
        list(trial.run())
    assert trial.data.shape == (2,)
    selected = PAGE[PAGE.index("`features: [") + 1 :].partition("`")[0]
    assert read(Path("recipe.yaml"), overrides=[f"data.{selected.replace(': ', '=')}"]).data.options["features"]
