import re
import textwrap
from pathlib import Path

import pytest
import torch

from limbeck.core import LimbeckError
from limbeck.data import load
from limbeck.data.sources import SOURCES, source_signature

ROOT = Path(__file__).parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLE = next(code for code in re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL) if "def points" in code)


@pytest.fixture
def user_file(tmp_path):
    def write(code):
        (tmp_path / "mine.py").write_text(textwrap.dedent(code))
        return f"{tmp_path}/mine.py"

    return write


@pytest.fixture
def table(tmp_path):
    rows = [f"{i},{2 * i},{'cat' if i % 2 else 'ant'}" for i in range(20)]
    (tmp_path / "table.csv").write_text("\n".join(["x,y,class", *rows]))
    return tmp_path / "table.csv"


def test_the_example_of_contributing_is_a_source(user_file, table):
    data = load(f"{user_file(EXAMPLE)}:points", path=table, validation=4, normalise=False)
    assert (len(data.train), len(data.validation), len(data.test), data.shape) == (12, 4, 4, (2,))
    assert data.classes == ("ant", "cat")
    assert all(int(x) % 2 == int(target) for x, target in zip(data.train.inputs[:, 0], data.train.targets, strict=True))
    assert torch.equal(data.train.inputs[:, 1], 2 * data.train.inputs[:, 0])
    assert data.origins["train"] == "the rows of table.csv, without the samples of test and validation"


def test_an_option_of_a_users_source_is_checked_and_converted(user_file, table):
    source = f"{user_file(EXAMPLE)}:points"
    assert len(load(source, path=str(table), header=True).train) == 14
    with pytest.raises(LimbeckError, match=r"data.heder of .*: unknown key 'heder': did you mean 'header'\?"):
        load(source, path=table, heder=True)
    with pytest.raises(LimbeckError, match=r"data.header of .*: got 3: it must be true or false"):
        load(source, path=table, header=3)
    with pytest.raises(LimbeckError, match=r"data of .*: the key 'path' is missing"):
        load(source)


def test_a_users_source_is_given_what_it_names(user_file, tmp_path):
    source = user_file("""
        import torch
        from limbeck.data import Parts, Split

        def load(*, root, size, progress, shape: tuple[int, ...] = (1, 2)):
            progress(1, 1)
            inputs = torch.zeros(10, *shape, *size, dtype=torch.uint8)[:, 0]
            return Parts(Split(inputs, torch.arange(10) % 2), classes=("a", "b"), notes=(str(root),))
    """)
    seen = []
    data = load(f"{source}:load", root=tmp_path, size=3, progress=lambda *counts: seen.append(counts), shape=[1, 3])
    assert (data.shape, data.notes, seen) == ((3, 3, 3), (str(tmp_path),), [(1, 1)])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def load(path): ...", "mine.py:load takes 'path' by position; allowed are keyword-only arguments"),
        ("def load(**more): ...", "mine.py:load takes 'more' by position"),
        ("def load(): return 3", "mine.py:load gave int; allowed is limbeck.data.Parts"),
        ("def load(): return 1 / 0", "mine.py:load failed: ZeroDivisionError: division by zero"),
        ("def load(): return missing", "mine.py:load failed: NameError: name 'missing' is not defined"),
        ("def load(*, x: 'Strange' = 1): ...", r"has an option .* \(x: Strange\); allowed are bool, int, float"),
        ("def load(*, x=1): ...", r"has an option .* \(x: inspect._empty\); allowed are bool, int, float"),
        ("def lod(): ...", "has no function 'load': did you mean 'lod'"),
        ("def load(*, seed: int = 0): ...", "mine.py:load has an argument 'seed', which load uses itself"),
    ],
)
def test_a_users_source_that_cannot_work_is_refused(code, message, user_file):
    with pytest.raises(LimbeckError, match=message):
        load(f"{user_file(code)}:load")


def test_the_error_of_a_users_source_is_left_as_it_is(user_file):
    code = "from limbeck import LimbeckError\ndef load(): raise LimbeckError('no rows; allowed are 1 and more')"
    with pytest.raises(LimbeckError, match=r"^no rows; allowed are 1 and more$"):
        load(f"{user_file(code)}:load")


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ("Split(torch.zeros(4, 2), torch.arange(4) - 2)", {}, "train: target -2 of sample 0 is not a class"),
        ("Split(torch.zeros(4, 2), torch.zeros(4))", {}, "train: targets are torch.float32 of shape"),
        (
            "Split(torch.zeros(4, 2), torch.arange(4) % 2, weights=torch.ones(3))",
            {},
            r"train: weights are torch.float32 of shape \(3,\); allowed is torch.float32 of shape \(4,\)",
        ),
        ("torch.zeros(4, 2)", {}, "mine.py:load failed: AttributeError"),
        (
            "Split(torch.zeros(4, 2), torch.arange(4) % 2, names=('one',))",
            {},
            "mine.py:load gave 1 names for 4 samples of train",
        ),
        (
            "Split(torch.zeros(4, 2), torch.arange(4) % 2), origins={'tset': 'mine'}",
            {},
            "gave an origin of 'tset'; allowed are train, validation and test",
        ),
        (
            "Split(torch.zeros(4, 2), torch.arange(4) % 2)",
            {"size": 4},
            r"inputs are torch.float32 .*; allowed are images of uint8 or float32",
        ),
    ],
)
def test_what_a_users_source_gives_is_checked(parts, options, message, user_file):
    code = f"import torch\nfrom limbeck.data import Parts, Split\ndef load(): return Parts({parts}, classes=('a', 'b'))"
    with pytest.raises(LimbeckError, match=message):
        load(f"{user_file(code)}:load", **options)


def test_the_classes_of_a_users_source_are_texts_in_a_tuple(user_file):
    code = """
        import torch
        from limbeck.data import Parts, Split
        def load(): return Parts(Split(torch.randn(20, 2), torch.arange(20) % 2), classes=[3, "b", None])
    """
    data = load(f"{user_file(code)}:load")
    assert data.classes == ("3", "b", "None")
    assert data.origins["train"] == "given by the source, without the samples of test and validation"
    assert data.notes == ("1 of 3 classes have no training sample: None",)


@pytest.mark.parametrize("name", SOURCES)
def test_every_option_of_a_source_has_a_type_and_is_documented(name):
    documented = (ROOT / "docs/recipes.md").read_text()
    for key, option in source_signature(SOURCES[name]).items():
        assert option["type"]
        assert f"`data.{key}" in documented or f"`{key}`" in documented
