"""The recipes, the file and the call of docs/how-to/teacher-as-function.md, with a service that the test makes."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import limbeck

PAGE = Path(__file__).parents[2].joinpath("docs/how-to/teacher-as-function.md").read_text(encoding="utf-8")
TABLE, RECIPE = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
FILE, CALL = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def service(monkeypatch):
    """A service that knows the classes by the channel that is brightest; it keeps the sizes of its batches."""
    asked = []

    def predict(images):
        assert images.dtype == np.uint8
        asked.append(len(images))
        scores = np.exp(images.mean(axis=(2, 3)) / 100.0)
        return scores / scores.sum(axis=1, keepdims=True)

    monkeypatch.setitem(sys.modules, "my_service", SimpleNamespace(predict=predict))
    return asked


def test_the_table_teaches(run_recipe):
    rows = [f"{path.relative_to('birds')},0.5,0.25,0.25" for path in sorted(Path("birds").rglob("*.png"))]
    Path("predictions.csv").write_text("\n".join(["file,finch,robin,wren", *rows]))
    assert run_recipe(TABLE).student.test.samples > 0


def test_the_function_of_a_recipe_is_called_once_for_every_view(run_recipe, service):
    Path("teacher.py").write_text(FILE)
    result = run_recipe(RECIPE, "cache.views=2", allow=())
    assert result.teacher.test.accuracy == 1
    assert "values from 0 to 255 normalised with mean 0, 0, 0" in " ".join(result.notes)
    assert "is called in every epoch" not in " ".join(result.notes)


def test_the_call_runs(birds, service):
    space = {"limbeck": limbeck}
    exec(FILE, space)
    data = limbeck.load("folder", path=Path("birds"), size=32, validation=6)
    space |= {"logits": space["load"](3), "data": data}
    space["student"] = limbeck.models.build("resnet8x4", classes=3, shape=data.shape)
    exec(
        CALL.replace("\n)", '\n    epochs=1, baseline=False, precision="32", augment=limbeck.Augment(flip=True),\n)'),
        space,
    )
    assert space["result"].teacher.test.accuracy == 1
    assert max(len(text.splitlines()) for text in (FILE, CALL)) <= 15
