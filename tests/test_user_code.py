import os
import sys

import pytest

from limbeck.errors import LimbeckError
from limbeck.user_code import LARGEST, code_notices, contents, function, named


@pytest.fixture
def user_file(tmp_path):
    def write(text, name="net.py"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def call(file, name):
    return function(file, name, contents(file))


def test_a_function_of_a_file_is_found(user_file):
    assert call(user_file("def seven():\n    return 7\n"), "seven")() == 7


def test_a_file_is_run_as_it_was_read(user_file):
    file = user_file("def seven():\n    return 7\n")
    code = contents(file)
    file.unlink()
    assert function(file, "seven", code)() == 7


def test_the_folder_of_a_file_is_not_put_on_the_import_path(user_file):
    user_file("", "beside_it.py")
    with pytest.raises(LimbeckError, match="could not be imported: ModuleNotFoundError"):
        call(user_file("import beside_it\n"), "f")


def test_a_class_finds_its_module(user_file):
    file = user_file("from dataclasses import dataclass\n@dataclass\nclass Pair:\n    one: int\n")
    pair = call(file, "Pair")
    assert pair(1) == pair(1)
    assert sys.modules[pair.__module__].Pair is pair


@pytest.mark.parametrize(
    ("text", "expected"),
    [("net.py:make", ("net.py", "make")), ("a b/c.py:f", ("a b/c.py", "f")), ("mlp", None), ("timm:resnet18", None)],
)
def test_a_text_names_a_function_or_none(text, expected):
    found = named(text)
    assert (found and (str(found[0]), found[1])) == expected


@pytest.mark.parametrize("text", ["net.py", "net.py:", "net.py:1st", "net.py:a.b", "net.py:a()", "C:\\net.py"])
def test_a_text_that_names_a_file_and_no_function_says_what_to_write(text):
    with pytest.raises(LimbeckError, match="FUNCTION"):
        named(text)


def test_a_user_who_is_not_there_is_told():
    with pytest.raises(LimbeckError, match="~nobody_of_this_name"):
        named("~nobody_of_this_name/net.py:make")


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("def make(): ...", "mak", r"net\.py has no function 'mak': did you mean 'make'\?"),
        ("WIDTH = 3", "WIDTH", r"net\.py has no function 'WIDTH': it has none"),
        ("1 / 0", "f", r"net\.py could not be imported: ZeroDivisionError"),
        ("def f(:", "f", r"net\.py could not be imported: SyntaxError"),
        ("import sys\nsys.exit(0)", "f", r"net\.py could not be imported: SystemExit: 0"),
        ("x = 1\0", "f", r"net\.py could not be imported: "),
        ("f = " + "(" * 3000 + ")" * 3000, "f", r"net\.py could not be imported: "),
    ],
)
def test_code_that_does_not_work_is_named(user_file, code, name, message):
    with pytest.raises(LimbeckError, match=message):
        call(user_file(code), name)


def test_a_file_that_fails_leaves_the_module_of_before(user_file):
    make = call(user_file("def make():\n    return 1\n"), "make")
    with pytest.raises(LimbeckError):
        call(user_file("1 / 0\n"), "make")
    assert sys.modules[make.__module__].make is make


@pytest.mark.parametrize("place", ["folder.py", "pipe.py", "zero.py", "loop.py"])
def test_only_regular_files_are_opened(tmp_path, place):
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "zero.py").symlink_to("/dev/zero")
    (tmp_path / "loop.py").symlink_to("loop.py")
    with pytest.raises(LimbeckError, match=rf"{place} (is a (folder|FIFO|device)|cannot be opened)"):
        contents(tmp_path / place)


def test_a_file_of_the_system_that_hides_its_size_is_empty():
    assert contents_of_proc() == b""


def contents_of_proc():
    from pathlib import Path

    return contents(Path("/proc/self/maps")) if Path("/proc/self/maps").exists() else b""


def test_a_file_that_is_too_large_is_not_read(user_file):
    file = user_file("#" * (LARGEST + 1))
    with pytest.raises(LimbeckError, match=r"net\.py has 1,048,577 bytes, allowed are at most 1,048,576"):
        contents(file)


def test_the_file_that_was_meant_is_named(user_file):
    file = user_file("")
    with pytest.raises(LimbeckError, match=r"there is no file .*nett\.py: did you mean 'net\.py'"):
        contents(file.with_name("nett.py"))


def test_what_a_recipe_runs_can_be_said_before_it_is_run():
    recipe = {
        "student": {"model": {"name": "a/net.py:small", "hidden": [3]}},
        "networks": {"peer": {"model": {"name": "a/net.py:small"}}},
        "teacher": {"model": {"name": "resnet8"}, "weights": ["x.py:y"]},
        "data": {"transform": "crop.py:make", "root": "z.py:q", "source": "rows.py:load"},
        "method": {"parts": [{"name": "kd"}]},
    }
    assert code_notices(recipe) == [
        "runs the code of a/net.py (function small)",
        "runs the code of crop.py (function make)",
        "runs the code of rows.py (function load)",
    ]
