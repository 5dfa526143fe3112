"""The recipes, files and calls of the how-to pages of the tasks and of class folders, on data that the tests draw."""

import re
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import nn

import limbeck

PAGES = Path(__file__).parents[2] / "docs" / "how-to"


def blocks(name, kind):
    """The blocks of code of a page, each of at most 15 lines."""
    found = re.findall(rf"```{kind}\n(.*?)```", (PAGES / f"{name}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert all(len(code.splitlines()) <= 15 for code in found)
    return found


def teacher(page):
    """The settings for a teacher that the run trains, as the page has it, but small and in one epoch."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"`teacher: (\{.*\})` trains one in the run", text)
    return f"teacher={found}", "teacher.model={name: mlp, hidden: [8]}", "teacher.train.epochs=1"


def table(name, page, rows):
    """A table with the columns of the page's, whose rows have the form of the page's."""
    heads, *own = blocks(page, "csv")[0].splitlines()
    assert {len(line.split(",")) for line in own} == {len(rows[0])} == {len(heads.split(","))}
    Path(name).write_text("\n".join([heads, *(",".join(map(str, row)) for row in rows)]))


def photos(folder, count, size=(40, 32)):
    Path(folder).mkdir()
    generator = numpy.random.default_rng(0)
    for number in range(1, count + 1):
        pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(f"{folder}/{number:04}.jpg")


def call(page, networks, **given):
    code = blocks(page, "python")[-1].replace("epochs=", 'epochs=1, precision="32", allow=["chance"], seed=')
    space = {"limbeck": limbeck, **dict(zip(("teacher", "student"), networks, strict=True)), **given}
    exec(code, space)
    return space["result"]


def linear(inputs, outputs):
    return [nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs)) for _ in range(2)]


def test_several_labels(run_recipe, capsys):
    photos("photos", 40)
    table("labels.csv", "multi-label", [(f"{i:04}.jpg", i % 2, i % 3 % 2, 0.5) for i in range(1, 41)])
    result = run_recipe(blocks("multi-label", "yaml")[0], *teacher("multi-label"))
    assert result.task == "multi_label"
    labels = (numpy.arange(180).reshape(60, 3) % 2).astype("float32")
    result = call("multi-label", linear(64, 3), images=torch.rand(60, 1, 8, 8), labels=labels)
    assert result.student.test.samples == 12
    assert len(capsys.readouterr().out.split()) == 2


def test_regression(run_recipe):
    table("houses.csv", "regression", [(i % 6, 10.5 * (i % 7), i % 5, 0.4 * (i % 6)) for i in range(60)])
    recipe, metric = blocks("regression", "yaml")[0], blocks("regression", "python")[0]
    Path("metric.py").write_text(metric)
    result = run_recipe(recipe, "teacher.train.epochs=1", "data.size=null")
    assert result.metric == "within_a_tenth"
    assert 0 <= result.student.own_metric <= 1
    features, prices = torch.rand(60, 3), torch.rand(60, 1)
    assert call("regression", linear(3, 1), features=features, prices=prices).student.test.samples == 12


def test_landmarks(run_recipe):
    photos("faces", 40)
    rows = [(f"{i:04}.jpg", 8.5, 9, 20, 10 + i % 3, 15, 20) for i in range(1, 41)]
    table("faces.csv", "landmarks", rows)
    result = run_recipe(blocks("landmarks", "yaml")[0], *teacher("landmarks"), "train.augment.cutout=4")
    assert result.task == "landmarks"
    points = torch.rand(60, 3, 2)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 6)) for width in (16, 8)]
    result = call("landmarks", networks, images=torch.rand(60, 1, 8, 8), points=points)
    assert result.student.test.samples == 12


def test_segmentation(run_recipe):
    generator = numpy.random.default_rng(0)
    for folder in ("streets/images", "streets/masks"):
        Path(folder).mkdir(parents=True)
    for number in range(24):
        mask = generator.integers(0, 3, (24, 30), dtype=numpy.uint8)
        Image.fromarray(mask).save(f"streets/masks/{number:04}.png")
        Image.fromarray(80 * mask).convert("RGB").save(f"streets/images/{number:04}.jpg")
    Path("net.py").write_text(blocks("segmentation", "python")[0])
    result = run_recipe(blocks("segmentation", "yaml")[0], "data.size=16", "teacher.train.epochs=1")
    assert result.task == "segmentation"
    networks = [nn.Conv2d(1, 3, 1) for _ in range(2)]
    images, masks = torch.rand(40, 1, 8, 8), torch.arange(40 * 64).reshape(40, 8, 8) % 3
    assert call("segmentation", networks, images=images, masks=masks).student.test.samples == 8


def test_class_folders(run_recipe):
    Path("net.py").write_text(blocks("class-folder", "python")[0])
    result = run_recipe(blocks("class-folder", "yaml")[0], "teacher.train.epochs=1", "seeds=[0]")
    assert result.task == "classification"
    network, _ = limbeck.load_network("run/student.safetensors", model="net.py:make")
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 3)


def test_every_page_is_linked():
    index = (PAGES / "index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert linked == {page.name for page in PAGES.glob("*.md")} - {"index.md"}
    assert "docs/how-to/index.md" in (PAGES.parents[1] / "README.md").read_text(encoding="utf-8")
