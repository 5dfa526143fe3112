"""The recipe and the commands of docs/how-to/prune.md."""

import re
from pathlib import Path

import pytest

from limbeck.experiment.run import Experiment
from limbeck.recipe.read import read

PAGE = Path(__file__).parents[2].joinpath("docs/how-to/prune.md").read_text(encoding="utf-8")
(RECIPE,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
SMALL = ("data.limit=64", "teacher.train.epochs=1", "train.epochs=1", "seeds=[0]", "evaluate.latency_runs=1")


@pytest.mark.parametrize("settings", re.findall(r"limbeck run prune.yaml(?: --set (\S+))?", PAGE))
def test_the_recipe_of_the_page_runs_with_both_commands(tmp_path, monkeypatch, settings):
    pytest.importorskip("torch_pruning")
    monkeypatch.chdir(tmp_path)
    Path("prune.yaml").write_text(RECIPE)
    recipe = read(Path("prune.yaml"), overrides=[*SMALL, *filter(None, [settings])], check_paths=True)
    assert recipe.student.from_scratch is bool(settings)
    trial = Experiment(recipe, Path("run"))
    list(trial.run())
    assert trial.result.student.macs <= trial.result.teacher.macs / 4
