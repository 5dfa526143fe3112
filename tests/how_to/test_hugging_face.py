"""The calls of docs/how-to/hugging-face.md, on a dataset that the test makes."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import limbeck

datasets = pytest.importorskip("datasets", reason="needs datasets: pip install datasets")

PAGE = Path(__file__).parents[2].joinpath("docs/how-to/hugging-face.md").read_text(encoding="utf-8")
(CALL,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def birds():
    """A DatasetDict with images of three colours."""

    def split(count, start):
        colours = [
            [(start + number) * (2 if place == number % 3 else 1) for place in range(3)] for number in range(count)
        ]
        columns = {"image": [Image.new("RGB", (40, 32), tuple(colour)) for colour in colours]}
        names = datasets.ClassLabel(names=["finch", "robin", "wren"])
        features = datasets.Features({"image": datasets.Image(), "label": names})
        return datasets.Dataset.from_dict({**columns, "label": [n % 3 for n in range(count)]}, features=features)

    return datasets.DatasetDict(train=split(36, 20), test=split(9, 90))


def test_the_call_runs(birds):
    networks = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 40, 3)) for _ in range(2))
    space = {"limbeck": limbeck, **dict(zip(("teacher", "student"), networks, strict=True))}
    space["datasets"] = SimpleNamespace(load_dataset=lambda name: birds)  # the test has no network
    exec(CALL.replace("epochs=30", 'epochs=1, precision="32", allow=["chance", "permuted", "input"]'), space)
    assert space["data"].classes == ("finch", "robin", "wren")
    assert space["result"].student.test.samples == 9


def test_the_conversions_of_the_page_work(birds):
    resize = re.search(r"`birds\.map\((.*)\)`\.", PAGE)[1]
    train = birds["train"].map(eval(resize))
    assert limbeck.dataset(train).shape == (3, 96, 96)
    texts = birds["train"].cast_column("label", datasets.Value("string"))
    assert limbeck.dataset(texts.class_encode_column("label")).classes == ("0", "1", "2")
