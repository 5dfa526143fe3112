import pytest

import reading
from reading import CONTRIBUTING, JOBS, SOURCE, lines, main, table, write


@pytest.mark.parametrize("name", JOBS)
def test_every_file_to_read_exists(name):
    assert [path for path in JOBS[name].files if not (SOURCE / path).is_file()] == []


@pytest.mark.parametrize("name", JOBS)
def test_a_newcomer_reads_no_more_than_the_limit(name):
    assert sum(lines(path) for path in JOBS[name].files) <= JOBS[name].limit


def test_the_limits_are_those_of_the_design():
    assert [job.limit for job in JOBS.values()] == [450, 300, 250, 400, 300, 400, 1000]


def test_contributing_has_the_counts_that_the_script_prints():
    assert f"\n\n{table()}\n" in CONTRIBUTING.read_text(), "run: python tests/reading.py --write"


def test_the_table_in_contributing_can_be_written_again(tmp_path, monkeypatch):
    text = CONTRIBUTING.read_text()
    monkeypatch.setattr(reading, "CONTRIBUTING", tmp_path / "CONTRIBUTING.md")
    reading.CONTRIBUTING.write_text(text.replace("| 450 |", "| 1 |"))
    write()
    assert reading.CONTRIBUTING.read_text() == text, "run: python tests/reading.py --write"


def test_lines_are_counted_as_wc_does(tmp_path):
    file = tmp_path / "file.py"
    file.write_text("one\n\nthree\n")
    assert lines(file) == 3


def test_the_script_prints_every_job(capsys):
    main()
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in JOBS)
    assert "TOO MANY" not in printed
