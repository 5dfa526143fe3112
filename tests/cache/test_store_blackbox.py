import pytest
import torch
from torch.nn import functional as F

from limbeck.cache.blackbox import BlackBox, TableStore, rows_for
from limbeck.cache.table import Table
from limbeck.core import LimbeckError, Tap

CLASSES = ("cat", "dog", "eel")


def table(names, classes=CLASSES):
    """Row i has the logits 10 i + 0, 1, 2."""
    return Table(tuple(names), classes, torch.arange(len(names))[:, None] * 10.0 + torch.arange(3))


def found(names, asked, classes=CLASSES, order=CLASSES):
    """The rows that were found, or the columns of the first."""
    return rows_for(table(names, classes), asked, order)


def rows(names, asked):
    return (found(names, asked)[:, 0] / 10).int().tolist()


def test_files_are_found_by_their_path_in_any_order():
    assert rows(["a/1.png", "b/1.png", "c.png"], ["c.png", "b/1.png", "a/1.png"]) == [2, 1, 0]


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("1.png", "train/1.png"),
        ("train/1.png", "1.png"),
        ("/home/me/data/train/1.png", "train/1.png"),
        ("train/1.png", "data/train/1.png"),
        ("train/1.png", ".\\train\\1.png"),
    ],
)
def test_a_file_is_found_by_the_end_of_its_path(name, asked):
    assert rows(["0.png", name], [asked]) == [1]


def test_the_whole_path_counts_before_its_end():
    assert rows(["1.png", "a/1.png"], ["1.png"]) == [0]
    assert rows(["b/a/1.png", "a/1.png"], ["a/1.png"]) == [1]


def test_a_file_in_another_folder_is_not_taken_for_it():
    with pytest.raises(LimbeckError, match=r"no row for 1 \(train/1\.png\), of 1; it has 1 \(test/1\.png\)"):
        rows(["test/1.png"], ["train/1.png"])


def test_missing_files_are_counted_and_named():
    asked = [f"{number}.png" for number in range(6)]
    with pytest.raises(LimbeckError, match=r"no row for 5 \(0\.png, 2\.png, 3\.png, \.\.\.\), of 6; it has 2"):
        rows(["1.png", "7.png"], asked)


@pytest.mark.parametrize(
    ("names", "asked"),
    [(["a/1.png", "b/1.png"], ["1.png"]), (["1.png"], ["a/1.png", "b/1.png"]), (["a/1.png"], ["a/1.png", "1.png"])],
)
def test_files_whose_row_is_not_certain_are_refused(names, asked):
    with pytest.raises(
        LimbeckError, match=rf"several rows .* match.* for {len(asked)} \({asked[0]}.*\), of {len(asked)}"
    ):
        rows(names, asked)


def test_columns_are_found_by_the_names_of_the_classes():
    assert found(["a"], ["a"], order=("eel", "cat", "dog")).tolist() == [[2.0, 0.0, 1.0]]


def test_columns_without_names_are_in_the_order_of_the_data():
    assert found(["a"], ["a"], classes=None, order=("x", "y", "z")).tolist() == [[0.0, 1.0, 2.0]]
    with pytest.raises(LimbeckError, match="the table has 3 columns, the data 2 classes"):
        found(["a"], ["a"], classes=None, order=("x", "y"))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (("cat", "dog", "ant"), r"unknown are 1 \(eel\), missing are 1 \(ant\)"),
        (("cat", "dog"), r"unknown are 1 \(eel\), missing are none"),
        ((*CLASSES, "fox"), r"unknown are none, missing are 1 \(fox\)"),
    ],
)
def test_other_classes_than_the_datas_are_refused(order, message):
    with pytest.raises(LimbeckError, match=message):
        found(["a"], ["a"], order=order)


def test_numbers_name_columns_only_where_they_are_the_classes_names():
    assert found(["a"], ["a"], classes=("2", "0", "1"), order=("0", "1", "2")).tolist() == [[1.0, 2.0, 0.0]]
    with pytest.raises(LimbeckError, match=r"unknown are 3 \(0, 1, 2\)"):
        found(["a"], ["a"], classes=("0", "1", "2"))


def test_a_table_is_read_as_a_store_with_the_same_row_in_every_view():
    logits = torch.randn(5, 3)
    store = TableStore(logits)
    index = torch.tensor([4, 0, 4])
    assert store.taps == {Tap("teacher")}
    assert store.rows == 5
    for view in (0, 7):
        assert torch.equal(store.read(index, view)[Tap("teacher")], logits[index])


def test_a_black_box_has_the_shape_of_a_teacher_and_shows_at_once_where_it_is_used():
    box = BlackBox(3)
    given = box(torch.zeros(4, 2, 8, 8))
    assert given.shape == (4, 3)
    assert F.kl_div(torch.zeros(4, 3).log_softmax(1), given.softmax(1), reduction="batchmean").isnan()
    assert list(box.parameters()) == []
