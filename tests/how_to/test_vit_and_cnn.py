"""The recipes of docs/how-to/vit-and-cnn.md, with small networks."""

import re
from pathlib import Path

import pytest
import timm
import torch

PAGE = Path(__file__).parents[2].joinpath("docs/how-to/vit-and-cnn.md").read_text(encoding="utf-8")
RECIPE, NETWORKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
REVERSE = re.sub(r"teacher:.*?(?=method:)", NETWORKS, RECIPE, flags=re.DOTALL)
VIT = "{name: timm:vit_tiny_patch16_224, img_size: 32, depth: 2}"
CNN = "{name: timm:resnet10t}"


def overrides(teacher, student, size):
    sizes = ("teacher.input.size=32", f"student.input.size={size}")
    return (f"teacher.model={teacher}", f"student.model={student}", *sizes)


@pytest.mark.parametrize("method", ["kd", "rkd", "srrl", "vkd"])
def test_a_transformer_teaches_a_cnn(run_recipe, method):
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2)
    torch.save(vit.state_dict(), "vit.pth")
    result = run_recipe(RECIPE, *overrides(VIT, CNN, 16), f"method={method}")
    assert "the student reads every view converted to 3 x 16 x 16" in " ".join(result.notes)


@pytest.mark.parametrize("method", ["kd", "rkd", "srrl", "ofa"])
def test_a_cnn_teaches_a_transformer(run_recipe, method):
    torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), "resnet.pth")
    result = run_recipe(REVERSE, *overrides(CNN, VIT, 32), f"method={method}")
    assert result.student.test.samples > 0
