import os
from dataclasses import replace

import pytest

from limbeck.bench.machine import STAT, Reading, outside_share, parse, read

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
    ("busy", "own", "share"),
    [
        (4.0, 4.0, 0.0),  # all of it was ours
        (4.0, 3.0, 0.25),
        (4.0, 0.0, 1.0),
        (3.9, 4.0, 0.0),  # ticks are coarse
        (4.2, 0.0, 1.0),
    ],
)
def test_the_outside_share_is_what_is_not_ours_of_all_cpus(busy, own, share):
    after = Reading(wall=12.0, own=3.0 + own, busy=100.0 + busy, cpus=2)
    assert outside_share(START, after) == pytest.approx(share)


def test_the_outside_share_is_unknown_where_the_system_does_not_say():
    assert outside_share(START, replace(START, wall=11.0, busy=None)) is None
    assert outside_share(replace(START, busy=None), START) is None


def test_reads_this_process(tmp_path):
    (tmp_path / "stat").write_text(TWO_CPUS)
    before = read(tmp_path / "stat")
    sum(range(10**6))
    after = read(tmp_path / "stat")
    assert before.cpus == after.cpus == 2
    assert before.busy == after.busy == 136 / os.sysconf("SC_CLK_TCK")
    assert after.wall > before.wall
    assert after.own > before.own


def test_a_system_without_the_file_says_nothing(tmp_path):
    found = read(tmp_path / "no such file")
    assert found.busy is None
    assert found.cpus == os.cpu_count()


@pytest.mark.skipif(not STAT.is_file(), reason="this system has no /proc/stat")
def test_this_machine_is_read():
    found = read()
    assert found.busy > 0
    assert found.cpus >= 1
