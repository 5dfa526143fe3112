import pytest

from reading import JOBS, SOURCE, lines, main


@pytest.mark.parametrize("name", JOBS)
def test_every_file_to_read_exists(name):
    assert [path for path in JOBS[name].files if not (SOURCE / path).is_file()] == []


@pytest.mark.parametrize("name", JOBS)
def test_a_newcomer_reads_no_more_than_the_limit(name):
    assert sum(lines(path) for path in JOBS[name].files) <= JOBS[name].limit


def test_the_limits_are_those_of_the_design():
    assert [job.limit for job in JOBS.values()] == [450, 300, 250, 400, 300, 400, 1000]


def test_lines_are_counted_as_wc_does(tmp_path):
    file = tmp_path / "file.py"
    file.write_text("one\n\nthree\n")
    assert lines(file) == 3


def test_the_script_prints_every_job(capsys):
    main()
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in JOBS)
    assert "TOO MANY" not in printed
