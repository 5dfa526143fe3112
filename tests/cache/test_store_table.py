import csv
import math
import sys

import numpy
import pytest
import torch

from limbeck.cache.table import FLOOR, read_table
from limbeck.core import LimbeckError

NAMES = ["cats/1.png", "dogs/2.png", "3.png"]
CLASSES = ["cat", "dog", "eel"]
PROBABILITIES = numpy.array([[0.5, 0.25, 0.25], [0.1, 0.9, 0.0], [1.0, 0.0, 0.0]])
LOGITS = numpy.array([[3.0, -1.0, 0.5], [0.0, 7.0, -2.0], [0.0, 0.0, -0.25]])


def written_csv(folder, values, names=NAMES, classes=CLASSES):
    with (folder / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", *classes])
        rows.writerows([name, *line] for name, line in zip(names, values, strict=True))
    return folder / "table.csv"


def written_npz(folder, values, names=NAMES, classes=CLASSES):
    numpy.savez(folder / "table.npz", files=numpy.array(names), values=values, classes=numpy.array(classes))
    return folder / "table.npz"


def written_parquet(folder, values, names=NAMES, classes=CLASSES):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"file": names, **dict(zip(classes, values.T, strict=True))}
    parquet.write_table(arrow.table(columns), folder / "table.parquet")
    return folder / "table.parquet"


def text(folder, content):
    (folder / "table.csv").write_text(content)
    return folder / "table.csv"


@pytest.mark.parametrize("write", [written_csv, written_npz, written_parquet])
@pytest.mark.parametrize("values", [PROBABILITIES, LOGITS, numpy.log(PROBABILITIES[:1])])
def test_every_kind_is_read_from_every_file(tmp_path, write, values):
    table = read_table(write(tmp_path, values, NAMES[: len(values)]))
    assert table.names == tuple(NAMES[: len(values)])
    assert table.classes == tuple(CLASSES)
    assert table.values.dtype == torch.float32
    wanted = values if values is LOGITS or len(values) == 1 else numpy.log(numpy.maximum(values, 1e-8))
    torch.testing.assert_close(table.values, torch.tensor(wanted, dtype=torch.float32))


def test_the_softmax_of_what_is_read_gives_the_probabilities_again(tmp_path):
    read = read_table(written_csv(tmp_path, PROBABILITIES)).values
    torch.testing.assert_close(read.double().softmax(1), torch.tensor(PROBABILITIES), rtol=0, atol=4 * FLOOR + 1e-7)
    assert read.isfinite().all()


def test_a_log_probability_of_nothing_has_the_same_floor(tmp_path):
    values = numpy.array([[0.0, -math.inf, -math.inf], [math.log(0.5), math.log(0.5), -100.0]])
    for kind in (None, "log-probabilities"):
        table = read_table(written_csv(tmp_path, values, NAMES[:2]), kind)
        assert table.values.min() == pytest.approx(math.log(FLOOR))
        assert table.values[1, 0] == pytest.approx(math.log(0.5))


def test_rounded_probabilities_need_sum_to_one_within_a_thousandth(tmp_path):
    read_table(written_csv(tmp_path, numpy.array([[0.333, 0.333, 0.333]]), NAMES[:1]))
    with pytest.raises(LimbeckError, match=r"values from 0\.33 to 0\.33 that could be of several kinds: say which"):
        read_table(written_csv(tmp_path, numpy.array([[0.33, 0.33, 0.33]]), NAMES[:1]))


@pytest.mark.parametrize(
    "values", [[[50.0, 25.0, 25.0]], [[0.75, 0.5, 0.125]], [[-1.0, -2.0, -3.0]], [[0.0, 0.0, 0.0]], [[0.0, 2.0, 5.0]]]
)
def test_what_could_be_several_things_is_refused_unless_its_kind_is_said(tmp_path, values):
    path = written_csv(tmp_path, numpy.array(values), NAMES[:1])
    with pytest.raises(
        LimbeckError,
        match=r"say which .*: probabilities, log-probabilities, logits. Or the column",
    ):
        read_table(path)
    assert read_table(path, "logits").values.tolist() == values


@pytest.mark.parametrize("kind", ["probabilities", "log-probabilities"])
def test_numbers_that_do_not_fit_the_kind_are_refused(tmp_path, kind):
    values = numpy.array([[1.5, -0.5, 0.0], [1.0, 0.0, 0.0], [900.0, 0.0, 0.0]])
    with pytest.raises(LimbeckError, match=rf"the {kind} in .* are not .* for [23] \(cats/1\.png, .*say logits"):
        read_table(written_csv(tmp_path, values), kind)


def test_a_kind_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(LimbeckError, match="a table of 'odds': allowed are probabilities, log-probabilities, logits"):
        read_table(written_csv(tmp_path, PROBABILITIES), "odds")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39, -1e39])
def test_a_value_that_is_no_number_is_refused_and_its_file_named(tmp_path, value):
    values = LOGITS.copy()
    values[1, 2] = value
    with pytest.raises(LimbeckError, match=r"empty, NaN or infinite value for 1 \(dogs/2\.png\)"):
        read_table(written_npz(tmp_path, values))


def test_an_empty_cell_of_a_parquet_file_is_refused(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        arrow.table({"file": ["a", "b"], "cat": [0.5, None], "dog": [0.5, 1.0]}), tmp_path / "table.parquet"
    )
    with pytest.raises(LimbeckError, match=r"empty, NaN or infinite value for 1 \(b\)"):
        read_table(tmp_path / "table.parquet")


def test_the_column_of_the_files_may_stand_anywhere_and_windows_may_have_written_it(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes("\ufeffcat,file,dög\r\n0.5,.\\a\\1.png,0.5\r\n\r\n0.25,b.png,0.75\r\n".encode())
    table = read_table(path)
    assert table.names == ("a/1.png", "b.png")
    assert table.classes == ("cat", "dög")
    assert table.values[1].exp().tolist() == pytest.approx([0.25, 0.75])


def test_an_npz_may_leave_the_classes_out(tmp_path):
    numpy.savez(tmp_path / "table.npz", files=numpy.array(NAMES), values=LOGITS.astype("float16"))
    assert read_table(tmp_path / "table.npz").classes is None


def test_classes_of_an_npz_may_be_numbers(tmp_path):
    assert read_table(written_npz(tmp_path, LOGITS, classes=[0, 1, 2])).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,cat,dog\na,0.5,0.5\n", r"has the columns 3 \(name, cat, dog\): needed are one that is named file"),
        ("", "cannot be read: it is empty"),
        ("\n\n", "has the columns none: needed are one that is named file"),
        ("file,cat,dog\na,0.5\n", "line 2: 2 values under 3 columns"),
        ("file,cat,dog\na,0.5,0.5\nb,0.5,much\n", "row 2: the column 'dog' is 'much'; allowed are numbers"),
        ("file,cat,dog\na,0.5,\n", "row 1: the column 'dog' is empty; allowed are numbers"),
        ("file,cat,dog\n", r"values of shape \(0, 2\) for 0 files and 2 classes: needed are one row a file"),
        ("file\na\n", r"values of shape \(1, 0\) for 1 files: needed are"),
        ("file,cat,dog\na,1,0\n./a,0,1\n", r"more than one row for 1 \(a\)"),
        ("file,cat,cat\na,1,0\n", r"more than one column for 1 \(cat\)"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, content, message):
    with pytest.raises(LimbeckError, match=message):
        read_table(text(tmp_path, content))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"files": NAMES}, "has no array 'values.*needed are files and values"),
        ({"values": LOGITS}, "has no array 'files"),
        ({"files": NAMES[:2], "values": LOGITS}, r"values of shape \(3, 3\) for 2 files"),
        ({"files": NAMES, "values": LOGITS, "classes": CLASSES[:2]}, r"for 3 files and 2 classes"),
        ({"files": NAMES, "values": LOGITS[0]}, r"values of shape \(3,\)"),
        ({"files": NAMES, "values": numpy.array([["a", "b"]] * 3)}, "cannot be read: could not convert"),
        ({"files": numpy.array(NAMES, dtype=object), "values": LOGITS}, r"cannot be read: .*pickle"),
    ],
)
def test_an_npz_without_what_is_needed_is_refused(tmp_path, arrays, message):
    numpy.savez(tmp_path / "table.npz", **{name: numpy.array(array) for name, array in arrays.items()})
    with pytest.raises(LimbeckError, match=message):
        read_table(tmp_path / "table.npz")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 half of one"])
@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_a_damaged_file_is_refused(tmp_path, ending, content):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / f"table.{ending}").write_bytes(content)
    with pytest.raises(LimbeckError, match=rf"table\.{ending} cannot be read: "):
        read_table(tmp_path / f"table.{ending}")


def test_one_array_in_the_place_of_an_npz_is_refused(tmp_path):
    numpy.save(tmp_path / "table.npy", LOGITS)
    with pytest.raises(LimbeckError, match=r"table\.npz cannot be read: "):
        read_table((tmp_path / "table.npy").rename(tmp_path / "table.npz"))


def test_a_parquet_file_of_texts_is_refused(tmp_path):
    with pytest.raises(
        LimbeckError,
        match=r"table\.parquet cannot be read: the column 'cat' is of string, needed are texts of file, else num",
    ):
        read_table(written_parquet(tmp_path, numpy.array([["a", "b", "c"]] * 3)))


def test_a_parquet_file_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "table.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LimbeckError, match=r"needs pyarrow to be read: pip install 'limbeck\[parquet\]'"):
        read_table(tmp_path / "table.parquet")


def test_a_file_that_is_no_table_or_not_there_is_refused(tmp_path):
    with pytest.raises(LimbeckError, match=r"table\.xlsx cannot be read as a table: allowed are \.csv, \.npz, \.par"):
        read_table(tmp_path / "table.xlsx")
    with pytest.raises(LimbeckError, match=r"there is no file .*table\.csv"):
        read_table(tmp_path / "table.csv")
