"""The pages of docs/ that say what is in the code: the tutorial, the reference and the page of the command line."""

import re
from pathlib import Path

from typer.cli import app
from typer.testing import CliRunner

import limbeck

DOCS = Path(__file__).parents[1] / "docs"


def test_the_tutorial_runs_and_prints_lines_of_the_form_that_it_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    code, shown = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("python", "text"))
    short = re.sub(r"epochs=\d+", 'epochs=1, allow=["chance"]', "".join(code)).replace("(0, 1, 2)", "(0, 1)")
    exec(compile(short, "tutorial.md", "exec"), {})
    printed, expected = (re.sub(r"[-\d.]+|None", "#", lines) for lines in (capsys.readouterr().out, "".join(shown)))
    assert printed == expected


def test_every_public_name_is_in_the_reference():
    named = re.findall(r"^\.\. auto\w+:: limbeck\.(\w+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.M)
    assert sorted(named) == sorted(limbeck.__all__)


def test_the_page_of_the_command_line_is_up_to_date():
    made = CliRunner().invoke(app, ["limbeck.cli", "utils", "docs", "--name", "limbeck", "--title", "Command line"])
    assert made.output.strip() == (DOCS / "command-line.md").read_text(encoding="utf-8").strip(), "run: make docs"
