import math
import sys

import pytest
import torch

from benchmarks.speed import overhead
from benchmarks.speed.overhead import in_memory, startup_seconds, step_overhead
from benchmarks.speed.workloads import DIGITS, prepare


def test_the_plainest_loop_trains():
    case = prepare(DIGITS)
    networks = case.networks()
    run = in_memory(case, networks["student"], networks["teacher"])
    before = networks["student"].head.weight.clone()
    run(DIGITS.batches + 1)  # it begins again after the last batch
    assert not torch.equal(networks["student"].head.weight, before)
    assert torch.isfinite(networks["student"].head.weight).all()
    assert torch.equal(networks["teacher"].head.weight, case.teacher.head.weight)
    assert not networks["teacher"].training


def test_plain_and_live_are_measured_in_turn_with_one_thread():
    before = torch.get_num_threads()
    seen = set()
    samples = []
    for sample in step_overhead(3, 0.01, end=0.0):
        seen.add(torch.get_num_threads())
        samples.append(sample)
    assert [(one.variant, one.round) for one in samples] == [
        ("plain", 0),
        ("live", 0),
        ("live", 1),
        ("plain", 1),
        ("live", 2),
        ("plain", 2),
    ]
    assert all(0 < one.seconds < math.inf for one in samples)
    assert seen == {1}
    assert torch.get_num_threads() == before


def test_the_threads_come_back_when_it_is_stopped(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    samples = step_overhead(2, 0.0, end=0.0)
    next(samples)
    assert asked == [1]
    samples.close()
    assert asked == [1, 7]


@pytest.fixture
def engines(monkeypatch):
    """Those that limbeck's loop is given."""
    found, loop = [], overhead.LimbeckLoop

    def watched(case, networks, engine):
        found.append((engine.device.type, engine.precision, engine.compile))
        return loop(case, networks, engine)

    monkeypatch.setattr(overhead, "LimbeckLoop", watched)
    return found


def test_the_overhead_is_that_of_32_bits_as_the_plain_loop_has(engines):
    list(step_overhead(1, 0.0, end=0.0))
    assert engines == [("cpu", "32", False)]


def test_the_start_up_is_a_median_of_runs(monkeypatch):
    moments = iter([0.0, 0.3, 1.0, 1.1, 2.0, 2.2])
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: next(moments))
    assert startup_seconds(3, (sys.executable, "-c", "pass")) == pytest.approx(0.2)


def test_the_command_that_is_timed_is_the_help(capfd):
    assert overhead.HELP[1:] == ("-m", "limbeck", "--help")
    assert 0 < startup_seconds(1) < 60
    assert capfd.readouterr().out == ""
