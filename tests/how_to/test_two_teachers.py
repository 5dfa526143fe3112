"""The recipe and the call of docs/how-to/two-teachers.md, with small networks."""

import re
from pathlib import Path

import timm
import torch

import limbeck

PAGE = Path(__file__).parents[2].joinpath("docs/how-to/two-teachers.md").read_text(encoding="utf-8")
RECIPE, CALL = (re.search(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)[1] for kind in ("yaml", "python"))


def make(name):
    return timm.create_model(name, num_classes=3, **({"img_size": 32, "depth": 2} if "vit" in name else {}))


def test_the_recipe_runs_and_each_member_reads_its_own_form(run_recipe):
    torch.save(make("vit_tiny_patch16_224").state_dict(), "vit.pth")
    torch.save(make("resnet10t").state_dict(), "resnet.pth")
    text = RECIPE.replace("size: 224", "size: 32").replace("torchvision:resnet50", "timm:resnet10t")
    text = text.replace("timm:vit_small_patch16_224", "{name: timm:vit_tiny_patch16_224, img_size: 32, depth: 2}")
    result = run_recipe(text)
    told = " ".join(result.notes)
    assert "the teacher's member 0 reads every view converted to values from 0 to 1 normalised with mean 0.5," in told
    assert "the teacher's member 1 reads every view converted to values from 0 to 1 normalised with mean 0.485," in told
    assert "the teacher's member 1 has the classes of the data in another order" in told
    assert [(run.arm, run.member) for run in result.runs[:3]] == [("member", 0), ("member", 1), ("teacher", None)]
    assert len(RECIPE.splitlines()) <= 15


def test_the_call_runs(birds):
    data = limbeck.load("folder", path=Path("birds"), size=32, validation=6)
    space = {"limbeck": limbeck, "data": data, "student": make("mobilenetv3_small_050")}
    space |= {"vit": make("vit_tiny_patch16_224").eval(), "resnet": make("resnet10t").eval()}
    call = CALL.replace("size=224", "size=32").replace(
        "\n)", '\n    epochs=1, baseline=False, precision="32", allow=["chance", "permuted", "input"],\n)'
    )
    exec(call, space)
    assert space["result"].teacher.test.samples == len(data.test)
    assert len(CALL.splitlines()) <= 15
