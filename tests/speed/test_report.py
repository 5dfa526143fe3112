import json
from dataclasses import replace

import pytest

from benchmarks.speed.measuring import Sample
from benchmarks.speed.report import GATES, Measured, report
from benchmarks.speed.tables import sentences, tables
from benchmarks.speed.variants import VARIANTS
from benchmarks.speed.workloads import WORKLOADS
from limbeck.evaluate import machine
from limbeck.evaluate.machine import Reading

# Seconds of a step in each of three rounds; in the second the machine was twice as slow.
SECONDS = {
    "plain": (0.64, 1.28, 0.64),
    "plain_tuned": (0.32, 0.64, 0.32),
    "live": (0.105, 0.21, 0.11),
    "store": (0.064, 0.128, 0.064),
    "floor_live": (0.1, 0.2, 0.1),
    "floor_store": (0.05, 0.1, 0.05),
}


def samples(seconds, outside=0.01, repeated=0):
    return [
        Sample(name, number, value, outside, repeated)
        for name, values in seconds.items()
        for number, value in enumerate(values)
    ]


def measured(name="kd", **changes):
    given = {
        "precision": "32",
        "reason": "asked for",
        "samples": samples(SECONDS),
        "steps": dict.fromkeys(SECONDS, 2),
        "costs": {"store_build_s": 1.5},
        "skipped": {"torchdistill": "it is not there", "live_compiled": "no time"},
    }
    return Measured(WORKLOADS[name], **(given | changes))


PEAK = {"plain": 800.0, "live": 840.0}
LOOPS = samples({"plain": (300e-6, 310e-6, 290e-6), "live": (350e-6, 380e-6, 345e-6)}, outside=0.02)


@pytest.fixture(autouse=True)
def four_cpus(monkeypatch):
    """The machine that report.py sees."""
    monkeypatch.setattr(machine, "read", lambda: Reading(wall=0.0, own=0.0, busy=0.0, cpus=4))


@pytest.fixture
def result():
    return report([measured()], LOOPS, PEAK, 0.25, kept=True)


def test_the_result_has_the_agreed_keys(result):
    assert {"machine", "workloads", "step_overhead_us", "startup_s"} <= set(result)
    kd = result["workloads"]["kd"]
    assert {"images_per_second", "range", "rounds", "outside_share"} <= set(kd)
    assert list(kd["images_per_second"]) == list(kd["range"]) == list(VARIANTS)
    assert json.loads(json.dumps(result)) == result


def test_speeds_are_medians_with_their_range(result):
    kd = result["workloads"]["kd"]
    assert kd["images_per_second"]["plain"] == pytest.approx(100)
    assert kd["range"]["plain"] == pytest.approx([50, 100])
    assert kd["images_per_second"]["store"] == pytest.approx(1000)
    assert kd["images_per_second"]["torchdistill"] is None
    assert kd["range"]["live_compiled"] is None
    assert kd["rounds"] == 3
    assert kd["batch_size"] == 64


def test_ratios_are_of_the_same_round(result):
    kd = result["workloads"]["kd"]
    assert kd["over_floor"]["live"] == pytest.approx({"median": 1.05, "least": 1.05, "most": 1.1})
    assert kd["over_floor"]["store"] == pytest.approx({"median": 1.28, "least": 1.28, "most": 1.28})
    assert set(kd["over_floor"]) == {"live", "store"}
    assert kd["faster_than_plain"]["plain_tuned"] == pytest.approx({"median": 2, "least": 2, "most": 2})
    assert "plain" not in kd["faster_than_plain"]


def test_the_result_has_what_other_processes_used_and_what_was_left_out(result):
    kd = result["workloads"]["kd"]
    assert (kd["outside_cores"], kd["outside_share"]) == pytest.approx((0.01, 0.0025))
    assert (kd["disturbed"], kd["repeated"]) == (0, 0)
    assert kd["skipped"] == {"torchdistill": "it is not there", "live_compiled": "no time"}
    assert kd["store_build_s"] == 1.5
    assert (kd["precision"], kd["precision_reason"]) == ("32", "asked for")
    noisy = measured(samples=samples(SECONDS, outside=0.2, repeated=3))
    found = report([noisy], LOOPS, PEAK, 0.1, kept=True)["workloads"]["kd"]
    assert (found["outside_cores"], found["outside_share"]) == pytest.approx((0.2, 0.05))
    assert (found["disturbed"], found["repeated"]) == (18, 54)


def test_the_overhead_is_paired_and_in_microseconds(result):
    assert result["step_overhead_us"] == pytest.approx(55)
    over = result["step_overhead"]
    assert (over["least"], over["most"]) == pytest.approx((50, 70))
    assert (over["plain_us"], over["live_us"]) == pytest.approx((300, 350))
    assert (over["outside_cores"], over["outside_share"]) == pytest.approx((0.02, 0.005))


def test_the_machine_is_described(result):
    assert result["machine"]["allocator"] == "keeps memory"
    assert result["machine"]["device"] == "cpu"
    assert "torchdistill" in result["machine"]
    assert result["machine"]["cores"] >= 1
    unchanged = report([measured()], LOOPS, PEAK, 0.1, kept=False)
    assert unchanged["machine"]["allocator"] == "unchanged"


def test_gates_are_held_or_missed(result):
    found = {gate["what"]: (gate["value"], gate["limit"], gate["holds"]) for gate in result["gates"]}
    assert found["kd: live over floor_live"] == (pytest.approx(1.05), 1.10, True)
    assert found["kd: store over floor_store"] == (pytest.approx(1.28), 1.08, False)
    assert found["overhead of a step, us"] == (pytest.approx(55), 60, True)
    assert found["limbeck --help, s"] == (0.25, 0.3, True)
    assert found["peak memory over plain"] == (pytest.approx(1.05), 1.15, True)
    assert len(found) == 5


def test_every_gate_of_a_workload_is_checked():
    everything = report([measured(name) for name in WORKLOADS], LOOPS, PEAK, 0.5, kept=True)
    assert len(everything["gates"]) == len(GATES) + 3
    found = {gate["what"]: gate["holds"] for gate in everything["gates"]}
    assert found["srrl: live over floor_live"] is True
    assert found["hint: store over floor_store"] is False
    assert found["limbeck --help, s"] is False


def test_gates_of_a_disturbed_machine_are_doubted():
    loops = [replace(sample, outside=0.11) for sample in LOOPS]
    noisy = measured("srrl", samples=samples(SECONDS, outside=0.11))
    found = report([measured(), noisy], loops, PEAK, 0.1, kept=True)
    disturbed = {gate["what"] for gate in found["gates"] if gate["disturbed"]}
    assert disturbed == {"srrl: live over floor_live", "srrl: store over floor_store", "overhead of a step, us"}
    said = [line for line in sentences(found) if line.endswith("; other processes used the machine, so measure again")]
    assert len(said) == 3
    assert said[0].startswith("holds: srrl: live over floor_live: 1.05, at most 1.15; other")


def test_an_unknown_share_stays_unknown():
    silent = measured(samples=samples(SECONDS, outside=None))
    result = report([silent], LOOPS, PEAK, 0.1, kept=True)
    kd = result["workloads"]["kd"]
    assert (kd["outside_cores"], kd["outside_share"]) == (None, None)
    assert any("what other processes used is unknown" in line for line in sentences(result))


def test_the_table_has_a_line_a_variant(result):
    (table,) = tables(result)
    assert table.title == "kd, batches of 64, 32 bits (asked for), 3 rounds"
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    lines = {line[0]: list(line[1:]) for line in cells}
    assert [line[0] for line in cells] == list(VARIANTS)
    assert lines["plain"] == ["100.0", "50.0 - 100.0", "1", ""]
    assert lines["live"] == ["581.8", "304.8 - 609.5", "6.10 [5.82 - 6.10]", "1.05 [1.05 - 1.10]"]
    assert lines["floor_store"] == ["1,280.0", "640.0 - 1,280.0", "12.80 [12.80 - 12.80]", ""]
    assert lines["torchdistill"] == ["-", "", "", ""]


def test_the_precision_is_named(result):
    low = report([measured(precision="bf16")], LOOPS, PEAK, 0.1, kept=True)
    (table,) = tables(low)
    assert table.title == (
        "kd, batches of 64, limbeck, plain_tuned and the floors in bfloat16 (asked for), "
        "plain and torchdistill in 32 bits, 3 rounds"
    )


def test_it_says_which_loops_run_more_than_the_method_needs():
    found = report([measured(name) for name in WORKLOADS], LOOPS, PEAK, 0.1, kept=True)
    assert [line for line in sentences(found) if "layers above" in line] == [
        "hint: plain and plain_tuned also run the layers above the hint, as people write it"
    ]


def test_the_sentences_say_the_rest(result):
    said = list(sentences(result))
    assert (
        "kd: other processes used 0.01 cores; 0 samples were repeated, "
        "0 were kept although other processes used more than 0.1 cores" in said
    )
    assert "kd: building the store of 256 samples took 1.5 s, once" in said
    assert "kd: torchdistill is left out: it is not there" in said
    assert "a step of a tiny network: plain 300 us, live 350 us, +55 us [+50 to +70]" in said
    assert "holds: limbeck --help, s: 0.25, at most 0.3" in said
    assert "holds: kd: live over floor_live: 1.05, at most 1.1" in said
    assert "FAILS: kd: store over floor_store: 1.28, at most 1.08" in said
    assert not [line for line in said if "compiling took" in line]
    compiled = report([measured(costs={"compile_s": 7.0})], LOOPS, PEAK, 0.1, kept=True)
    assert "kd: compiling took 7.0 s, once" in list(sentences(compiled))


def test_peak_memory_may_be_left_out():
    found = report([measured()], LOOPS, None, 0.1, kept=True)
    assert found["peak_memory_mb"] is None
    assert not any("memory" in gate["what"] for gate in found["gates"])
