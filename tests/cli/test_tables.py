"""What a run shows: progress on a terminal and elsewhere, the table and the verdicts."""

import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from torch import nn

from limbeck.cli import progress as watching
from limbeck.cli.doctor import doctor
from limbeck.cli.progress import show
from limbeck.cli.tables import result_table, verdicts
from limbeck.evaluate import ClassFigures, Latency
from limbeck.experiment.events import Finished, Job, Trained
from limbeck.experiment.results import SCHEMA, NetworkResult, RunResult, Spread, spread_text, summarise
from limbeck.experiment.run import Experiment
from limbeck.recipe.read import read
from limbeck.tasks import TASKS
from limbeck.train.loop import Epoch

RECIPE = """\
name: tiny
data: {source: digits, limit: 64}
teacher:
  model: {name: mlp, hidden: [16]}
  train: {epochs: 2, batch_size: 8}
student:
  model: {name: mlp, hidden: [8]}
method: kd
train: {epochs: 2, batch_size: 8}
evaluate: {latency_runs: 1}
precision: 32
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIMBECK_DATA", raising=False)


def experiment(*settings, **options):
    Path("recipe.yaml").write_text(RECIPE)
    return Experiment(read(Path("recipe.yaml"), overrides=settings), Path("run"), **options)


def shown(trial, *, terminal=False, width=200):
    """What a run writes to a console, with a terminal's codes where it is one."""
    console = Console(file=StringIO(), force_terminal=terminal, width=width, markup=False, legacy_windows=False)
    show(trial, console, Path("run"), lambda event: None)
    return console.file.getvalue()


def printed(thing, width=200):
    console = Console(file=StringIO(), width=width)
    console.print(thing)
    return console.file.getvalue()


def measured(arm, seed, errors, *, agreement=None, study=None):
    """A network's result with known figures."""
    return NetworkResult(
        arm=arm,
        seed=seed,
        member=None,
        test=ClassFigures(1 - errors / 10_000, errors, 10_000, cross_entropy=0.1, ece=0.01, agreement=agreement),
        validation=None,
        parameters=2_395_210 if arm == "teacher" else 1_276_810,
        macs=2_392_800 if arm == "teacher" else 1_275_200,
        file_bytes=4,
        bias_shift=study,
    )


def finished(*, seeds=(0, 1), errors=(67, 146, 74), arms=("teacher", "alone", "kd"), study=None):
    """A run with known figures."""
    runs, shown = [], {}
    for seed in seeds:
        changes, alike = {"alone": seed, "kd": -10 * seed}, 0.9 + 0.02 * seed
        for arm, wrong in zip(("teacher", "alone", "kd"), errors, strict=True):
            agreement = None if arm == "teacher" else alike
            studied = study if arm == "kd" else None
            if arm in arms:
                runs.append(measured(arm, seed, wrong + changes.get(arm, 0), agreement=agreement, study=studied))
    for one in runs[: len(arms)]:
        times = (0.5, 0.75) if one.arm == "teacher" else (0.1234, 0.2345)
        shown[one.arm] = replace(one, latency=Latency(*times, runs=10))
    return RunResult(
        schema=SCHEMA,
        name="hinton_mnist",
        task="classification",
        metric=None,
        method="kd",
        seeds=seeds,
        teacher=shown.get("teacher"),
        student=shown["kd"],
        alone=shown.get("alone"),
        summary=summarise(runs),
        splits={},
        notes=(),
        decided={},
        runs=tuple(runs),
    )


def told(result):
    """What is said of a run of the recipe above."""
    Path("recipe.yaml").write_text(RECIPE)
    return list(verdicts(result, read(Path("recipe.yaml"))))


def cells(text, arm):
    """A row of the table, cell by cell, whatever the table's lines are drawn with."""
    row = next(line for line in text.splitlines() if re.match(rf"\W*{arm}\b", line))
    return re.findall(r"\d[\d.,]*(?: ± [\d.,]+)?", row)


def test_the_table_has_the_arms_and_their_figures():
    text = printed(result_table(finished()))
    assert "hinton_mnist: test split, 2 seeds, mean ± deviation" in text
    assert re.search(r"errors of .*\n.* 10,000 ", text)  # a heading of two lines
    assert cells(text, "teacher") == ["99.33 ± 0.00", "67.0 ± 0.0", "2,395,210", "2,392,800", "0.500", "0.750"]
    assert cells(text, "alone") == [
        "98.53 ± 0.01", "146.5 ± 0.7", "91.00", "1,276,810", "1,275,200", "0.123", "0.234"
    ]  # fmt: skip
    assert cells(text, "kd")[:3] == ["99.31 ± 0.07", "69.0 ± 7.1", "91.00"]


def test_one_seed_has_no_deviation():
    text = printed(result_table(finished(seeds=(0,))))
    assert "test split, 1 seed " in text
    assert "±" not in text
    assert cells(text, "kd") == ["99.26", "74.0", "90.00", "1,276,810", "1,275,200", "0.123", "0.234"]


def test_no_number_is_cut_where_the_output_is_no_terminal():
    text = printed(result_table(finished()), width=80)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for number in ("2,395,210", "2,392,800", "1,276,810", "0.500", "0.750", "99.33", "69.0", "91.00"):
        assert number in text


def test_the_gain_is_told_with_its_doubt():
    assert told(finished()) == ["kd: 77.5 fewer errors than alone (standard error 5.5, 2 pairs)"]
    assert told(finished(seeds=(0,))) == ["kd: 72.0 fewer errors than alone (one pair, so no standard error)"]
    tie = finished(seeds=(0,), errors=(60, 70, 70))
    assert told(tie) == ["kd: no difference from alone in errors (one pair, so no standard error)"]


def test_nothing_is_told_of_a_gain_without_a_baseline():
    assert told(finished(arms=("teacher", "kd"))) == []


def test_the_omitted_class_is_told_with_the_bias_of_both_kinds():
    study = {
        "classes": [3],
        "before": {"errors": 206, "share_right": 0.868},
        "validation_tuned": {"delta": 3.4, "errors": 110, "share_right": 0.985},
        "test_tuned": {"delta": 3.5, "errors": 109, "share_right": 0.986},
    }
    assert told(finished(seeds=(0,), study=study))[1:] == [
        "kd seed 0, classes [3]: 206 errors, 86.8 % of them correct; bias +3.4 (chosen on validation): 110 errors, "
        "98.5 % right; bias +3.5 (tuned on test, as the paper did): 109 errors, 98.6 % right"
    ]


def test_a_run_shows_the_omitted_class():
    text = shown(experiment("train.exclude=[3]", "evaluate.shift_bias=[3]"))
    assert re.search(r"^kd seed 0, classes \[3\]: \d+ errors, .*tuned on test", text, re.MULTILINE)
    assert re.search(r"^alone seed 0, classes \[3\]", text, re.MULTILINE)


def test_a_spread_is_written_in_the_digits_asked_for():
    assert spread_text(Spread(0.98765, 0.0012, 3), TASKS["classification"].headline) == "98.77 ± 0.12"
    assert spread_text(Spread(74.04, None, 1), TASKS["classification"].others[0]) == "74.0"


def test_what_is_run_is_told_first_and_where_it_is_written_last():
    text = shown(experiment())
    first, *_, last = text.splitlines()
    assert first.startswith("tiny: 64 training, 64 validation and 64 test samples of 10 classes; on cpu in 32 bits (")
    assert last == "written: run/result.json and run/student.safetensors"


def test_elsewhere_than_on_a_terminal_each_network_is_told_in_plain_lines():
    text = shown(experiment())
    assert "\x1b" not in text
    assert "━" not in text.split("tiny: test split")[0]
    lines = [line for line in text.splitlines() if ": epoch " not in line]
    _, *origins, teacher, note, expected, kept, alone, distilled = lines[:10]
    assert sorted(line.partition(":")[0] for line in origins) == ["test", "train", "validation"]
    assert note.startswith("note: teacher/seed0: the accuracy of the teacher is not clearly higher than chance")
    assert expected.startswith("teacher/seed0: the store of its outputs will take about 2.6 kB (")
    assert re.fullmatch(r"teacher/seed0: stored 64 rows of its outputs \(about 2\.6 kB in .*/teacher-seed0\)", kept)
    for line, job in ((teacher, "teacher"), (alone, "alone"), (distilled, "kd")):
        assert re.fullmatch(rf"{job}/seed0: test accuracy \d+\.\d\d %, \d+ errors of 64", line)


def test_elsewhere_than_on_a_terminal_a_long_training_is_told_of(monkeypatch):
    monkeypatch.setattr(watching, "LINE_EVERY", -1.0)
    text = shown(experiment())
    pattern = r"^\[\d/3\] {}: epoch {}/2, {}, validation \d+\.\d\d %, [\d,]+ samples/s(, \d:\d\d:\d\d left)?$"
    for job, number, terms in (
        ("teacher/seed0", 1, r"hard \d+\.\d{4}"),
        ("alone/seed0", 2, r"hard \d+\.\d{4}"),
        ("kd/seed0", 1, r"hard \d+\.\d{4}, soft \d+\.\d{4}"),
        ("kd/seed0", 2, r"hard \d+\.\d{4}, soft \d+\.\d{4}"),
    ):
        assert re.search(pattern.format(job, number, terms), text, re.MULTILINE), (job, number)


def test_an_epoch_is_told_without_validation_where_there_is_none():
    epoch = Epoch("kd", 0, 3, 9, {"hard": 0.5, "soft": 1.25}, 1.0, 3000, 2.0, dict, nn.Module())
    line = watching._trained(Trained(Job("kd", 4), epoch, None), "kd/seed4")
    assert line == "kd/seed4: epoch 3/9, hard 0.5000, soft 1.2500, 1,500 samples/s"


def test_a_network_that_was_there_is_told_as_such():
    line = watching._finished(Finished(Job("member", 4, 1), measured("member", 4, 88), reused=True))
    assert line == "member/seed4-1 (not trained in this run): test accuracy 99.12 %, 88 errors of 10,000"


def test_a_terminal_shows_a_bar_with_the_speed_and_the_time_left(monkeypatch):
    monkeypatch.setattr(watching, "LINE_EVERY", -1.0)
    text = shown(experiment("train.epochs=60"), terminal=True)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    frames = [line for line in re.split(r"[\r\n]", plain) if re.match(r"\[\d/3\] (alone|kd)/seed0 .*━", line)]
    assert len(frames) >= 4
    told = r"\d+% \d:\d\d:\d\d left epoch \d+/60, loss \d\.\d{4}, validation \d+\.\d\d %, [\d,]+ samples/s\s*$"
    assert any(re.search(told, frame) for frame in frames)
    parts = [int(match[1]) for frame in frames if (match := re.search(r"(\d+)%", frame))]
    assert parts == sorted(parts)  # of the whole run
    assert parts[-1] > parts[0]
    assert "soft" not in plain  # the plain lines are for elsewhere
    assert re.search(r"kd/seed0: test accuracy", plain)


def test_one_bar_counts_the_whole_run_by_what_each_training_takes():
    jobs = [Job("teacher", 0), Job("alone", 0), Job("kd", 0)]
    account = watching._Account(dict(zip(jobs, (60.0, 10.0, 30.0), strict=True)))
    assert (account.done, account.total, account.left) == (0.0, 100.0, "")
    account.reach(jobs[0], 1.0, found=True)  # as a resumed run has it
    assert (account.done, account.left) == (60.0, "")  # nothing is known of the speed yet
    account.begin(jobs[1], 0.0)
    account.advance(jobs[1], 0.5)
    assert account.done == 65.0
    account._start -= 5  # the five units took five seconds
    assert account.left == "0:00:35"
    assert account.place(jobs[2]) == "[3/3] kd/seed0"


def test_a_run_ends_with_a_full_bar():
    trial = experiment("train.epochs=3")
    account = watching._Account(trial.work)
    assert set(trial.work) == {Job("teacher", 0), Job("alone", 0), Job("kd", 0)}
    for event in trial.run():
        if isinstance(event, Finished):
            account.reach(event.job, 1.0)
    assert account.done == pytest.approx(account.total)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_resumed_training_is_told_as_such(monkeypatch, terminal):
    monkeypatch.setattr("limbeck.experiment.folder.CHECKPOINT_SHARE", 1e9)
    events = experiment().run()
    for event in events:
        if isinstance(event, Trained) and event.job.arm == "alone":
            break
    events.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(experiment(resume=True), terminal=terminal))
    assert "teacher/seed0 (not trained in this run): test accuracy" in text
    assert "alone/seed0: resuming from its checkpoint" in text
    assert "kd/seed0: going on" not in text
    assert re.search(r"kd/seed0: test accuracy", text)


def test_the_doctor_says_what_is_wrong_with_the_data_root(monkeypatch, capsys):
    monkeypatch.setenv("LIMBECK_DATA", "nowhere")
    monkeypatch.setenv("COLUMNS", "200")
    doctor()
    assert "the data root nowhere (from LIMBECK_DATA) is not a folder" in capsys.readouterr().out


def test_a_stage_is_named_where_it_is_not_the_methods_own():
    epoch = Epoch("hint", 0, 3, 9, {"hint": 0.5}, 0.5, 1500, 1.0, dict, nn.Module())
    assert watching._trained(Trained(Job("fitnets", 4), epoch, None), "[2/2] fitnets/seed4").startswith(
        "[2/2] fitnets/seed4: epoch 3/9 of hint, hint"
    )


def test_a_loss_is_told_as_more_errors():
    assert told(finished(seeds=(0,), errors=(1, 3, 7))) == [
        "kd: 4.0 more errors than alone (one pair, so no standard error)"
    ]
