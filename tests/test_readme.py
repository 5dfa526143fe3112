import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def example() -> str:
    """The Python block of the README."""
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)[0]


def test_the_example_runs_and_gives_the_student_and_its_figures():
    found = {}
    exec(compile(example(), "README.md", "exec"), found)
    student, result = found["student"], found["result"]
    assert sum(parameter.numel() for parameter in student.parameters()) == result["student"]["parameters"] == 7510
    assert result["teacher"]["test"]["accuracy"] > 0.95
    assert result["student"]["test"]["accuracy"] > 0.85
    assert result["student"]["test"]["agreement"] > 0.85
    assert result["method"] == "kd"


def test_the_example_is_at_most_ten_lines():
    lines = [line for line in example().splitlines() if line.strip()]
    assert len(lines) <= 10


def test_the_two_commands_are_shown():
    text = README.read_text()
    assert "make demo" in text
    assert "make test" in text
