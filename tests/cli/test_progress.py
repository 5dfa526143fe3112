import io
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from limbeck.cli import progress as watching
from limbeck.experiment.events import Found, Job, StoreEstimate


def test_watched_batches_can_be_swept_and_looked_at_without_moving_the_bar():
    class Source:
        samples = 3

        def __len__(self):
            return 2

        def __call__(self, epoch):
            return iter(())

        def sweep(self):
            return ["a", "b"]

        def example_inputs(self):
            return torch.ones(2, 4)

    moved = []
    watched = watching._Watched(Source(), moved.append)
    assert (watched.samples, len(watched)) == (3, 2)
    assert list(watched.sweep()) == ["a", "b"]
    assert watched.example_inputs().shape == (2, 4)
    assert moved == []


def test_a_long_build_is_estimated_in_hours():
    event = StoreEstimate(Job("teacher", 0), Path("store"), 10_000_000, 3725.4, 2 * 10**9)
    assert watching._estimated(event) == (
        "teacher/seed0: the store of its outputs will take about 10.0 MB (2.0 GB free); building it takes about 1:02:05"
    )


def test_a_network_that_is_found_beside_the_run_says_nothing_of_the_time_that_is_left():
    account = watching._Account({Job("alone", 0): 3.0, Job("kd", 0): 1.0})
    console = Console(quiet=True)
    watching._Screen(console, Progress(console=console), account).tell(Found(Job("alone", 0), Path("other")))
    assert account.done == 3
    assert account.left == ""


def test_reading_is_told_in_lines_where_there_is_no_terminal(monkeypatch):
    clock = iter([0.0, 3.0, 11.0, 11.0, 12.0, 30.0, 30.0])
    monkeypatch.setattr(watching.time, "monotonic", lambda: next(clock))
    console = Console(file=io.StringIO(), width=80)
    with watching.reading(console) as progress:
        for done in (1, 2000, 3000, 60_000):
            progress(done, 60_000)
    assert console.file.getvalue() == ("reading the data: 2,000 of 60,000\nreading the data: 60,000 of 60,000\n")


def test_reading_is_a_bar_on_a_terminal_that_is_gone_when_all_is_read():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with watching.reading(console) as progress:
        progress(1, 2)
        progress(2, 2)
        shown = console.file.getvalue()
    assert "reading the data" in shown
    assert shown.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")
    with watching.reading(console) as progress:
        progress(1, 2)  # an error ends the reading
    assert console.file.getvalue().count("\x1b[?25l") == console.file.getvalue().count("\x1b[?25h")
