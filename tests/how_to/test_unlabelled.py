"""The recipe and the example of docs/how-to/unlabelled.md."""

import re
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from limbeck.experiment.run import Experiment
from limbeck.models import build
from limbeck.recipe.read import read

PAGE = Path(__file__).parents[2].joinpath("docs/how-to/unlabelled.md").read_text(encoding="utf-8")
RECIPE, EXAMPLE = (re.search(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)[1] for kind in ("yaml", "python"))


def test_the_recipe_runs_and_says_how_many_images_are_unlabelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, shade in (("finch", 20), ("robin", 200), ("unlabelled", 120)):
        Path("birds", name).mkdir(parents=True)
        for sample in range(10):
            Image.new("RGB", (32, 32), (shade, shade + sample, 90)).save(f"birds/{name}/{sample}.png")
    torch.manual_seed(0)
    save_file(build("resnet14", classes=2, shape=(3, 32, 32)).state_dict(), "birds.safetensors")
    Path("recipe.yaml").write_text(RECIPE)
    recipe = read(Path("recipe.yaml"), overrides=["train.epochs=1", "precision=32"], allow=["chance"])
    trial = Experiment(recipe, Path("run"))
    with trial.factory:
        list(trial.run())
    assert "10 of 24 training samples are unlabelled" in trial.result.notes
    assert trial.result.student.test.samples == 4
    assert len(RECIPE.splitlines()) <= 15


def test_the_example_runs(capsys):
    quick = EXAMPLE.replace("435", "2").replace("30)", "1)").replace("range(5)", "range(2)")
    space = {}
    exec(quick, space)
    assert "1,338 of 1,438 training samples are unlabelled" in space["result"].notes
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["100", "1438"]
    assert len([line for line in EXAMPLE.splitlines() if line]) <= 15
