import math
import runpy
import signal
import subprocess
import sys

import pytest
import torch

from benchmarks.speed import memory, overhead, limbeck_loop, workloads
from benchmarks.speed.memory import peak_mb, train
from benchmarks.speed.overhead import in_memory, peak_memory, startup_seconds, step_overhead
from benchmarks.speed.workloads import DIGITS, prepare
from limbeck.core import LimbeckError
from limbeck.train import allocator


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
    for sample in step_overhead(3, 0.01, until=0.0):
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
    samples = step_overhead(2, 0.0, until=0.0)
    next(samples)
    assert asked == [1]
    samples.close()
    assert asked == [1, 7]


@pytest.fixture
def engines(monkeypatch):
    """Those that limbeck's loop is given."""
    found, loop = [], own.LimbeckLoop

    def watched(case, networks, engine):
        found.append((engine.device.type, engine.precision, engine.compile))
        return loop(case, networks, engine)

    monkeypatch.setattr(own, "LimbeckLoop", watched)
    monkeypatch.setattr(overhead, "LimbeckLoop", watched)
    return found


def test_the_overhead_is_that_of_32_bits_as_the_plain_loop_has(engines):
    list(step_overhead(1, 0.0, until=0.0))
    assert engines == [("cpu", "32", False)]


def test_the_memory_is_that_of_32_bits_as_the_plain_loop_has(engines, tiny_case):
    train("live", tiny_case("mnist_mlp"))
    assert engines == [("cpu", "32", False)]


def test_the_peak_is_read_from_the_system(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t 9999999 kB\nVmHWM:\t   12500 kB\nVmRSS:\t 11000 kB\n")
    assert peak_mb(status) == 12500 * 1024 / 1e6


def test_without_proc_the_peak_is_that_of_getrusage(tmp_path):
    assert peak_mb(tmp_path / "none") > 0


@pytest.mark.parametrize("variant", ["plain", "live"])
def test_both_train_as_many_steps(tiny_case, variant, monkeypatch):
    case = tiny_case("mnist_mlp")
    batches = []
    networks = case.networks()
    networks["student"].register_forward_hook(lambda module, args, output: batches.append(len(output)))
    monkeypatch.setattr(type(case), "networks", lambda self: networks)
    train(variant, case)
    assert batches.count(4) == memory.STEPS


def test_the_process_writes_its_peak(tiny, monkeypatch, capsys):
    kept = []
    monkeypatch.setattr(memory, "keep_memory", lambda: kept.append(True))
    monkeypatch.setattr(memory, "WORKLOADS", {"small": tiny("mnist_mlp")})
    memory.main("plain", "small")
    assert float(capsys.readouterr().out) == pytest.approx(peak_mb(), rel=0.2)
    assert kept == [True]


def test_as_a_command_it_takes_the_variant_and_the_workload(tiny, monkeypatch, capsys):
    monkeypatch.setattr(allocator, "keep_memory", lambda: True)
    monkeypatch.setattr(workloads, "WORKLOADS", {"small": tiny("kd")})
    monkeypatch.setattr(sys, "argv", ["memory", "plain", "small"])
    runpy.run_path(memory.__file__, run_name="__main__")
    assert float(capsys.readouterr().out) > 0


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs a script in the place of Python."""

    def replace(text):
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        monkeypatch.setattr(overhead.sys, "executable", str(script))

    return replace


def test_memory_is_measured_in_a_process_for_each_with_one_thread(command):
    command('[ "$1 $2 $4 $OMP_NUM_THREADS" = "-m benchmarks.speed.memory kd 1" ] && echo "${#3}00.5"')
    assert peak_memory("kd") == {"plain": 500.5, "live": 400.5}  # the letters of their names


def test_a_process_that_fails_is_an_error_with_its_last_words(command):
    command("echo first >&2; echo 'MemoryError: too much' >&2; exit 1")
    with pytest.raises(LimbeckError, match="the memory of plain failed: MemoryError: too much"):
        peak_memory("kd")
    command("exit 3")
    with pytest.raises(LimbeckError, match="the memory of plain failed: exit status 3"):
        peak_memory("kd")


class Begun(subprocess.Popen):
    """Each is noted; nothing is waited for by `communicate`, which is interrupted."""

    every = ()
    interruption = KeyboardInterrupt

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        type(self).every += (self,)

    def communicate(self):
        raise self.interruption


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_no_process_goes_on_where_the_measurement_is_interrupted(command, monkeypatch, interruption):
    command("exec sleep 60")
    monkeypatch.setattr(Begun, "every", ())
    monkeypatch.setattr(Begun, "interruption", interruption)
    monkeypatch.setattr(overhead.subprocess, "Popen", Begun)
    with pytest.raises(interruption):
        peak_memory("kd")
    assert [process.poll() for process in Begun.every] == [-signal.SIGKILL] * 2


def test_the_start_up_is_a_median_of_runs(monkeypatch):
    moments = iter([0.0, 0.3, 1.0, 1.1, 2.0, 2.2])
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: next(moments))
    assert startup_seconds(3, (sys.executable, "-c", "pass")) == pytest.approx(0.2)


def test_the_command_that_is_timed_is_the_help(capfd):
    assert overhead.HELP[1:] == ("-m", "limbeck", "--help")
    assert 0 < startup_seconds(1) < 60
    assert capfd.readouterr().out == ""
