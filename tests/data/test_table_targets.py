"""Tables whose targets are numbers: regression, several labels and landmarks."""

import numpy
import pytest
import torch
from PIL import Image

from limbeck.core import LimbeckError
from limbeck.data import load
from tests.data.image_files import encoded, tree
from tests.data.test_table_source import written

HEADS = ["x", "y", "wet", "cold"]
ROWS = [(i / 4, -i, i % 2, (i % 3) / 2) for i in range(20)]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("task", ["regression", "multi_label"])
def test_targets_of_features(tmp_path, kind, task):
    path = written(tmp_path / f"days.{kind}", HEADS, ROWS)
    data = load("table", path=path, features=True, targets=("wet", "cold"), task=task, normalise=False, limit=10)
    assert (data.task, data.classes, data.shape) == (task, ("wet", "cold"), (2,))
    assert data.train.targets.dtype == torch.float32
    for x, y, wet, cold in torch.cat([data.train.inputs, data.train.targets], dim=1).tolist():
        assert (x, y, wet, cold) == pytest.approx(ROWS[int(-y)])
    assert len(data.train) == 10


FACES = ["path", "eye_x", "eye_y", "nose.x", "nose.y", "a", "b"]


def faces(folder, size=(40, 20)):
    """Images with one white square, whose centre is the point ``eye``."""
    files, rows = {}, []
    for number in range(12):
        wide = size[0] + 2 * number
        pixels = numpy.zeros((size[1], wide, 3), dtype=numpy.uint8)
        left = wide // 2 - 4
        pixels[8:12, left : left + 4] = 255
        files[f"{number}.png"] = Image.fromarray(pixels)
        rows.append((f"{number}.png", left + 2, 10, 0, 0, wide, size[1]))
    tree(folder, files)
    return written(folder / "faces.csv", FACES, rows)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("size", [None, (10, 10), (40, 30)])
def test_points_move_with_a_resized_image(tmp_path, size, streaming):
    path = faces(tmp_path / "faces")
    options = {"streaming": True, "workers": 0} if streaming else {}
    data = load("table", path=path, targets=tuple(FACES[1:5]), task="landmarks", size=size, validation=0, **options)
    assert data.classes == ("eye", "nose")
    assert data.outputs == ("eye.x", "eye.y", "nose.x", "nose.y")
    for split in (data.train, data.test):
        images = split.inputs[torch.arange(len(split))].float().mean(dim=1)
        for number, image in enumerate(images):
            places = torch.nonzero(image)
            weights = image[image > 0][:, None]
            centre = ((places + 0.5) * weights).sum(dim=0) / weights.sum()
            assert split.targets[number, 0].tolist() == pytest.approx(centre.flip(0).tolist(), abs=0.35)


def test_points_of_an_image_that_keeps_its_size_do_not_move(tmp_path):
    folder = tree(tmp_path / "faces", {f"{i}.png": Image.new("RGB", (9, 7)) for i in range(10)})
    exif = Image.Exif()
    exif[0x112] = 6
    tree(folder, {"9.png": encoded(Image.new("RGB", (7, 9)), exif=exif)})
    rows = [(f"{i}.png", 0.1 * i, 1 / 3, i, 2, 5, 6) for i in range(10)]
    path = written(folder / "faces.csv", FACES, rows)
    data = load("table", path=path, targets=("eye_x", "eye_y", "a", "b"), task="landmarks", validation=0)
    assert data.classes == ("eye", "a")
    expected = {name: torch.tensor([[x, y], [5, 6]]) for name, x, y, *_ in rows}
    for split in (data.train, data.test):
        for name, points in zip(split.names, split.targets, strict=True):
            assert torch.equal(points, expected[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ("wet",)}, r"task is 'classification' with the targets 1 \(wet\): classification has a label_c"),
        ({"task": "regression"}, "task is 'regression', but targets names no column: name at least one"),
        ({"task": "segmentation"}, "got 'segmentation': did you mean|allowed are"),
        (
            {"task": "regression", "targets": ("wet",), "label_column": "cold"},
            "label_column is 'cold', but the targets",
        ),
        ({"task": "regression", "targets": ("wet", "wet")}, r"more than one of 1 \(wet\)"),
        ({"task": "regression", "targets": ("wett",)}, "has no column 'wett': did you mean 'wet'"),
        ({"task": "regression", "targets": ("wet",), "features": ("wet",)}, "allowed are columns beside 1"),
        ({"task": "multi_label", "targets": ("y",)}, r"row 2: targets are \[-1.0\]; allowed for multi_label"),
        ({"task": "landmarks", "targets": ("x", "y", "wet")}, "allowed are two columns for each point"),
    ],
)
def test_what_does_not_fit_is_an_error(tmp_path, options, message):
    path = written(tmp_path / "days.csv", HEADS, ROWS)
    with pytest.raises(LimbeckError, match=message):
        load("table", **{"path": path, "features": True, **options})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("eye_y", "eye_x"), "'eye_y' and 'eye_x' are not x and y of one point"),
        (("eye_x", "nose.y"), "are not x and y of one point"),
        (("eye_x", "a"), "are not x and y of one point"),
        (("eye_x", "eye_y", "nose.x", "nse.y"), r"faces.csv has no column 'nse.y': did you mean 'nose.y'\?"),
    ],
)
def test_x_and_y_that_are_confused_are_an_error(tmp_path, columns, message):
    with pytest.raises(LimbeckError, match=message):
        load("table", path=faces(tmp_path / "faces"), targets=columns, task="landmarks")


def test_a_transform_would_not_move_the_points(tmp_path):
    options = {"streaming": True, "transform": "random_resized_crop", "task": "landmarks"}
    with pytest.raises(LimbeckError, match="which would move the images and not the landmarks"):
        load("table", path=faces(tmp_path / "faces"), targets=("eye_x", "eye_y"), **options)


@pytest.mark.parametrize("bad", ["nan", "inf", ""])
def test_a_target_that_is_no_number_is_an_error(tmp_path, bad):
    path = written(tmp_path / "days.csv", HEADS, [*ROWS[:3], (1, 2, bad, 0)])
    with pytest.raises(LimbeckError, match="row 4: the column 'wet' is empty"):
        load("table", path=path, features=True, targets=("wet", "cold"), task="regression")


SOURCE = """
import torch
from limbeck.data import Parts, Split

def squares(*, task: str = "regression") -> Parts:
    images = torch.rand(30, 1, 4, 4)
    targets = {"regression": images.flatten(1)[:, :2], "landmarks": images.flatten(1)[:, :4].view(30, 2, 2),
               "segmentation": (images[:, 0] > 0.5).to(torch.uint8)}[task]
    return Parts(Split(images, targets), ("a", "b"), task=task)
"""


@pytest.mark.parametrize("task", ["regression", "landmarks", "segmentation"])
def test_a_source_of_the_user_has_a_task_and_targets_that_a_size_would_not_move(tmp_path, task):
    (tmp_path / "mine.py").write_text(SOURCE)
    source = f"{tmp_path}/mine.py:squares"
    assert load(source, task=task).task == task
    if task == "regression":
        assert load(source, task=task, size=8).shape == (1, 8, 8)
    else:
        with pytest.raises(LimbeckError, match=f"for {task} the source must resize"):
            load(source, task=task, size=8)
