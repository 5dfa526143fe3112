"""The Python of docs/how-to/own-data.md, on images that the test draws."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import limbeck

PAGE = Path(__file__).parents[2].joinpath("docs/how-to/own-data.md").read_text(encoding="utf-8")
CALLS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def linear(side):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 3))


def headed(convolution, pool):
    width = convolution.out_channels
    return nn.Sequential(convolution, nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(width, 3))


QUICK = {"epochs": 1, "precision": "32", "baseline": False, "allow": ["chance", "permuted", "input"]}


def run(code, **given):
    short = code.replace("epochs=30", 'epochs=1, precision="32", allow=["chance", "permuted", "input"]')
    space = {"limbeck": limbeck, **given}
    exec(short, space)
    return space


def test_the_call_with_arrays_runs(capsys):
    images = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8).numpy()
    made = run(CALLS[0], images=images, labels=torch.arange(60).numpy() % 3, teacher=linear(8), student=linear(8))
    assert made["data"].classes == ("wren", "robin", "finch")
    assert len(capsys.readouterr().out.split()) == 2


def test_the_call_with_a_dataset_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part, count in (("train", 12), ("test", 5)):
        for place, name in enumerate(("finch", "robin", "wren")):
            Path("birds", part, name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (40, 30), (80 * place, number, 9)).save(f"birds/{part}/{name}/{number}.png")
    made = run(CALLS[1], v2=v2, ImageFolder=ImageFolder, teacher=linear(96), student=linear(96))
    data = made["data"]
    assert (data.shape, data.classes) == ((3, 96, 96), ("finch", "robin", "wren"))
    assert data.train.inputs.dtype == torch.uint8
    assert made["result"].student.test.samples == 15


def test_signals_are_distilled():
    torch.manual_seed(0)
    values, labels = torch.randn(60, 2, 12), torch.arange(60) % 3

    data = limbeck.arrays(values, labels, signals=True)
    teacher, student = (headed(nn.Conv1d(2, width, 3), nn.AdaptiveAvgPool1d) for width in (8, 4))
    for method in ("kd", "srrl"):
        _, result = limbeck.distill(teacher, student, data, method=method, **QUICK)
        assert result.student.test.samples == 12
    with pytest.raises(limbeck.LimbeckError, match="at compares maps"):
        limbeck.distill(teacher, student, data, method="at", **QUICK)


def test_images_of_five_channels_are_distilled():
    images = torch.randint(0, 65_536, (60, 5, 8, 8)).to(torch.uint16)
    data = limbeck.arrays(images, torch.arange(60) % 3)
    teacher, student = (headed(nn.Conv2d(5, width, 3), nn.AdaptiveAvgPool2d) for width in (8, 4))

    _, result = limbeck.distill(teacher, student, data, method="kd", augment=limbeck.Augment(crop=1), **QUICK)
    assert result.student.test.samples == 12
