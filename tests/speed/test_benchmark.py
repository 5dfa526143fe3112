import json
import math
import os
import runpy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.speed import benchmark, command
from benchmarks.speed.benchmark import COMPILING, FULL, LEAST_ROUNDS, OVERHEAD_ROUNDS, QUICK, Extent, measure
from benchmarks.speed.measuring import Sample
from benchmarks.speed.peer import Unavailable
from benchmarks.speed.variants import VARIANTS, Variant
from benchmarks.speed.workloads import WORKLOADS
from limbeck.cli import SPINS

SHORT = Extent(rounds=2, sample=0.0, warm_up=0.0, budget=COMPILING / 2)


def silent(text):
    """Progress that nobody reads."""


@pytest.fixture
def beside(monkeypatch):
    """What is measured besides the workloads takes no time."""
    kept = []
    monkeypatch.setattr(benchmark, "keep_memory", lambda: kept.append(True) or True)
    monkeypatch.setattr(benchmark.overhead, "startup_seconds", lambda: 0.2)
    monkeypatch.setattr(benchmark, "peak_memory", lambda name: {"plain": 800.0, "live": 840.0})
    loops = [Sample(name, number, 1e-4, 0.0, 0) for name in ("plain", "live") for number in range(2)]
    monkeypatch.setattr(benchmark.overhead, "step_overhead", lambda rounds, seconds, end: loops)
    return kept


def test_a_short_benchmark_measures_every_variant(tiny, beside):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    said = []
    result = measure([tiny("kd"), tiny("mnist_mlp")], SHORT, said.append)
    assert torch.equal(torch.rand(1), expected)  # the global generator is as it was
    assert beside == [True]
    assert said[:3] == ["start-up time", "overhead of a step", "peak memory"]
    assert "mnist_mlp: store, first steps" in said
    assert "mnist_mlp: plain, round 2 of 2" in said
    result = json.loads(json.dumps(result))
    assert list(result["workloads"]) == ["kd", "mnist_mlp"]
    for found in result["workloads"].values():
        skipped = set(found["skipped"])
        assert "live_compiled" in skipped <= {"live_compiled", "torchdistill"}
        assert "no time left to compile" in found["skipped"]["live_compiled"]
        assert {name for name, speed in found["images_per_second"].items() if speed} == set(VARIANTS) - skipped
        assert found["rounds"] == 2
        assert found["store_build_s"] > 0
        assert set(found["steps_a_sample"].values()) == {1}
    assert result["startup_s"] == 0.2


@pytest.fixture
def made(monkeypatch, beside):
    """The names of the variants that are built; each does nothing, and the seconds of its steps are set here."""
    found = []

    def make(name, *rest):
        found.append(name)
        return Variant(lambda steps: None, student=None, store_seconds=0.25)

    monkeypatch.setattr(benchmark, "make", make)
    monkeypatch.setattr(benchmark.measuring, "warm_up", lambda run, seconds: (3.5, 0.5))
    return found


def test_compiling_is_done_where_there_is_time_and_its_cost_is_reported(tiny, made):
    result = measure([tiny("mnist_mlp")], replace(SHORT, budget=math.inf), silent)
    found = result["workloads"]["mnist_mlp"]
    assert made == list(VARIANTS)
    assert found["compile_s"] == pytest.approx(3.5 - 0.5, abs=0.1)  # and the time of building, which is next to none
    assert found["store_build_s"] == 0.25
    assert found["skipped"] == {}


def test_the_time_limit_and_the_warm_up_reach_what_measures(tiny, made, monkeypatch):
    """In 90 s, two workloads: 15 s at most of overhead, and then each until its share of what is left."""
    given = []
    loops = [Sample(name, 0, 1e-4, 0.0, 0) for name in ("plain", "live")]
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: 1000.0))
    monkeypatch.setattr(benchmark.overhead, "step_overhead", lambda *asked: given.append(asked) or loops)
    monkeypatch.setattr(benchmark.measuring, "warm_up", lambda run, seconds: given.append(seconds) or (3.5, 0.5))

    def interleaved(runs, steps, rounds, *, end):
        given.append((rounds, end))
        yield from (Sample(name, 0, 0.5, 0.0, 0) for name in runs)

    monkeypatch.setattr(benchmark.measuring, "interleaved", interleaved)
    extent = Extent(rounds=2, sample=1.0, warm_up=0.125, budget=90.0)
    measure([tiny("mnist_mlp"), tiny("mnist_mlp")], extent, silent)
    assert given == [
        (OVERHEAD_ROUNDS, 0.25, 1015.0),
        *[0.125] * len(VARIANTS),
        (2, 1045.0),
        *[0.125] * len(VARIANTS),
        (2, 1090.0),
    ]


def test_what_cannot_run_here_is_left_out_with_its_reason(tiny, made, monkeypatch):
    make = benchmark.make

    def missing(name, *rest):
        if name == "torchdistill":
            raise Unavailable("it is not installed")
        return make(name, *rest)

    monkeypatch.setattr(benchmark, "make", missing)
    found = measure([tiny("mnist_mlp")], SHORT, silent)["workloads"]["mnist_mlp"]
    assert found["skipped"]["torchdistill"] == "it is not installed"
    assert found["images_per_second"]["torchdistill"] is None


@pytest.mark.parametrize(("spare", "compiled"), [(-1.0, False), (3.0, True)])
def test_compiling_needs_its_time_and_that_of_the_rounds(tiny, made, spare, compiled):
    needed = COMPILING + 2 * (7 * 0.5 + 0.5)
    measure([tiny("mnist_mlp")], replace(SHORT, budget=needed + spare), silent)
    assert ("live_compiled" in made) is compiled


def test_samples_fill_the_time_that_is_left(tiny, made):
    """60 s of 5 rounds of 8 variants of 0.5 s a step are 1.5 s a sample, less what was used."""
    result = measure([tiny("mnist_mlp")], replace(SHORT, rounds=5, sample=100.0, budget=60.0), silent)
    assert set(result["workloads"]["mnist_mlp"]["steps_a_sample"].values()) == {2}


def test_workloads_share_the_time(tiny, made):
    extent = replace(SHORT, rounds=5, sample=100.0, budget=1000.0)
    result = measure([tiny("kd"), tiny("mnist_mlp")], extent, silent)
    first, second = (set(found["steps_a_sample"].values()) for found in result["workloads"].values())
    assert max(first) == 24  # half of the time: 12.5 s a sample, less what was used
    assert min(second) > 45  # all that the first did not need


def test_the_time_that_is_left_does_not_become_less_than_none(tiny, made):
    result = measure([tiny("mnist_mlp")], replace(SHORT, budget=0.0), silent)
    assert set(result["workloads"]["mnist_mlp"]["steps_a_sample"].values()) == {1}


@pytest.fixture
def asked(monkeypatch):
    """The workloads and the extent that the command measures; its result is empty."""
    found = []

    def measure(workloads, extent, say):
        found.append(([workload.name for workload in workloads], extent))
        over = {"median": 5.0, "least": 4.0, "most": 6.0, "plain_us": 100.0, "live_us": 105.0}
        return {"workloads": {}, "step_overhead": over, "gates": []}

    monkeypatch.setattr(command, "measure", measure)
    return found


def test_quick_is_kd_alone_and_ends_within_a_minute(asked):
    command.main(["--quick"])
    assert asked == [(["kd"], QUICK)]
    assert QUICK.budget < 60
    assert QUICK.rounds >= LEAST_ROUNDS == 3
    assert not QUICK.memory


def test_in_full_all_is_measured(asked):
    command.main([])
    assert asked == [(list(WORKLOADS), FULL)]
    assert FULL.rounds >= LEAST_ROUNDS


def test_workloads_and_rounds_can_be_chosen(asked):
    command.main(["--quick", "--workload", "at", "--workload", "kd", "--rounds", "9"])
    assert asked == [(["at", "kd"], replace(QUICK, rounds=9))]


def test_the_command_prints_sentences_or_json(asked, capsys):
    command.main([])
    assert capsys.readouterr().out == "a step of a tiny network: plain 100 us, live 105 us, +5 us [+4 to +6]\n"
    command.main(["--json"])
    assert json.loads(capsys.readouterr().out)["step_overhead"]["median"] == 5.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--workload", "attt"], "invalid choice: 'attt'"),
        (["--rounds", "2"], "got 2, allowed are 3 and more"),
        (["--rounds", "many"], "invalid"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(asked, capsys, given, message):
    with pytest.raises(SystemExit):
        command.main(given)
    assert message in capsys.readouterr().err
    assert asked == []


def test_threads_wait_as_those_of_limbecks_commands(monkeypatch):
    asked = []
    monkeypatch.setattr(command, "main", lambda: asked.append(os.environ["GOMP_SPINCOUNT"]))
    monkeypatch.setenv("GOMP_SPINCOUNT", "")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    runpy.run_module("benchmarks.speed", run_name="__main__")
    assert asked == [SPINS]
