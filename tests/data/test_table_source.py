"""Tables of image paths and of features."""

import csv
import sys

import numpy
import pytest
import torch
from PIL import Image

from limbeck.core import LimbeckError
from limbeck.data import load
from limbeck.files import columns
from tests.data.image_files import encoded, picture, tree

ROWS = [(f"{name}/{i}.png", name) for i in range(10) for name in ("cat", "ant")]
FILES = {path: picture(20 * int(path[4]) + 5 * (label == "cat")) for path, label in ROWS}


def written(path, heads, rows):
    """The rows as a CSV or parquet file."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([heads, *rows])
    else:
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(arrow.table(dict(zip(heads, map(list, zip(*rows, strict=True)), strict=True))), path)
    return path


@pytest.fixture
def photos(tmp_path):
    return tree(tmp_path / "photos", FILES)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("place", ["photos", "photos.zip"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_table_gives_the_samples_that_class_folders_give(tmp_path, kind, place, streaming):
    images = tree(tmp_path / place, FILES)
    path = written(tmp_path / f"labels.{kind}", ["path", "label"], sorted(ROWS))
    data = load("table", path=path, images=images, streaming=streaming)
    expected = load("folder", path=images, streaming=streaming)
    assert (data.classes, data.mean, data.std) == (expected.classes, expected.mean, expected.std)
    for split in ("train", "validation", "test"):
        one, other = getattr(data, split), getattr(expected, split)
        assert (one.names, one.targets.tolist()) == (other.names, other.targets.tolist())
        assert one.digest() == other.digest()
    assert data.origins["train"].startswith(f"the rows of labels.{kind}, without the samples of test and validation")


def test_the_rows_keep_their_order_and_paths_are_relative_to_the_table(tmp_path, photos):
    rows = [(f".\\photos/{path}", label) for path, label in ROWS]
    data = load("table", path=written(tmp_path / "labels.csv", ["path", "label"], rows), validation=0)
    assert data.train.names == tuple(f"photos/{path}" for path, _ in ROWS if f"photos/{path}" in data.train.names)


def test_a_column_names_the_splits_and_columns_may_have_other_names(tmp_path, photos):
    splits = ["Training", "val", "test"]
    rows = [(i, path, label, splits[i % 3]) for i, (path, label) in enumerate(ROWS)]
    path = written(tmp_path / "labels.csv", ["id", "image", "class", "split"], rows)
    data = load("table", path=path, images=photos, path_column="image", label_column="class")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [7, 7, 6]
    assert data.train.names == tuple(path for path, _ in ROWS[::3])
    assert data.origins["test"] == "the test rows of labels.csv"
    fold = written(tmp_path / "fold.csv", ["path", "label", "fold"], [row[1:] for row in rows])
    other = load("table", path=fold, images=photos, split_column="fold")
    assert other.train.names == data.train.names


def test_a_column_split_that_holds_the_labels_does_not_divide_the_rows(tmp_path, photos):
    path = written(tmp_path / "labels.csv", ["path", "split"], [(path, f"{label}s") for path, label in ROWS])
    assert load("table", path=path, images=photos, label_column="split").classes == ("ants", "cats")


def test_each_split_may_have_its_own_table(tmp_path, photos):
    paths = [
        written(tmp_path / f"{part}.csv", ["path", "label", "split"], [(*row, "elsewhere") for row in ROWS[start::3]])
        for start, part in enumerate(("train", "val", "test"))
    ]
    data = load("table", path=paths[0], validation_path=paths[1], test_path=paths[2], images=photos)
    assert data.validation.names == tuple(path for path, _ in ROWS[1::3])
    assert data.origins == {part: f"the rows of {path.name}" for part, path in zip(data.origins, paths, strict=True)}


def test_labels_that_are_whole_numbers_are_sorted_by_value(tmp_path):
    tree(tmp_path, {f"{i}.png": picture(i) for i in range(44)})
    for kind in ("csv", "parquet"):
        path = written(tmp_path / f"labels.{kind}", ["path", "label"], [(f"{i}.png", i % 11) for i in range(44)])
        data = load("table", path=path)
        assert data.classes == tuple(map(str, range(11)))
        assert data.train.targets.tolist() == [int(name[:-4]) % 11 for name in data.train.names]


def test_what_is_passed_over_is_noted_and_images_are_turned(tmp_path, photos):
    exif = Image.Exif()
    exif[0x112] = 6
    (photos / "cat" / "0.png").write_bytes(encoded(picture(), exif=exif))
    (photos / "notes.txt").write_text("")
    path = written(photos / "labels.csv", ["path", "label"], ROWS[2:] + ROWS[:1])
    notes = load("table", path=path).notes
    assert "2 files were skipped: 1 .png (not in the table), 1 .txt" in notes
    assert "1 image was rotated or flipped according to their EXIF orientation" in notes


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_of_features_gives_float32(tmp_path, kind):
    rows = [(i / 4, -i, "even" if i % 2 == 0 else "odd", i) for i in range(20)]
    path = written(tmp_path / f"points.{kind}", ["x", "y", "label", "z"], rows)
    data = load("table", path=path, features=True, validation=0, normalise=False)
    assert data.shape == (3,)
    assert data.train.inputs.dtype == torch.float32
    x, y, z = data.train.inputs.unbind(1)
    assert torch.equal(4 * x, z)
    assert torch.equal(-y, z)
    assert data.train.targets.tolist() == [int(value) % 2 for value in z]
    some = load("table", path=path, features=("z", "x"), validation=0, normalise=False)
    assert torch.equal(some.train.inputs, torch.stack([z, x], dim=1))


def test_the_features_of_a_split_are_in_the_order_of_train_whatever_the_order_of_its_columns(tmp_path):
    train = written(tmp_path / "train.csv", ["x", "y", "label"], [(i, 2 * i, i % 2) for i in range(8)])
    test = written(tmp_path / "test.csv", ["y", "label", "x"], [(2 * i, i % 2, i) for i in range(4)])
    data = load("table", path=train, test_path=test, features=True, validation=0, normalise=False)
    assert data.test.inputs.tolist() == [[i, 2 * i] for i in range(4)]


HEADS = ("path", "label")


@pytest.mark.parametrize(
    ("heads", "rows", "message"),
    [
        (("file", "label"), ROWS, r"labels.csv has no column 'path': allowed are file, label"),
        (("path", "labels"), ROWS, r"has no column 'label': did you mean 'labels'\?"),
        (("path;label",), [("a.png;cat",)], "has no column 'label': .*allowed are path;label"),
        (("path", "path"), ROWS, r"more than one column for 1 \(path\)"),
        (HEADS, [], "has no rows; allowed are one and more"),
        (HEADS, [*ROWS, ("", "cat")], "row 21: the column 'path' is empty"),
        (HEADS, [*ROWS, ("a.png", "")], "row 21: the column 'label' is empty"),
        (HEADS, [*ROWS, ("a.png",)], "line 22: 1 values under 2 columns"),
        (HEADS, [*ROWS, ("cat/../../a.png", "cat")], "row 21: 'cat/../../a.png' is outside the folder of images"),
        (HEADS, [*ROWS, ("/etc/passwd", "cat")], "row 21: '/etc/passwd' is outside"),
        (HEADS, [*ROWS, (r"..\a.png", "cat")], "row 21: .* is outside"),
        (HEADS, [*ROWS, ("C:a.png", "cat")], "row 21: 'C:a.png' is outside"),
        (HEADS, [*ROWS, ("./cat//0.png", "ant")], r"labels.csv: more than one row for 1 \(cat/0.png\)"),
        (HEADS, [*ROWS, ("cat/0", "cat")], r"1 \(cat/0\) of 21 files are not in .*photos: did you mean 'cat/0.png'\?"),
        (HEADS, [(path, path) for path, _ in ROWS], "labels.csv has a different value of 'label' in each row; allowed"),
        ((*HEADS, "split"), [(*row, "trian") for row in ROWS], "row 1: 'trian' is not a split; allowed are train, "),
        ((*HEADS, "split"), [(*row, "test") for row in ROWS], "has no row of train; allowed in the column 'split' are"),
    ],
)
def test_a_table_that_is_not_right_is_refused_and_says_where(tmp_path, photos, heads, rows, message):
    with pytest.raises(LimbeckError, match=message):
        load("table", path=written(tmp_path / "labels.csv", heads, rows), images=photos)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": True, "streaming": True}, "streaming is for images, but features is True"),
        ({"features": True, "images": "."}, "images is for images"),
        ({"features": ("x", "label")}, r"features are 2 \(x, label\); allowed are columns beside 'label'"),
        ({"features": ("x", "y", "x")}, r"features are 3 \(x, y, x\); allowed are .* each once"),
        ({"features": ("x", "w")}, "has no column 'w': allowed are label, x, y"),
        ({"features": ()}, "has no column 'path'"),
        ({"features": True, "split_column": "y", "test_path": "points.csv"}, "split_column is 'y', and"),
        ({"features": True, "split_column": "fold"}, "has no column 'fold'"),
        ({"workers": 2}, "workers is 2, but workers needs streaming=True"),
        ({"features": True, "test_path": "points.txt"}, "points.txt cannot be read as a table"),
        ({"path": "points.txt"}, r"points.txt cannot be read as a table: allowed are .csv, .parquet"),
        ({"path": "point.csv"}, r"there is no file .*point.csv: did you mean 'points.csv'\?"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "points.csv", ["x", "y", "label"], [(1, 2, "a"), (2, 3, "b")])
    with pytest.raises(LimbeckError, match=message):
        load("table", **{"path": "points.csv"} | options)


@pytest.mark.parametrize("value", ["nan", "inf", "1e39"])
def test_a_feature_that_is_no_number_is_refused_by_its_row(tmp_path, value):
    path = written(tmp_path / "points.csv", ["x", "label"], [(1, "a"), (value, "b")])
    with pytest.raises(LimbeckError, match=r"points.csv, row 2: the column 'x' is empty, NaN or infinite"):
        load("table", path=path, features=True)
    with pytest.raises(LimbeckError, match="row 2: the column 'x' is 'much'; allowed are numbers"):
        load("table", path=written(path, ["x", "label"], [(1, "a"), ("much", "b")]), features=True)


def test_a_parquet_table_of_other_types_is_refused(tmp_path):
    path = written(tmp_path / "points.parquet", ["x", "label"], [(1.0, 0.5), (2.0, 1.5)])
    with pytest.raises(LimbeckError, match="the column 'label' is of double, needed are texts of label, else numbers"):
        load("table", path=path, features=True)
    empty = written(tmp_path / "points.parquet", ["x", "label"], [(None, "a"), (2.0, None)])
    with pytest.raises(LimbeckError, match="row 2: the column 'label' is empty"):
        load("table", path=empty, features=True)


def test_a_table_of_too_many_rows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "ROWS", 3)
    for kind in ("csv", "parquet"):
        path = written(tmp_path / f"labels.{kind}", ["path", "label"], ROWS)
        with pytest.raises(LimbeckError, match=r"has (4|20) rows or more, allowed are at most 3"):
            load("table", path=path)


def test_a_parquet_table_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "labels.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LimbeckError, match=r"needs pyarrow to be read: pip install 'limbeck\[parquet\]'"):
        load("table", path=tmp_path / "labels.parquet")


def test_a_table_without_rows_of_numbers_keeps_its_shape(tmp_path):
    path = written(tmp_path / "labels.csv", ["path", "label"], ROWS)
    read = columns.read_columns(path, texts=("label",), numbers=())
    assert read.numbers.shape == (20, 0)
    assert read.numbers.dtype == numpy.float64
