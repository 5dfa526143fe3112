import subprocess

import pytest

from benchmarks.speed import memory
from benchmarks.speed.memory import peak_mb, peak_memory, train


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


def test_the_peaks_are_those_of_two_processes(monkeypatch):
    asked = []

    def ran(command, **options):
        asked.append((command[2:], options["env"]["OMP_NUM_THREADS"]))
        return subprocess.CompletedProcess(command, 0, stdout=b"812.5\n")

    monkeypatch.setattr(memory.subprocess, "run", ran)
    assert peak_memory("kd") == {"plain": 812.5, "live": 812.5}
    assert asked == [(["benchmarks.speed.memory", name, "kd"], "1") for name in ("plain", "live")]
