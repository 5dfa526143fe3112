"""The list of methods, their pages, and the count of recorded values."""

import json
import re
from io import StringIO
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from limbeck.cli import catalogue
from limbeck.core import TARGETS, LimbeckError, Schedule, Stage, Term, from_student, from_teacher
from limbeck.methods import ABOUT, METHODS, PRESETS
from limbeck.methods.about import About, Paper
from limbeck.methods.alone import hard_loss
from limbeck.methods.logits import logits_loss
from limbeck.schedules import linear
from recorded import METHOD_OF
from recorded.comparing import FOLDER, OURS, counts, index

DOCS = Path(__file__).parents[2] / "docs" / "methods"
WRITE = "run: limbeck methods --write docs/methods"


def printed(thing, width=96):
    console = Console(file=StringIO(), width=width)
    console.print(thing)
    return console.file.getvalue()


def odd(
    setup,
    *,
    layers: tuple[str, ...] = (),
    weight: float | Schedule = linear(start=4.0, end=1.0),  # noqa: B008 (a schedule cannot be changed)
    form: Literal["a", "b"] = "a",
):
    """Odd: the share lies in [a, b].

    More is said here.

    Args:
        setup: what it is given.
        layers: such as
            layer1: two lines.
        weight: of the pull.
        form: a or b.

    Raises:
        LimbeckError: never.
    """
    pull = Term(logits_loss, (from_student("head"), from_teacher("stage1")), weight)
    hard = {"hard": Term(hard_loss, (from_student(), TARGETS), 0.5)}
    first = Stage("first", {"pull": pull}, 7, setup.optimizer, setup.schedule, (), prepare=lambda sweep: None)
    return (first, Stage("second", hard, setup.epochs, setup.optimizer, setup.schedule, ("student.head", "teacher")))


def no_pull(setup):
    """Nothing is read of the teacher."""
    hard = {"hard": Term(hard_loss, (from_student(), TARGETS))}
    return (Stage("no_pull", hard, setup.epochs, setup.optimizer, setup.schedule),)


@pytest.fixture
def with_odd(monkeypatch):
    def pull(student, teacher):
        return (student.mean() - teacher.detach().mean()).square()

    monkeypatch.setitem(odd.__globals__, "logits_loss", pull)
    paper = Paper("Somebody", "Odd Networks", 1999, venue="a letter")
    presets = {"paper": {"form": "b", "weight": {"name": "constant", "value": 2}}}
    odds = {"odd": About(odd, paper=paper, presets=presets), "no_pull": About(no_pull, paper=None)}
    monkeypatch.setattr(catalogue, "ABOUT", {"kd": ABOUT["kd"], **odds})
    monkeypatch.setattr(catalogue, "recorded", lambda: {"odd": {"odd_one": [2, 3], "odd_two": [1, 1]}})


# --- the list


def test_every_method_is_listed_in_80_columns():
    for width in (80, 96):
        text = printed(catalogue.method_table(), width)
        lines = text.splitlines()
        assert max(map(len, lines)) <= width
        names = [line.split()[0] for line in lines if line[:1].isalpha()]
        assert set(METHODS) <= set(names)
        assert "…" not in text


def test_the_systems_come_first():
    lines = printed(catalogue.method_table()).splitlines()
    names = [line.split()[0] for line in lines if line[:1].isalpha() and line.split()[0] in METHODS]
    systems = {name for name, about in ABOUT.items() if about.is_system}
    assert set(names[: len(systems)]) == systems == {"kd", "fitnets", "fsp", "srrl", "class_distance"}
    assert lines[0].strip() == "Systems"


def test_a_row_says_year_paper_reads_and_recorded_values():
    (row,) = [line for line in printed(catalogue.method_table(), 150).splitlines() if line.startswith("kd ")]
    assert re.fullmatch(r"kd +2015 +Distilling the Knowledge in a Neural Network +kd: logits / logits +5/5 *", row)


def test_the_reads_are_those_of_a_real_plan(with_odd):
    text = printed(catalogue.method_table(), 150)
    assert re.search(r"^odd .* first: logits / map +3/4 *$", text, re.MULTILINE)
    assert re.search(r"^ +second: logits / - *$", text, re.MULTILINE)
    titles = [line.strip() for line in text.splitlines() if line.strip() in catalogue._GROUPS]
    assert titles == ["Systems", "Without a teacher", "Reading layers inside"]


def test_listing_does_not_touch_the_callers_generator():
    import torch

    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    catalogue.planned(ABOUT["kd"])
    assert torch.equal(torch.rand(3), expected)


# --- a page


def test_a_page_tells_all_that_is_known_of_a_method(with_odd):
    page = catalogue.method_page("odd")
    for words in (
        '# odd\n\nSomebody, "Odd Networks" (1999), a letter.\n\nOdd: ',
        "Odd: the share lies in [a, b].\n\nMore is said here.",
        "With resnet8 as student and resnet14 as teacher, on images (3, 16, 16) of 4 classes:",
        "1. `first`: only the parameters of the losses learn; 7 epochs if the recipe has 100; "
        "a pass over the training set may precede an epoch",
        "   - `pull`, weight 4 to 1, reads student.head (4,), teacher.stage1 (16, 16, 16)",
        "2. `second`: the student.head and the teacher learn",
        "   - `hard`, weight 0.5, reads student (4,), batch.targets",
        "- `layers: tuple[str, ...] = ()`: such as layer1: two lines.",
        "- `weight: float | schedule = 4 to 1`: of the pull.",
        "- `form: Literal['a', 'b'] = 'a'`: a or b.",
        "- `paper`: form b, weight constant (value 2)",
        "- `odd_one`: 2 of 3",
        "method: {name: odd, preset: paper}",
        'limbeck.distill(teacher, student, data, method="odd")',
    ):
        assert words in page
    assert "Raises" not in page
    assert "setup" not in page.partition("## Options")[2]


def test_a_page_without_options_presets_and_recorded_values(with_odd):
    page = catalogue.method_page("no_pull")
    assert "# no_pull\n\nThis method is unpublished.\n\nNothing is read" in page
    assert "This method has no options." in page
    assert "## Presets" not in page
    assert "## Recorded" not in page
    assert "method: {name: no_pull}" in page


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(LimbeckError, match="there is no method 'fitnet': did you mean 'fitnets'"):
        catalogue.method_page("fitnet")


@pytest.mark.parametrize("name", METHODS)
def test_the_recipe_lines_of_a_page_are_right(name):
    from ruamel.yaml import YAML

    from limbeck.options import complete

    block = re.search(r"```yaml\n(.*?)```", catalogue.method_page(name), re.DOTALL)[1]
    for line in [line for line in block.splitlines() if line.startswith("method:")]:
        _, problems = complete(YAML(typ="safe").load(line)["method"], METHODS, kind="method", presets=PRESETS)
        assert problems == []


def test_a_page_cites_the_paper():
    cited = 'Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), arXiv:1503.02531'
    assert str(ABOUT["kd"].paper) == cited
    assert catalogue.method_page("kd").startswith(f"# kd\n\n{cited}.\n\n")


def test_docs_methods_is_up_to_date():
    pages = catalogue.method_pages()
    assert {file.name for file in DOCS.iterdir()} == set(pages), WRITE
    for name, text in pages.items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, f"{name}: {WRITE}"


def test_the_index_links_every_page():
    pages = catalogue.method_pages()
    linked = re.findall(r"\[\w+\]\((\w+\.md)\)", pages.pop("index.md"))
    assert linked == list(pages)


# --- recorded values


def test_every_record_that_is_compared_is_of_a_method():
    assert set(OURS) <= set(METHOD_OF)
    assert set(METHOD_OF.values()) <= set(METHODS)


def test_the_recorded_values_are_those_of_the_records():
    held = catalogue.recorded()
    assert set(held) == set(METHOD_OF.values())
    for method, records in held.items():
        assert set(records) == {record for record, of in METHOD_OF.items() if of == method}
        assert all(0 <= met <= cases for met, cases in records.values())


def test_the_recorded_values_are_what_a_run_gives_now():
    if index().get("set") != "open":
        pytest.skip(f"{FOLDER} is not the folder that the counts are of")
    assert json.loads(json.dumps(counts())) == catalogue.recorded(), "run: python tests/record.py"
