"""What the pages of docs/how-to/ share: a folder of images that the fixture draws, and how a recipe is run."""

from pathlib import Path

import pytest
from PIL import Image

from limbeck.experiment.run import Experiment
from limbeck.recipe.read import read


@pytest.fixture
def birds(tmp_path, monkeypatch):
    """A working directory with a folder of images of three colours."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("finch", "robin", "wren")):
        Path("birds", name).mkdir(parents=True)
        for sample in range(16):
            colour = [40 + sample, 40 + sample, 40 + sample]
            colour[number] = 220 - sample
            Image.new("RGB", (40, 32), tuple(colour)).save(f"birds/{name}/{sample}.png")


@pytest.fixture
def run_recipe(birds):
    """A function that runs the text of a recipe at a small size, and returns the result."""
    small = ("data.size=32", "data.validation=6", "train.epochs=1", "baseline=false", "evaluate.latency_runs=1")

    def run(text, *overrides, allow=("chance", "permuted")):
        assert len(text.splitlines()) <= 15
        Path("recipe.yaml").write_text(text)
        recipe = read(Path("recipe.yaml"), overrides=[*small, "precision=32", *overrides], allow=allow)
        trial = Experiment(recipe, Path("run"))
        with trial.factory:
            list(trial.run())
        return trial.result

    return run
