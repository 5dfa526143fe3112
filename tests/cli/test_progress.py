import io
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from limbeck.cli import progress as watching
from limbeck.cli import terminal
from limbeck.experiment.events import Elsewhere, Found, Job, StoreEstimate, StoreProgress, Trained
from limbeck.train.loop import Epoch


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


def test_a_long_build_is_estimated_in_hours_and_with_the_disk_that_it_needs():
    event = StoreEstimate(Job("teacher", 0), Path("store"), 10_000_000, 10_000_000, 3725.4, 2 * 10**9)
    assert watching._estimated(event) == (
        "teacher/seed0: the store of its outputs will take about 10.0 MB (2.0 GB free); "
        "building it takes about 1:02:05. "
        "Reading it is faster than running the teacher in every step if the disk reads more than 2.7 kB a second"
    )


def test_the_estimate_of_a_shard_is_not_that_of_the_store():
    event = StoreEstimate(Job("teacher", 0), Path("store"), 5_000_000, 10_000_000, 60.0, 2 * 10**9)
    assert "will take about 10.0 MB, this shard 5.0 MB (2.0 GB free); building it takes about 0:01:00" in (
        watching._estimated(event)
    )


def test_a_shard_without_rows_says_why():
    console = Console(file=io.StringIO(), width=80)
    screen = watching._Screen(console, Progress(console=console), watching._Account({}))
    screen.tell(StoreProgress(Job("teacher", 0), Path("store"), 0, 0, 0))
    assert "this shard is empty, because the store has fewer files than shards" in console.file.getvalue()


def test_a_network_that_is_found_beside_the_run_says_nothing_of_the_time_that_is_left():
    account = watching._Account({Job("alone", 0): 3.0, Job("kd", 0): 1.0})
    console = Console(quiet=True)
    watching._Screen(console, Progress(console=console), account).tell(Found(Job("alone", 0), Path("other")))
    assert account.done == 3
    assert account.left == ""


@pytest.mark.parametrize(
    ("parts", "processes", "left"), [(6, 1, "0:00:20"), (6, 2, "0:00:08"), (5, 2, "0:00:10"), (6, 9, "0:00:00")]
)
def test_the_time_that_is_left_is_that_of_the_share_of_this_process(monkeypatch, parts, processes, left):
    clock = iter([0.0, 4.0])
    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    account = watching._Account({Job("kd", seed): 1.0 for seed in range(6)}, watching.share(parts, processes))
    account.begin(Job("kd", 0), 0.0)
    account.reach(Job("kd", 0), 1.0)
    assert account.left == left


def test_the_time_of_a_divided_teacher_is_that_of_the_trainings_that_read_it(monkeypatch):
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    account = watching._Account({Job("alone", 0): 1.0, Job("kd", 0): 2.0}, slow="kd")
    account.begin(Job("alone", 0), 0.0)
    account.reach(Job("alone", 0), 1.0)
    assert account.left == ""
    account.begin(Job("kd", 0), 0.0)
    assert account.left == ""
    account.reach(Job("kd", 0), 0.25)
    assert account.left == "0:00:12"


@pytest.mark.parametrize(("processes", "known"), [(1, False), (2, True)])
def test_the_time_that_is_left_is_unknown_if_another_process_does_a_part(processes, known):
    account = watching._Account({Job("kd", seed): 1.0 for seed in range(6)}, watching.share(6, processes))
    console = Console(file=io.StringIO(), width=80)
    screen = watching._Screen(console, Progress(console=console), account)
    account.begin(Job("kd", 0), 0.0)
    account.reach(Job("kd", 0), 1.0)
    assert account.left
    screen.tell(Elsewhere("seed 1", waits=False))
    assert bool(account.left) == known
    screen.tell(Elsewhere("seed 1", waits=True))
    assert console.file.getvalue() == "waiting for another process, which works on seed 1\n"


def test_reading_is_told_in_lines_where_there_is_no_terminal(monkeypatch):
    clock = iter([0.0, 3.0, 11.0, 11.0, 12.0, 30.0, 30.0])
    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    console = Console(file=io.StringIO(), width=80)
    with watching.reading(console) as progress:
        for done in (1, 2000, 3000, 60_000):
            progress(done, 60_000)
    assert console.file.getvalue() == ("reading the data: 2,000 of 60,000\nreading the data: 60,000 of 60,000\n")


@pytest.mark.parametrize(("done", "shown"), [(1, "reading the data: 1 of 2"), (2, "checking the data and the")])
def test_preparing_is_a_line_on_a_terminal_that_is_gone_at_the_end(done, shown):
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with watching.reading(console) as progress:
        progress(done, 2)
    assert shown in console.file.getvalue()
    assert console.file.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


def test_loading_says_nothing_if_there_is_no_terminal(capsys):
    with terminal.loading():
        pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("epochs", "seconds", "lines"),
    [(3, 0.0, 3), (21, 0.0, 21), (60, 0.0, 20), (60, 11.0, 60), (1000, 0.0, 20), (1000, 11.0, 200)],
)
def test_a_log_has_a_line_for_each_epoch_or_every_few_percent(monkeypatch, epochs, seconds, lines):
    clock = count(step=seconds)
    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    console = Console(file=io.StringIO(), width=200)
    job = Job("kd", 0)
    screen = watching._Screen(console, Progress(console=console), watching._Account({job: 1.0}))
    for number in range(1, epochs + 1):
        epoch = Epoch("kd", 0, number, epochs, {"hard": 1.0}, 1.0, 64, 1.0, dict, nn.Module())
        screen.tell(Trained(job, epoch, None))
    assert len(console.file.getvalue().splitlines()) == lines
    assert f"epoch {epochs}/{epochs}" in console.file.getvalue()
