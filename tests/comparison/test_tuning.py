"""The options of a method, found on the validation split: what is searched, what a stop keeps, what files may hold."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from limbeck.comparison import tuning
from limbeck.comparison.tuning import Tried, Tuning, space, with_options
from limbeck.core import LimbeckError
from limbeck.experiment import measuring
from limbeck.experiment.events import Elsewhere, Started, Trained
from limbeck.experiment.run import Experiment
from limbeck.recipe.read import read
from limbeck.train.divergence import Diverged

RECIPE = """\
name: tiny
data: {source: digits, limit: 96}
teacher:
  model: {name: mlp, hidden: [16], dropout: 0.2}
  train: {epochs: 2, batch_size: 32, augment: {shift: 1}}
student:
  model: {name: mlp, hidden: [8], dropout: 0.1}
method: {name: kd, temperature: 3}
train: {epochs: 3, batch_size: 32, optimizer: {name: adam, lr: 0.01}}
seeds: [0, 1]
precision: 32
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def recipe(*settings):
    Path("recipe.yaml").write_text(RECIPE)
    return read(Path("recipe.yaml"), overrides=settings)


def tuned(*settings, folder="tuned", trials=4, search=(), seed=1000):
    return Tuning(recipe(*settings), Path(folder), trials=trials, search=search, seed=seed)


def finish(one):
    return [event for event in one.run() if isinstance(event, Tried)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Four trials that nothing disturbed, and the recipe that they found."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "recipe.yaml").write_text(RECIPE)
    one = Tuning(read(folder / "recipe.yaml"), folder / "tuned", trials=4, search=[], seed=1000)
    return finish(one), one.write()


def test_the_first_trial_is_the_recipe_as_it_is(whole):
    tried, _ = whole
    assert [one.number for one in tried] == [0, 1, 2, 3]
    assert tried[0].options == {"soft": 0.9, "temperature": 3.0, "lr": 0.01}
    assert len({tuple(one.options.values()) for one in tried}) == 4


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_trial_is_scored_as_a_run_of_its_recipe_on_the_validation_split(keep):
    one = tuned(f"train.keep={keep}", "train.epochs=6", "train.optimizer.lr=0.05", trials=2)
    finish(one)
    found = with_options(recipe(f"train.keep={keep}", "train.epochs=6"), one.tried[1].options)
    experiment = Experiment(found, Path("run"))
    experiment.recipe = experiment.recipe.model_copy(update={"seeds": (1000,)})
    list(experiment.run())
    assert experiment.result.student.validation.accuracy == one.tried[1].value


def test_the_recipe_that_was_found_says_where_it_comes_from_and_keeps_the_seeds(whole):
    tried, path = whole
    found, best = read(path), max(tried, key=lambda one: one.value)
    assert path.name == "kd.yaml"
    assert found.method["temperature"] == best.options["temperature"]
    assert found.train.optimizer["lr"] == best.options["lr"]
    assert found.seeds == (0, 1)
    text = path.read_text()
    assert "best of 4 trials with seed 1000" in text
    assert "on the validation split" in text


def test_no_network_reads_the_test_split(monkeypatch):
    one, read_splits = tuned(trials=2), []
    test = Experiment(recipe(), Path("other")).data.test
    real = measuring.Batches

    def spied(split, **options):
        read_splits.append(split)
        return real(split, **options)

    monkeypatch.setattr(measuring, "Batches", spied)
    finish(one)
    assert {split.digest() for split in read_splits} == {one.experiment.data.validation.digest()}
    assert test.digest() not in {split.digest() for split in read_splits}


def test_the_teacher_is_trained_once_for_all_trials_and_starts():
    events = list(tuned(trials=2).run())
    assert [str(event.job) for event in events if isinstance(event, Started)][:1] == ["teacher/seed1000"]
    assert len([event for event in events if isinstance(event, Started) and event.job.teaches]) == 1
    again = [event for event in tuned(trials=3).run() if isinstance(event, Started)]
    assert [str(event.job) for event in again] == ["kd/seed1000-2"]


def test_a_tuning_that_was_stopped_ends_as_one_that_was_not(whole):
    stopped = tuned().run()
    for event in stopped:
        if isinstance(event, Trained) and event.job.member == 2:
            break
    stopped.close()
    assert [one.value for one in tuned().tried] == [one.value for one in whole[0][:2]]
    finish(one := tuned())
    assert [(one.options, one.value) for one in one.tried] == [(one.options, one.value) for one in whole[0]]
    assert [one.number for one in one.tried] == [0, 1, 3, 4]


def test_a_tuning_that_stopped_in_the_first_trial_tries_the_recipe_again():
    stopped = tuned().run()
    next(event for event in stopped if isinstance(event, Started) and not event.job.teaches)
    stopped.close()
    one = tuned(trials=2)
    assert finish(one)[0].options == {"soft": 0.9, "temperature": 3.0, "lr": 0.01}
    assert one.own.number == 1


def test_a_trial_that_another_process_trains_is_not_taken():
    first = tuned(trials=2).run()
    next(event for event in first if isinstance(event, Started) and not event.job.teaches)
    events = list(tuned(trials=2).run(wait=False))
    assert [event.number for event in events if isinstance(event, Tried)] == [1]
    assert Elsewhere("trial 0", waits=False) in events
    assert [one.number for one in (event for event in first if isinstance(event, Tried))] == [0]


def test_the_rate_of_a_student_alone_is_tuned_without_training_the_teacher():
    one = tuned("method=alone", trials=3)
    work, events = one.work, list(one.run())
    assert {event.job for event in events if isinstance(event, Started)} == set(work)
    assert {event.job.arm for event in events if isinstance(event, Started)} == {"alone"}
    assert [list(tried.options) for tried in one.tried] == [["lr"]] * 3
    assert read(one.write()).train.optimizer["lr"] == one.best.options["lr"]
    assert len(finish(tuned(trials=2))) == 2  # the method, in the same folder


def test_a_process_that_was_stopped_before_it_wrote_its_settings_leaves_a_folder_that_resumes():
    tuned(trials=1)
    journal = Path("tuned/kd.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    for count in range(1, len(lines)):
        journal.write_bytes(b"".join(lines[:count]))
        assert len(finish(tuned(trials=1))) == 1


@pytest.mark.parametrize(("stops", "own", "every"), [(False, [1], [0, 1]), (True, [1, 2], [1, 2])])
def test_a_trial_that_another_process_trains_is_waited_for_and_repeated_if_it_is_stopped(stops, own, every):
    first = tuned(trials=2).run()
    next(event for event in first if isinstance(event, Started) and not event.job.teaches)
    one, tried = tuned(trials=2), []
    for event in one.run():
        if isinstance(event, Elsewhere) and event.waits:
            first.close() if stops else list(first)
        tried += [event.number] if isinstance(event, Tried) else []
    assert tried == own
    assert [trial.number for trial in one.tried] == every


def test_work_is_what_is_not_finished():
    finish(tuned(trials=2))
    assert list(map(str, tuned(trials=3).work)) == ["teacher/seed1000", "kd/seed1000-2"]


def test_a_trial_that_diverged_counts_and_does_not_stop_the_tuning(monkeypatch):
    real = Experiment.student

    def student(self, job, *arguments, **options):
        if job.member == 1:
            raise Diverged("soft became NaN")
        return real(self, job, *arguments, **options)

    monkeypatch.setattr(Experiment, "student", student)
    one = tuned(trials=3)
    assert [event.value is None for event in finish(one)] == [False, True, False]
    assert finish(tuned(trials=3)) == []
    assert one.best.number != 1


def test_if_every_training_diverged_there_is_no_recipe(monkeypatch):
    def student(self, job, *arguments, **options):
        raise Diverged("soft became NaN")

    monkeypatch.setattr(Experiment, "student", student)
    one = tuned(trials=2)
    finish(one)
    with pytest.raises(LimbeckError, match="every training diverged"):
        one.write()


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("kd", {"soft": (0.09, 9), "temperature": (1, 20), "lr": (0.002, 0.05)}),
        ("{name: kd, temperature: 30}", {"soft": (0.09, 9), "temperature": (1, 30), "lr": (0.002, 0.05)}),
        ("{name: kd, soft: {name: linear, start: 1, end: 0}}", {"temperature": (1, 20), "lr": (0.002, 0.05)}),
        ("srrl", {"alpha": (0.1, 10), "beta": (0.1, 10), "lr": (0.002, 0.05)}),
        ("alone", {"lr": (0.002, 0.05)}),
    ],
)
def test_weights_temperature_and_rate_are_searched(method, expected):
    own, ranges = space(recipe(f"method={method}"), [])
    assert {key: pytest.approx(value) for key, value in expected.items()} == ranges
    assert own.keys() == ranges.keys()


def test_a_task_of_numbers_has_no_temperature():
    assert "temperature" not in space(recipe(), [], temperature=False)[1]


def test_a_range_that_is_given_replaces_or_adds_one():
    ranges = space(recipe(), ["temperature=2..4", "hard=0..1"])[1]
    assert (ranges["temperature"], ranges["hard"]) == ((2, 4), (0, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temprature=1..2", "kd has no number 'temprature': did you mean 'temperature'?"),
        ("temperature=1", "write it as key=low..high"),
        ("temperature=5..1", "write it as key=low..high"),
        ("temperature=1..nan", "write it as key=low..high"),
        ("temperature=4..9", "the recipe's own temperature, which is tried first, is 3"),
        ("temperature=-1..9", "method.temperature: got -1.0: it must be above 0"),
    ],
)
def test_a_wrong_range_is_an_error(text, message):
    with pytest.raises(LimbeckError, match=message.replace("?", r"\?")):
        space(recipe(), [text])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method=[kd, srrl]"], "the options of one method"),
        (["seeds=[1000]"], "--seed 1000 is a seed of the recipe"),
        (["data.validation=0"], "needs a validation split"),
        (["teacher={table: labels.csv}"], "tuning does not have teacher.table"),
        (["cache=true"], "tuning does not have cache: true"),
    ],
)
def test_what_cannot_be_tuned_is_an_error_before_anything_is_written(settings, message):
    with pytest.raises(LimbeckError, match=message):
        tuned(*settings)
    assert not Path("tuned").exists()


@pytest.mark.parametrize(
    ("settings", "search", "message"),
    [
        (["method.temperature=5"], [], "holds trials with options"),
        ([], ["temperature=2..4"], "holds trials with ranges"),
        (["train.epochs=4"], [], "of another recipe"),
    ],
)
def test_a_folder_of_other_trials_is_not_resumed(settings, search, message):
    finish(tuned(trials=1))
    with pytest.raises(LimbeckError, match=message):
        tuned(*settings, search=search)


@pytest.mark.parametrize(
    "line",
    [b"no JSON\n", b"[" * 100_000 + b"\n", b'{"op_code": 99}\n', b'{"op_code": 4, "study_id": 7}\n', b"\x80\x04}\n"],
)
def test_a_damaged_journal_is_an_error(line):
    finish(tuned(trials=1))
    journal = Path("tuned/kd.jsonl")
    journal.write_bytes(journal.read_bytes() + line + b"{}\n")
    with pytest.raises(LimbeckError, match="is damaged"):
        tuned()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("values", ["x"]),
        ("distribution", '{"name": "CategoricalDistribution", "attributes": {"choices": ["x.py:f"]}}'),
        ("distribution", '{"name": "os.system", "attributes": {}}'),
    ],
)
def test_a_journal_with_another_kind_of_value_is_damaged(key, value):
    finish(tuned(trials=1))
    journal = Path("tuned/kd.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    changed = [{**line, key: value, "param_value_internal": 0} if line.get(key) else line for line in lines]
    journal.write_text("".join(f"{json.dumps(line)}\n" for line in changed))
    with pytest.raises(LimbeckError, match="is damaged"):
        tuned()


def test_a_journal_that_is_a_link_or_too_large_is_not_opened(monkeypatch):
    finish(tuned(trials=1))
    monkeypatch.setattr(tuning, "JOURNAL_BYTES", 100)
    with pytest.raises(LimbeckError, match="allowed are at most 100"):
        tuned()
    Path("tuned/kd.jsonl").rename("elsewhere")
    Path("tuned/kd.jsonl").symlink_to(Path("elsewhere").absolute())
    with pytest.raises(LimbeckError, match="is a link"):
        tuned()


def test_without_optuna_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "limbeck.comparison.tuning")
    with pytest.raises(LimbeckError, match=r"pip install 'limbeck\[tune\]'"):
        importlib.import_module("limbeck.comparison.tuning")
