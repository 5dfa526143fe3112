import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.speed import benchmark
from benchmarks.speed.benchmark import COMPILING, FULL, LEAST, QUICK, Extent, Progress, Report, bench, run_bench
from benchmarks.speed.measuring import Sample
from benchmarks.speed.peer import Unavailable
from benchmarks.speed.report import SHOWN
from benchmarks.speed.variants import VARIANTS
from benchmarks.speed.workloads import WORKLOADS
from limbeck.core import LimbeckError

SHORT = Extent(rounds=2, sample=0.0, warm_up=0.0, budget=COMPILING / 2)


@pytest.fixture
def beside(monkeypatch):
    """What is measured beside the workloads takes no time."""
    kept = []
    monkeypatch.setattr(benchmark, "keep_memory", lambda: kept.append(True) or True)
    monkeypatch.setattr(benchmark.overhead, "startup_seconds", lambda: 0.2)
    monkeypatch.setattr(benchmark.overhead, "peak_memory", lambda workload: {"plain": 100.0, "live": 101.0})
    loops = [Sample(name, number, 1e-4, 0.0, 0) for name in ("plain", "live") for number in range(2)]
    monkeypatch.setattr(benchmark.overhead, "step_overhead", lambda rounds, seconds, until: loops)
    return kept


def test_a_short_benchmark_measures_every_variant(tiny, beside):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    *progress, end = bench([tiny("kd"), tiny("mnist_mlp")], SHORT)
    assert torch.equal(torch.rand(1), expected)  # the global generator is as it was
    assert beside == [True]
    assert isinstance(end, Report)
    assert all(isinstance(event, Progress) for event in progress)
    result = json.loads(json.dumps(end.result))
    assert list(result["workloads"]) == ["kd", "mnist_mlp"]
    for found in result["workloads"].values():
        skipped = set(found["skipped"])
        assert "live_compiled" in skipped <= {"live_compiled", "torchdistill"}
        assert "no time left to compile" in found["skipped"]["live_compiled"]
        assert {name for name, speed in found["images_per_second"].items() if speed} == set(SHOWN) - skipped
        assert found["rounds"] == 2
        assert found["store_build_s"] > 0
        assert set(found["steps_a_sample"].values()) == {1}
    assert (result["startup_s"], result["peak_memory_mb"]["ratio"]) == (0.2, pytest.approx(1.01))


def test_progress_goes_from_none_to_all(tiny, beside):
    *progress, _ = bench([tiny("mnist_mlp")], SHORT)
    done = [event.done for event in progress]
    assert done == sorted(done)
    assert done[0] == 0.0
    assert 0.8 < done[-1] <= 1.0
    texts = [event.text for event in progress]
    assert texts[:3] == ["start-up time", "peak memory", "overhead of a step"]
    assert "mnist_mlp: store, first steps" in texts
    assert "mnist_mlp: plain, round 2 of 2" in texts


class Variant:
    """Takes no time of its own."""

    def __init__(self, name, build_seconds=0.0):
        self.build_seconds = build_seconds
        self.filling = 0.25
        self.steps = []

    def run(self, steps):
        self.steps.append(steps)


@pytest.fixture
def made(monkeypatch, beside):
    """Variants that do nothing, by name, and steps of the seconds that are set here."""
    found = {}
    monkeypatch.setattr(benchmark, "make", lambda name, *rest: found.setdefault(name, Variant(name, 1.0)))
    monkeypatch.setattr(benchmark.measuring, "warm_up", lambda run, seconds: (3.5, 0.5))
    return found


def test_compiling_is_done_where_there_is_time_and_its_cost_is_told(tiny, made):
    *_, end = bench([tiny("mnist_mlp")], replace(SHORT, budget=math.inf))
    found = end.result["workloads"]["mnist_mlp"]
    assert list(made) == list(VARIANTS)
    assert found["compile_s"] == pytest.approx(1.0 + 3.5 - 0.5)
    assert found["store_build_s"] == 0.25
    assert found["skipped"] == {}


def test_the_time_limit_and_the_warm_up_reach_what_measures(tiny, made, monkeypatch):
    """In 90 s, two workloads: 30 s at most of overhead, and then each until its share of what is left."""
    given = []
    loops = [Sample(name, 0, 1e-4, 0.0, 0) for name in ("plain", "live")]
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: 1000.0))
    monkeypatch.setattr(benchmark.overhead, "step_overhead", lambda *asked: given.append(asked) or loops)
    monkeypatch.setattr(benchmark.measuring, "warm_up", lambda run, seconds: given.append(seconds) or (3.5, 0.5))

    def interleaved(runs, steps, rounds, *, until):
        given.append((rounds, until))
        yield from (Sample(name, 0, 0.5, 0.0, 0) for name in runs)

    monkeypatch.setattr(benchmark.measuring, "interleaved", interleaved)
    list(bench([tiny("mnist_mlp"), tiny("mnist_mlp")], Extent(rounds=2, sample=1.0, warm_up=0.125, budget=90.0)))
    assert given == [
        (2, 0.25, 1030.0),
        *[0.125] * len(VARIANTS),
        (2, 1045.0),
        *[0.125] * len(VARIANTS),
        (2, 1090.0),
    ]


def test_what_cannot_run_here_is_left_out_with_its_reason(tiny, made, monkeypatch):
    def missing(name, *rest):
        if name == "torchdistill":
            raise Unavailable("it is not there")
        return Variant(name)

    monkeypatch.setattr(benchmark, "make", missing)
    *_, end = bench([tiny("mnist_mlp")], SHORT)
    found = end.result["workloads"]["mnist_mlp"]
    assert found["skipped"]["torchdistill"] == "it is not there"
    assert found["images_per_second"]["torchdistill"] is None


@pytest.mark.parametrize(("spare", "compiled"), [(-1.0, False), (3.0, True)])
def test_compiling_needs_its_time_and_that_of_the_rounds(tiny, made, spare, compiled):
    needed = COMPILING + 2 * (7 * 0.5 + 0.5)
    list(bench([tiny("mnist_mlp")], replace(SHORT, budget=needed + spare)))
    assert ("live_compiled" in made) is compiled


def test_samples_fill_the_time_that_is_left(tiny, made):
    *_, end = bench([tiny("mnist_mlp")], replace(SHORT, rounds=5, sample=100.0, budget=60.0))
    steps = end.result["workloads"]["mnist_mlp"]["steps_a_sample"]
    assert set(steps.values()) == {
        2
    }  # 60 s of 5 rounds of 8 variants of 0.5 s a step are 1.5 s a sample, less what was used


def test_workloads_share_the_time(tiny, made):
    *_, end = bench([tiny("kd"), tiny("mnist_mlp")], replace(SHORT, rounds=5, sample=100.0, budget=1000.0))
    first, second = (set(found["steps_a_sample"].values()) for found in end.result["workloads"].values())
    assert max(first) == 24  # half of the time: 12.5 s a sample, less what was used
    assert min(second) > 45  # all that the first did not need


@pytest.fixture
def asked(monkeypatch):
    found = []
    monkeypatch.setattr(benchmark, "bench", lambda workloads, extent: found.append((workloads, extent)))
    return found


def test_quick_is_kd_alone_and_ends_within_a_minute(asked):
    run_bench(quick=True)
    ((workloads, extent),) = asked
    assert [workload.name for workload in workloads] == ["kd"]
    assert extent == QUICK
    assert extent.budget < 60
    assert extent.rounds >= LEAST == 5


def test_in_full_all_is_measured(asked):
    run_bench()
    ((workloads, extent),) = asked
    assert workloads == list(WORKLOADS.values())
    assert extent == FULL
    assert extent.rounds >= LEAST


def test_workloads_and_rounds_can_be_chosen(asked):
    run_bench(quick=True, workloads=["at", "kd"], rounds=9)
    ((workloads, extent),) = asked
    assert [workload.name for workload in workloads] == ["at", "kd"]
    assert extent == replace(QUICK, rounds=9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workloads": ["kd", "attt"]}, "no workload 'attt'.*did you mean 'at'"),
        ({"rounds": 4}, "4 rounds: .*5 and more"),
        ({"workloads": []}, "0 workloads"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(given, message):
    with pytest.raises(LimbeckError, match=message):
        run_bench(**given)


def test_the_time_that_is_left_does_not_become_less_than_none(tiny, made):
    *_, end = bench([tiny("mnist_mlp")], replace(SHORT, budget=0.0))
    assert set(end.result["workloads"]["mnist_mlp"]["steps_a_sample"].values()) == {1}
