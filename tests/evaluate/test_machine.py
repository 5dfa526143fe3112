import os
import threading
import time
from dataclasses import replace

import pytest

from limbeck.evaluate.machine import STAT, Reading, outside_cores, parse, read

TWO_CPUS = """cpu  100 10 20 5000 30 1 2 3 40 50
cpu0 60 5 10 2500 15 0 1 2 20 25
cpu1 40 5 10 2500 15 1 1 1 20 25
intr 12345 0 0
ctxt 99
"""
START = Reading(wall=10.0, own=3.0, busy=100.0, cpus=2)


def test_busy_is_all_but_idle_and_waiting_and_counts_guests_once():
    assert parse(TWO_CPUS, ticks=100) == ((100 + 10 + 20 + 1 + 2 + 3) / 100, 2)


def test_the_columns_of_an_old_kernel_are_enough():
    assert parse("cpu  1 2 3 4\ncpu0 1 2 3 4\n", ticks=1) == (6.0, 1)


@pytest.mark.parametrize(
    ("busy", "own", "cores"),
    [
        (4.0, 4.0, 0.0),  # all of it was ours
        (4.0, 3.0, 0.5),  # one second of two
        (4.0, 0.0, 2.0),
        (3.9, 4.0, 0.0),  # ticks are coarse
        (4.2, 0.0, 2.0),
    ],
)
def test_the_outside_cores_are_what_is_not_ours_of_the_time(busy, own, cores):
    after = Reading(wall=12.0, own=3.0 + own, busy=100.0 + busy, cpus=2)
    assert outside_cores(START, after) == pytest.approx(cores)


def test_a_process_beside_ours_is_one_core_on_a_large_machine_too():
    large = replace(START, cpus=64)
    assert outside_cores(large, replace(large, wall=12.0, own=4.0, busy=103.0)) == pytest.approx(1.0)


def test_the_outside_cores_are_unknown_where_the_system_does_not_say():
    assert outside_cores(START, replace(START, wall=11.0, busy=None)) is None
    assert outside_cores(replace(START, busy=None), START) is None


def test_reads_this_process(tmp_path):
    (tmp_path / "stat").write_text(TWO_CPUS)
    before = read(tmp_path / "stat")
    sum(range(10**6))
    after = read(tmp_path / "stat")
    assert before.cpus == after.cpus == 2
    assert before.busy == after.busy == 136 / os.sysconf("SC_CLK_TCK")
    assert after.wall > before.wall
    assert after.own > before.own


def test_every_thread_of_this_process_is_ours():
    def work():
        while time.thread_time() < 0.05:
            sum(range(1000))

    before, mine = read().own, time.thread_time()
    other = threading.Thread(target=work)
    other.start()
    other.join()
    assert time.thread_time() - mine < 0.05
    assert read().own - before >= 0.05


def test_a_system_without_the_file_says_nothing(tmp_path):
    found = read(tmp_path / "no such file")
    assert found.busy is None
    assert found.cpus == os.cpu_count()


@pytest.mark.skipif(not STAT.is_file(), reason="this system has no /proc/stat")
def test_this_machine_is_read():
    found = read()
    assert found.busy > 0
    assert found.cpus >= 1
