"""What a run comes to: its schema, strictness, and the figures over several seeds."""

import json
import math
from dataclasses import replace

import pytest

from limbeck.core import LimbeckError
from limbeck.evaluate import ClassFigures, Latency
from limbeck.experiment.results import (
    SCHEMA,
    Gain,
    NetworkResult,
    RunResult,
    Spread,
    from_json,
    plain,
    read,
    spread,
    summarise,
)
from limbeck.files.atomic import write_sealed


def result(arm, seed, errors, *, samples=100, **more):
    """A network's result with so many errors."""
    test = ClassFigures((samples - errors) / samples, errors, samples, cross_entropy=0.5, ece=0.125)
    values = {"member": None, "validation": None, "parameters": 9, "macs": 8, "file_bytes": 36}
    return NetworkResult(arm=arm, seed=seed, test=test, **values | more)


def full():
    """A network's result in which everything applies."""
    test = ClassFigures(0.75, 25, 100, cross_entropy=0.5, ece=0.125, agreement=0.875, kl_to_teacher=0.25)
    return replace(
        result("kd", 3, 25),
        test=test,
        validation=replace(test, agreement=None, kl_to_teacher=None),
        latency=Latency(0.5, 0.75, 10, others_cores=0.25),
        weights_sha256="0" * 64,
        best_epoch=4,
        trained_as="1" * 64,
        teacher_after=result("teacher", 3, 20),
        bias_shift={"classes": [3], "before": {"errors": 4, "share_right": 0.5}},
    )


def run(student=None):
    """A run's result."""
    student = student or full()
    teacher, alone = result("teacher", 3, 10, macs=None), result("alone", 3, 30)
    runs = (teacher, alone, replace(student, latency=None))
    return RunResult(
        schema=SCHEMA,
        name="tiny",
        task="classification",
        metric=None,
        method="kd",
        seeds=(3,),
        teacher=teacher,
        student=student,
        alone=alone,
        summary=summarise(runs),
        splits={"train": "digits"},
        notes=("a note",),
        decided={"device": "cpu", "cache": {"use": False}},
        runs=runs,
    )


def test_a_run_prints_as_one_line_for_each_arm():
    one = run()
    assert str(one).splitlines() == [
        "tiny: test accuracy",
        "teacher: 90.00 %, n = 1, 9 parameters",
        "alone: 70.00 %, n = 1, 9 parameters",
        "kd: 75.00 %, n = 1, 9 parameters",
    ]
    summary = one.summary | {"kd": replace(one.summary["kd"], headline=Spread(0.07, 0.01, 2))}
    lines = str(replace(one, summary=summary, task="landmarks")).splitlines()
    assert (lines[0], lines[3]) == ("tiny: test NME, lower is better", "kd: 7.00 ± 1.00 %, n = 2, 9 parameters")
    assert repr(one).startswith("RunResult(schema=")


# --- the schema


NETWORK_KEYS = [
    "arm",
    "best_epoch",
    "bias_shift",
    "class_scatter",
    "file_bytes",
    "latency",
    "macs",
    "member",
    "own_metric",
    "parameters",
    "seed",
    "teacher_after",
    "test",
    "trained_as",
    "validation",
    "weights_sha256",
]
RUN_KEYS = [
    "alone",
    "decided",
    "method",
    "metric",
    "name",
    "notes",
    "runs",
    "schema",
    "seeds",
    "splits",
    "student",
    "summary",
    "task",
    "teacher",
]
FIGURES_KEYS = ["accuracy", "agreement", "cross_entropy", "ece", "errors", "kl_to_teacher", "samples"]
LATENCY_KEYS = ["median_ms", "others_cores", "p95_ms", "runs"]


def test_the_schema_is_3_with_these_keys():
    """Who changes a key changes `SCHEMA`, the documentation of result.json and this test."""
    values = plain(run())
    assert SCHEMA == values["schema"] == 3
    assert sorted(values) == RUN_KEYS
    for network in (values["teacher"], values["student"], values["alone"], *values["runs"]):
        assert sorted(network) == NETWORK_KEYS
        assert sorted(network["test"]) == FIGURES_KEYS
    assert sorted(values["student"]["validation"]) == FIGURES_KEYS
    assert sorted(values["student"]["latency"]) == LATENCY_KEYS
    assert sorted(values["student"]["teacher_after"]) == NETWORK_KEYS
    assert sorted(values["summary"]) == ["alone", "kd", "teacher"]
    for arm in values["summary"].values():
        assert sorted(arm) == ["better_than_alone", "errors", "fewer_errors_than_alone", "headline"]
        assert sorted(arm["headline"]) == sorted(arm["errors"]) == ["deviation", "mean", "n"]
    gain = values["summary"]["kd"]["fewer_errors_than_alone"]
    assert sorted(gain) == ["deviation", "mean", "n", "standard_error"]


def test_what_does_not_apply_is_null():
    values = plain(run(student=result("kd", 3, 25)))
    absent = {"best_epoch", "bias_shift", "latency", "member", "teacher_after", "trained_as", "validation"}
    assert {key for key, value in values["student"].items() if value is None} == absent | {
        "class_scatter",
        "weights_sha256",
        "own_metric",
    }
    assert {key for key, value in values["student"]["test"].items() if value is None} == {"agreement", "kl_to_teacher"}
    assert values["summary"]["alone"]["fewer_errors_than_alone"] is None
    assert plain(replace(run(), alone=None, teacher=None))["alone"] is None


@pytest.mark.parametrize("one", [run(), run(student=result("kd", 3, 25)), replace(run(), alone=None, teacher=None)])
def test_a_runs_result_goes_through_json_and_back(one):
    assert from_json(RunResult, json.loads(json.dumps(plain(one)))) == one


@pytest.mark.parametrize("one", [full(), result("member", 0, 3, member=1), result("alone", 0, 3, macs=None)])
def test_a_networks_result_goes_through_json_and_back(one):
    assert from_json(NetworkResult, json.loads(json.dumps(plain(one)))) == one


@pytest.mark.parametrize(("member", "name"), [(None, "kd/seed3"), (0, "kd/seed3-0"), (2, "kd/seed3-2")])
def test_a_network_is_called_as_its_folder_is(member, name):
    assert result("kd", 3, 1, member=member).name == name


def test_an_arms_networks_are_those_of_all_seeds():
    runs = tuple(result(arm, seed, 1) for seed in (0, 1) for arm in ("alone", "kd"))
    assert [one.name for one in replace(run(), runs=runs).of("kd")] == ["kd/seed0", "kd/seed1"]


def changed(values, place, value):
    """Plain values with another one at a place; without that place, where ``value`` is ``...``."""
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return values


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("student", "test", "errors"), 25.0, r"^student\.test\.errors: .*integer"),
        (("student", "test", "errors"), "25", r"^student\.test\.errors: .*integer"),
        (("student", "test", "errors"), True, r"^student\.test\.errors: .*integer"),
        (("student", "test", "accuracy"), "0.75", r"^student\.test\.accuracy: .*number"),
        (("student", "latency", "runs"), 1.5, r"^student\.latency\.runs: .*integer"),
        (("student", "teacher_after", "macs"), "8", r"^student\.teacher_after\.macs: .*integer"),
        (("student", "arm"), 3, r"^student\.arm: .*string"),
        (("summary", "kd", "errors", "n"), 1.0, r"^summary\.kd\.errors\.n: .*integer"),
        (("runs", 1, "seed"), "3", r"^runs\.1\.seed: .*integer"),
        (("seeds", 0), 3.5, r"^seeds\.0: .*integer"),
        (("notes",), "a note", r"^notes: .*array"),
        (("student", "test", "ece"), ..., r"^student\.test\.ece: .*required"),
        (("student", "parameters"), ..., r"^student\.parameters: .*required"),
        (("student",), None, r"^student: "),
        (("decided",), ..., r"^decided: .*required"),
        (("seed",), 3, r"^seed: Unexpected"),
        (("student", "latency_ms"), 0.5, r"^student\.latency_ms: Unexpected"),
        (("student", "test", "f1"), 0.5, r"^student\.test\.f1: Unexpected"),
        (("student", "latency", "mean_ms"), 0.5, r"^student\.latency\.mean_ms: Unexpected"),
        (("summary", "kd", "errors", "median"), 1.0, r"^summary\.kd\.errors\.median: Unexpected"),
        (("schema",), 2, r"^schema: .*3"),
        (("schema",), 4, r"^schema: .*3"),
        (("schema",), 3.0, r"^schema: .*integer"),
        (("schema",), ..., r"^schema: .*required"),
    ],
)
def test_what_is_no_result_is_refused_with_its_place(place, value, message):
    with pytest.raises(LimbeckError, match=message):
        from_json(RunResult, changed(plain(run()), place, value))


@pytest.mark.parametrize("key", RUN_KEYS)
def test_a_run_without_one_of_its_keys_is_refused(key):
    with pytest.raises(LimbeckError, match=rf"^{key}: .*required"):
        from_json(RunResult, changed(plain(run()), (key,), ...))


@pytest.mark.parametrize("key", ["arm", "file_bytes", "macs", "member", "parameters", "seed", "test", "validation"])
def test_a_network_without_one_of_its_keys_is_refused(key):
    with pytest.raises(LimbeckError, match=rf"^{key}: .*required"):
        from_json(NetworkResult, changed(plain(full()), (key,), ...))


@pytest.mark.parametrize("values", [None, 3, "text", []])
def test_what_is_no_plain_object_is_refused(values):
    with pytest.raises(LimbeckError):
        from_json(RunResult, values)


# --- in a folder


def test_the_result_of_a_folder_is_read(tmp_path):
    write_sealed(tmp_path / "result.json", plain(run()) | {"recipe": "0" * 64})
    assert read(tmp_path) == run()


def test_a_folder_without_a_result_is_told(tmp_path):
    with pytest.raises(LimbeckError, match=r"contains no result\.json: it has no finished run"):
        read(tmp_path)


def test_a_result_that_was_changed_is_refused(tmp_path):
    file = tmp_path / "result.json"
    write_sealed(file, plain(run()) | {"recipe": "0" * 64})
    file.write_text(file.read_text().replace('"errors": 25', '"errors": 2'))
    with pytest.raises(LimbeckError, match=r"result\.json is damaged, or was changed after it was written"):
        read(tmp_path)


def test_a_file_that_holds_another_result_is_refused_with_its_name_and_place(tmp_path):
    write_sealed(tmp_path / "result.json", plain(run()) | {"seeds": [3.5]})
    with pytest.raises(LimbeckError, match=r"result\.json is not the result of a run: seeds.0: "):
        read(tmp_path)


@pytest.mark.parametrize("other", [2, 4, None])
def test_a_result_of_another_schema_is_refused_with_both(tmp_path, other):
    write_sealed(tmp_path / "result.json", plain(run()) | {"schema": other})
    with pytest.raises(
        LimbeckError,
        match=r"result\.json has schema (2|4|None), .* reads schema 3: use the version",
    ):
        read(tmp_path)


# --- over several seeds


def test_the_deviation_is_the_samples():
    found = spread([2.0, 4.0, 9.0])
    assert found.mean == 5.0
    assert found.deviation == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert found.n == 3


def test_one_value_has_no_deviation():
    assert spread([7]) == Spread(mean=7.0, deviation=None, n=1)


def test_equal_values_deviate_by_0():
    assert spread([3, 3, 3]) == Spread(mean=3.0, deviation=0.0, n=3)


def test_the_figures_are_those_by_hand():
    summary = summarise(
        [
            result("teacher", 0, 2),
            *(result("alone", seed, errors) for seed, errors in enumerate([10, 14, 12])),
            *(result("kd", seed, errors) for seed, errors in enumerate([7, 13, 8])),
        ]
    )
    assert list(summary) == ["teacher", "alone", "kd"]
    assert summary["teacher"].headline == Spread(mean=0.98, deviation=None, n=1)
    assert summary["teacher"].errors == Spread(mean=2.0, deviation=None, n=1)
    assert summary["teacher"].fewer_errors_than_alone is None
    assert summary["alone"].errors == Spread(mean=12.0, deviation=2.0, n=3)
    assert summary["alone"].headline.mean == pytest.approx(0.88)
    assert summary["alone"].headline.deviation == pytest.approx(0.02)
    assert summary["kd"].errors.mean == pytest.approx(28 / 3)
    gained = summary["kd"].fewer_errors_than_alone  # of 3, 1 and 4
    assert gained.mean == pytest.approx(8 / 3)
    deviation = math.sqrt(((3 - 8 / 3) ** 2 + (1 - 8 / 3) ** 2 + (4 - 8 / 3) ** 2) / 2)
    assert gained.deviation == pytest.approx(deviation)
    assert gained.standard_error == pytest.approx(deviation / math.sqrt(3))
    assert gained.n == 3


def test_a_loss_against_the_student_alone_is_negative():
    gained = summarise([result("alone", 0, 5), result("kd", 0, 9)])["kd"].fewer_errors_than_alone
    assert gained == Gain(mean=-4.0, deviation=None, n=1, standard_error=None)


def test_pairs_are_of_one_seed_whatever_the_order():
    results = [result("kd", 2, 1), result("alone", 1, 50), result("kd", 1, 45), result("alone", 2, 4)]
    assert summarise(results) == summarise(reversed(results))
    gained = summarise(results)["kd"].fewer_errors_than_alone
    assert (gained.mean, gained.n) == (4.0, 2)
    assert gained.standard_error == pytest.approx(1.0)


def test_a_seed_without_a_partner_is_no_pair():
    summary = summarise([result("alone", 0, 10), result("kd", 0, 8), result("kd", 1, 2)])
    assert summary["kd"].errors.n == 2
    assert summary["kd"].fewer_errors_than_alone.n == 1
    assert summarise([result("alone", 0, 10), result("kd", 1, 2)])["kd"].fewer_errors_than_alone is None


def test_without_the_student_alone_nothing_is_compared():
    summary = summarise([result("teacher", 0, 2), result("kd", 0, 8)])
    assert set(summary) == {"teacher", "kd"}
    assert summary["kd"].fewer_errors_than_alone is None


def test_teachers_and_the_student_alone_are_not_compared_with_it():
    members = [result("member", 0, 3, member=0), result("member", 0, 5, member=1)]
    summary = summarise([*members, result("teacher", 0, 2), result("alone", 0, 10)])
    assert not any(figures.fewer_errors_than_alone for figures in summary.values())


def test_an_ensembles_members_are_left_out():
    assert set(summarise([result("member", 0, 3, member=0), result("teacher", 0, 2)])) == {"teacher"}


def test_no_result_gives_no_summary():
    assert summarise([]) == {}
