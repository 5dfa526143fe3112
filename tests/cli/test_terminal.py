"""Terminals that carry ASCII alone get plain characters, never an error."""

import os
import subprocess
import sys
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest
from rich.table import Table

from limbeck.cli import terminal

RECIPE = """\
name: tiny
data: {source: digits, limit: 64}
teacher:
  model: {name: mlp, hidden: [16]}
  train: {epochs: 1, batch_size: 32}
student:
  model: {name: mlp, hidden: [8]}
method: kd
train: {epochs: 1, batch_size: 32}
evaluate: {latency_runs: 1}
"""


LISTINGS = {
    "methods": "Distilling the Knowledge",
    "methods kd": "T^2",
    "models resnet8": "| resnet8 ",
    "taps mlp --set hidden=[8] --shape 1,8,8": "| head ",
    "doctor": "| python ",
    "run --help": "Usage:",
    "run recipe.yaml --set seeds=[0,1]": "mean +- deviation",
}
"""Commands, and what each shows among other things."""

PROGRAM = """\
import sys
from limbeck.cli import app
for command in sys.argv[1:]:
    print("command:", command)
    app(command.split(), standalone_mode=False)
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What each command shows on a terminal of ASCII: one process runs all, as to import torch takes seconds."""
    folder = tmp_path_factory.mktemp("ascii")
    (folder / "recipe.yaml").write_text(RECIPE)
    environment = os.environ | {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "120"}
    command = [sys.executable, "-c", PROGRAM, *LISTINGS]
    done = subprocess.run(command, capture_output=True, cwd=folder, env=environment, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stderr.isascii()
    _, *parts = done.stdout.decode("ascii").split("command: ")
    return {name: said for name, _, said in (part.partition("\n") for part in parts)}


@pytest.mark.parametrize(("command", "words"), LISTINGS.items())
def test_every_command_shows_ascii(shown, command, words):
    assert words in shown[command]


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1"])
def test_a_users_file_name_is_told_whatever_the_terminal_carries(tmp_path, encoding):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("name: kd", ""))
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "limbeck", "run", "n\u0107.yaml"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(rb"error: there is no recipe n\u0107.yaml: ")


def test_columns_stay_in_line_where_characters_are_replaced(monkeypatch):
    monkeypatch.setattr("sys.stdout", TextIOWrapper(BytesIO(), encoding="ascii", write_through=True))
    terminal.plain_where_needed()
    table = Table("a", "b")
    table.add_row("1 ± 2", "x²")
    table.add_row("1", "x")
    terminal.console(width=40).print(table)
    lines = sys.stdout.buffer.getvalue().decode("ascii").splitlines()
    assert "| 1 +- 2 | x^2 |" in lines
    assert len({len(line) for line in lines}) == 1


def test_a_stream_that_carries_everything_is_left_alone(monkeypatch):
    monkeypatch.setattr("sys.stdout", TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True))
    terminal.plain_where_needed()
    terminal.console().print("1 ± 2 [x] ²")
    assert sys.stdout.buffer.getvalue().decode() == "1 ± 2 [x] ²\n"


@pytest.mark.parametrize("in_table", [False, True])
def test_a_control_character_of_a_received_file_is_shown_and_not_sent(monkeypatch, in_table):
    monkeypatch.setattr("sys.stdout", StringIO())
    table = Table("a")
    table.add_row("red\x1b[31m\x07\r\x9b")
    terminal.console(width=60).print(table if in_table else "red\x1b[31m\x07\r\x9b")
    assert r"red\x1b[31m\x07\r\x9b" in sys.stdout.getvalue()
    assert not {"\x1b", "\x07", "\r", "\x9b"} & set(sys.stdout.getvalue())


def test_text_between_colons_is_no_emoji(capsys):
    terminal.console(width=80).print("timm:x:y and", ":x:")
    assert capsys.readouterr().out == "timm:x:y and :x:\n"


def test_a_stream_that_is_no_file_is_written_to(monkeypatch):
    monkeypatch.setattr("sys.stdout", StringIO())
    terminal.plain_where_needed()
    terminal.console().print("±")
    assert sys.stdout.getvalue() == "±\n"


def test_the_commands_make_no_console_of_their_own():
    source = Path(terminal.__file__).parent
    made = [file.name for file in source.glob("*.py") if "Console(" in file.read_text(encoding="utf-8")]
    assert set(made) <= {"terminal.py"}
