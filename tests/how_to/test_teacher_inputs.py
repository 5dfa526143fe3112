"""The recipe and the call of docs/how-to/teacher-inputs.md, on images that the test draws."""

import re
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import limbeck
from limbeck.experiment.run import Experiment
from limbeck.recipe.read import read

PAGE = Path(__file__).parents[2].joinpath("docs/how-to/teacher-inputs.md").read_text(encoding="utf-8")
RECIPE, CALL = (re.search(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)[1] for kind in ("yaml", "python"))
BIRDS = ("finch", "robin", "wren")
SMALL = (
    "data.size=32",
    "data.validation=6",
    "train.epochs=1",
    "baseline=false",
    "student.input.size=16",
    "precision=32",
)
TEACHER = ("teacher.model={name: timm:vit_tiny_patch16_224, img_size: 32}", "teacher.input.size=32")


@pytest.fixture
def birds(tmp_path, monkeypatch):
    """A folder of images of three colours, in which the page's recipe lies."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(BIRDS):
        Path("birds", name).mkdir(parents=True)
        for sample in range(16):
            colour = [40 + sample, 40 + sample, 40 + sample]
            colour[number] = 220 - sample
            Image.new("RGB", (40, 32), tuple(colour)).save(f"birds/{name}/{sample}.png")
    Path("recipe.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32).state_dict(), "birds_vit.pth")


def test_the_recipe_runs_and_teacher_and_student_read_their_own_forms(birds):
    recipe = read(Path("recipe.yaml"), overrides=[*SMALL, *TEACHER], allow=["chance", "permuted"])
    trial = Experiment(recipe, Path("run"))
    with trial.factory:
        list(trial.run())
    told = " ".join(trial.result.notes)
    assert (
        "the teacher reads every view converted to values from 0 to 1 normalised with mean 0.485, 0.456, 0.406" in told
    )
    assert "the student reads every view converted to 3 x 16 x 16" in told
    assert "the teacher has the classes of the data in another order" in told
    _, spec = limbeck.load_network(Path("run/student.safetensors"))
    assert spec.shape == (3, 16, 16)
    assert len(RECIPE.splitlines()) <= 15


def test_the_call_runs(birds):
    data = limbeck.load("folder", path=Path("birds"), size=32, validation=6)
    teacher = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32)
    student = timm.create_model("mobilenetv3_small_050", num_classes=3)
    space = {"limbeck": limbeck, "teacher": teacher.eval(), "student": student, "data": data}
    call = CALL.replace("size=224", "size=32").replace(
        "\n)", '\n    epochs=1, baseline=False, precision="32", allow=["chance", "permuted", "input"],\n)'
    )
    exec(call, space)
    assert space["result"].student.test.samples == len(data.test)
