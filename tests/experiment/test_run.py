"""A recipe run: what it writes, that it can be repeated and resumed to the bit, and what it never reads."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from limbeck.core import LimbeckError, Stage
from limbeck.data import Batches, load, normalise
from limbeck.evaluate import metrics
from limbeck.evaluate.bias import best_shift
from limbeck.experiment import fit as fit_module
from limbeck.experiment import measuring, results
from limbeck.experiment import run as experiment_module
from limbeck.experiment.events import Finished, Job, Started, StoreEstimate, StoreProgress, Trained
from limbeck.experiment.run import Experiment
from limbeck.methods import METHODS
from limbeck.models import load_network
from limbeck.options import signature
from limbeck.recipe.read import dump, read
from limbeck.recipe.signatures import known

RECIPE = """\
name: tiny
data: {source: digits, limit: 96}
teacher:
  model: {name: mlp, hidden: [16], dropout: 0.2}
  train: {epochs: 3, batch_size: 32, augment: {shift: 1}}
student:
  model: {name: mlp, hidden: [8], dropout: 0.1}
method: kd
train: {epochs: 3, batch_size: 32}
evaluate: {latency_runs: 1}
precision: 32  # two runs of auto may come to different ones
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIMBECK_DATA", raising=False)


def recipe(*settings):
    Path("recipe.yaml").write_text(RECIPE)
    return read(Path("recipe.yaml"), overrides=settings)


def experiment(*settings, folder="run", **options):
    return Experiment(recipe(*settings), Path(folder), **options)


def finish(trial):
    """Run to the end; the events."""
    return list(trial.run())


def result_of(folder):
    return results.read(Path(folder))


def lines_of(folder):
    """The log, without the times."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if "second" not in key} for line in lines]


def untimed(result):
    """A result without the times, which differ from run to run."""
    shown = {role: getattr(result, role) for role in ("teacher", "student", "alone")}
    return replace(result, **{role: one and replace(one, latency=None) for role, one in shown.items()})


def same_runs(one, other):
    """Whether two run folders hold the same networks, log and figures, all to the bit."""
    files = {path.relative_to(one) for path in Path(one).rglob("*.safetensors")}
    assert files == {path.relative_to(other) for path in Path(other).rglob("*.safetensors")}
    assert files
    for file in files:
        assert same(load_file(Path(one) / file), load_file(Path(other) / file)), file
    assert lines_of(one) == lines_of(other)
    assert untimed(result_of(one)) == untimed(result_of(other))
    return True


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def finite(value):
    """Whether every number in plain values is."""
    if isinstance(value, dict | list):
        return all(finite(inner) for inner in (value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def has_figures(network, *, timed):
    """The parts that apply to a network are there, and the others are not."""
    likeness = (network.test.agreement, network.test.kl_to_teacher)
    assert [figure is None for figure in likeness] == [network.arm == "teacher"] * 2
    assert (network.validation.agreement, network.validation.kl_to_teacher) == (None, None)
    assert network.macs is not None
    assert len(network.weights_sha256) == 64
    assert (network.latency is not None) == timed
    assert (network.trained_as is not None) == (network.arm == "alone")
    assert (network.member, network.teacher_after, network.bias_shift) == (None, None, None)


def test_the_result_has_what_applies_to_each_network():
    finish(experiment("seeds=[3,5]"))
    result = result_of("run")
    assert (result.schema, result.name, result.method, result.seeds) == (3, "tiny", "kd", (3, 5))
    shown = (result.teacher, result.student, result.alone)
    assert [one.name for one in shown] == ["teacher/seed3", "kd/seed3", "alone/seed3"]
    assert [(run.arm, run.seed) for run in result.runs] == [
        (arm, seed) for seed in (3, 5) for arm in ("teacher", "alone", "kd")
    ]
    for one in shown:
        has_figures(one, timed=True)
        assert replace(one, latency=None) in result.runs
    for one in result.runs:
        has_figures(one, timed=False)
    for arm, summary in result.summary.items():
        assert (summary.headline.n, summary.errors.n) == (2, 2)
        assert (summary.fewer_errors_than_alone is not None) == (arm == "kd")
    assert set(result.splits) == {"train", "validation", "test"}
    assert result.decided["precision"] == "32"
    assert finite(json.loads(Path("run/result.json").read_text()))


def test_the_result_is_what_is_written():
    trial = experiment()
    finish(trial)
    assert trial.result == result_of("run")


def test_there_is_no_result_before_the_run_is_over():
    trial = experiment()
    stop_after(trial, 1)
    with pytest.raises(LimbeckError, match="the run is not finished"):
        _ = trial.result


def test_the_summary_is_of_the_runs():
    finish(experiment("seeds=[3,5]"))
    result = result_of("run")
    errors = {(run.arm, run.seed): run.test.errors for run in result.runs}
    first, second = (errors["alone", seed] - errors["kd", seed] for seed in (3, 5))
    gained = result.summary["kd"].fewer_errors_than_alone
    assert gained.mean == pytest.approx((first + second) / 2)
    assert gained.standard_error == pytest.approx(abs(first - second) / 2)
    assert result.summary["alone"].errors.mean == (errors["alone", 3] + errors["alone", 5]) / 2


def test_the_figures_are_those_of_the_networks_written():
    trial = experiment()
    finish(trial)
    result, data = result_of("run"), trial.data
    logits, shown = {}, {"teacher": result.teacher, "alone": result.alone, "student": result.student}
    for role, file in (("teacher", "teacher/seed0/teacher"), ("alone", "alone/seed0/student"), ("student", "student")):
        network, spec = load_network(Path(f"run/{file}.safetensors"))
        assert (spec.labels, spec.shape) == (data.classes, data.shape)
        with torch.no_grad():
            logits[role] = network.eval()(normalise(data.test.inputs, data.mean, data.std))
        guide = None if role == "teacher" else logits["teacher"]
        expected = asdict(metrics(logits[role], data.test.targets, teacher_logits=guide))
        assert asdict(shown[role].test) == pytest.approx(expected)
        assert shown[role].parameters == sum(parameter.numel() for parameter in network.parameters())


def test_the_log_has_one_line_an_epoch_with_every_term():
    events = finish(experiment("seeds=[3,5]"))
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    wanted = [(f"{arm}/seed{seed}", n) for seed in (3, 5) for arm in ("teacher", "alone", "kd") for n in (1, 2, 3)]
    assert [(line["job"], line["epoch"]) for line in lines] == wanted
    assert [(str(event.job), event.epoch.number) for event in events if isinstance(event, Trained)] == wanted
    for line in lines:
        kd = line["job"].startswith("kd")
        assert set(line["terms"]) == ({"hard", "soft"} if kd else {"hard"})
        assert (line["stage"], line["stage_number"]) == ("kd" if kd else "alone", 0)
        weighted = 0.1 * line["terms"]["hard"] + 0.9 * line["terms"]["soft"] if kd else line["terms"]["hard"]
        assert line["loss"] == pytest.approx(weighted, rel=1e-5)
        assert 0 <= line["validation_accuracy"] <= 1
        assert line["images_per_second"] > 0
        assert line["seconds"] > 0
    last = {line["job"]: line["validation_accuracy"] for line in lines if line["epoch"] == 3}
    for run in result_of("run").runs:
        assert run.validation.accuracy == last[run.name]


def test_the_events_say_what_begins_and_ends():
    events = finish(experiment())
    kinds = [
        (type(event), str(event.job))
        for event in events
        if not isinstance(event, Trained | StoreEstimate | StoreProgress)
    ]
    assert kinds == [(kind, f"{arm}/seed0") for arm in ("teacher", "alone", "kd") for kind in (Started, Finished)]
    assert not any(event.done for event in events if isinstance(event, Started))
    assert not any(event.reused for event in events if isinstance(event, Finished))


def test_the_environment_says_where_it_ran():
    trial = experiment()
    finish(trial)
    environment = json.loads(Path("run/environment.json").read_text())
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert (environment["device"], environment["precision"]) == ("cpu", trial.engine.precision)
    assert environment["why"] == trial.engine.reason


def test_the_dumped_recipe_runs_again_to_the_same_bits(tmp_path):
    trial = experiment("seeds=[3,5]", "train.exclude=[4]", "evaluate.shift_bias=[4]")
    finish(trial)
    again = read(tmp_path / "run" / "recipe.yaml")
    assert again == trial.recipe
    text = Path("run/recipe.yaml").read_text()
    assert text.startswith(dump(again))
    digests = text.removeprefix(dump(again)).splitlines()  # of what the recipe names and does not hold
    assert [line.partition(":")[0] for line in digests] == ["# train", "# validation", "# test"]
    finish(Experiment(again, Path("again")))
    assert same_runs("run", "again")
    assert Path("again/recipe.yaml").read_text() == Path("run/recipe.yaml").read_text()


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    finish(experiment())
    torch.manual_seed(99)
    finish(experiment(folder="again"))
    finish(experiment("seeds=[1]", folder="other"))
    assert same_runs("run", "again")
    for arm, file in (("teacher", "teacher"), ("alone", "student"), ("kd", "student")):
        one, other = (
            load_file(f"{run}/{arm}/seed{seed}/{file}.safetensors") for run, seed in (("run", 0), ("other", 1))
        )
        assert not same(one, other)


def test_a_seed_of_several_is_the_same_as_alone():
    finish(experiment("seeds=[0,1]"))
    finish(experiment("seeds=[1]", folder="second"))
    for arm, file in (("teacher", "teacher"), ("alone", "student"), ("kd", "student")):
        name = f"{arm}/seed1/{file}.safetensors"
        assert same(load_file(f"run/{name}"), load_file(f"second/{name}"))


def test_a_teacher_with_a_seed_of_its_own_is_trained_once():
    events = finish(experiment("seeds=[0,1]", "teacher.seed=7"))
    assert [str(event.job) for event in events if isinstance(event, Started)] == [
        "teacher/seed7",
        "alone/seed0",
        "kd/seed0",
        "alone/seed1",
        "kd/seed1",
    ]
    finish(experiment("seeds=[1]", "teacher.seed=7", folder="second"))
    assert same(load_file("run/kd/seed1/student.safetensors"), load_file("second/kd/seed1/student.safetensors"))


class Watch:
    """What each network began as and was fed."""

    def __init__(self, monkeypatch):
        self.starts, self.orders, self.states = [], [], []
        really_run = fit_module.run

        def run(stages, networks, batches, engine, **more):
            self.starts.append({name: value.clone() for name, value in networks["student"].state_dict().items()})
            self.states.append(torch.get_rng_state())
            order = []
            self.orders.append(order)

            class Seen:
                samples = batches.samples

                def __len__(self):
                    return len(batches)

                def __call__(self, epoch):
                    for batch in batches(epoch):
                        order.append((epoch, batch.view, batch.index.tolist(), batch.inputs.sum().item()))
                        yield batch

                def example_inputs(self):
                    return batches.example_inputs()

            yield from really_run(stages, networks, Seen(), engine, **more)

        monkeypatch.setattr(fit_module, "run", run)


def test_alone_and_method_start_from_the_same_weights_and_see_the_same_data(monkeypatch):
    watch = Watch(monkeypatch)
    finish(experiment("train.augment={shift: 1}"))
    _, alone, kd = watch.starts
    assert same(alone, kd)
    assert torch.equal(watch.states[1], watch.states[2])  # so that dropout falls alike
    teacher, first, second = watch.orders
    assert first == second
    assert len(first) == 9
    assert [indices for _, _, indices, _ in teacher] != [indices for _, _, indices, _ in first]
    assert len({tuple(indices) for _, _, indices, _ in first}) == 9


def test_the_teachers_file_and_network_stay_as_they_were_while_students_learn():
    trial = experiment("teacher.model={name: resnet8}", "data.limit=32", "teacher.train.epochs=1", "train.epochs=2")
    content = before = None
    for event in trial.run():
        if isinstance(event, Finished) and event.job.arm == "teacher":
            content = Path("run/teacher/seed0/teacher.safetensors").read_bytes()
        elif isinstance(event, Started) and event.job.arm == "alone":
            before = {name: value.clone() for name, value in trial.networks["teacher"].state_dict().items()}
    assert content == Path("run/teacher/seed0/teacher.safetensors").read_bytes()
    after = trial.networks["teacher"].state_dict()
    assert any("running_mean" in name for name in after)
    assert same(after, before)
    assert same(load_file("run/teacher/seed0/teacher.safetensors"), before)


def test_without_validation_there_are_no_validation_figures():
    finish(experiment("data.validation=0"))
    result = result_of("run")
    for network in (result.teacher, result.student, result.alone, *result.runs):
        assert network.validation is None
    assert {line["validation_accuracy"] for line in lines_of("run")} == {None}


def test_without_a_baseline_nothing_is_compared():
    trial = experiment("baseline=false")
    finish(trial)
    result = result_of("run")
    assert trial.arms == ("kd",)
    assert result.alone is None
    assert set(result.summary) == {"teacher", "kd"}
    assert result.summary["kd"].fewer_errors_than_alone is None
    assert not Path("run/alone").exists()


def test_the_omitted_class_is_studied(monkeypatch):
    watch = Watch(monkeypatch)
    lasting = ("train.epochs=8", "train.optimizer={name: adam, lr: 1e-2}")
    trial = experiment("train.exclude=[3]", "evaluate.shift_bias=['3']", "data.limit=200", *lasting)
    finish(trial)
    result = result_of("run")
    tuned = {"errors": int, "samples_of_classes": int, "errors_on_classes": int, "share_right": float}
    for student in (result.student, result.alone):
        study = student.bias_shift
        assert list(study) == ["classes", "before", "validation_tuned", "test_tuned"]
        for name in ("before", "validation_tuned", "test_tuned"):
            kinds = tuned if name == "before" else {"delta": float, **tuned}
            assert {key: type(value) for key, value in study[name].items()} == kinds
        assert study["classes"] == [3]
        assert study["before"]["errors"] == student.test.errors
        assert study["test_tuned"]["errors"] <= study["validation_tuned"]["errors"]
        network, _ = load_network(Path("run") / student.name / "student.safetensors")
        split, data = trial.data.validation, trial.data
        with torch.no_grad():
            logits = network.eval()(normalise(split.inputs, data.mean, data.std))
        assert study["validation_tuned"]["delta"] == best_shift(logits, split.targets, [3])
    assert study["validation_tuned"]["delta"] != study["test_tuned"]["delta"]  # of the student alone
    assert result.teacher.bias_shift is None
    assert study["before"]["share_right"] == 0.0
    omitted = int((trial.data.train.targets == 3).sum())
    teacher, alone, kd = ({index for _, _, indices, _ in order for index in indices} for order in watch.orders)
    assert len(teacher) == len(trial.data.train)
    assert len(alone) == len(kd) == len(trial.data.train) - omitted


def test_the_split_for_testing_is_never_trained_on(monkeypatch):
    splits, trained = [], []
    really = Batches.__init__

    def watched(self, split, *, shuffle=True, **options):
        (trained if shuffle else splits).append(split.inputs)
        really(self, split, shuffle=shuffle, **options)

    monkeypatch.setattr(Batches, "__init__", watched)
    trial = experiment("data.limit=null")
    test = trial.data.test.inputs
    unread = {image.numpy().tobytes() for image in test}
    events = trial.run()
    for event in events:
        if isinstance(event, Started):
            read_for_testing = sum(inputs is test for inputs in splits)
        if isinstance(event, Trained):  # nothing has looked at the test split since this training began
            assert sum(inputs is test for inputs in splits) == read_for_testing
    assert len(trained) >= 3
    assert any(inputs is test for inputs in splits)
    for inputs in trained:
        assert not unread & {image.numpy().tobytes() for image in inputs}


@pytest.mark.parametrize("members", [1, 2])
def test_the_split_for_testing_is_read_once_for_each_network(monkeypatch, members):
    read, really = [], measuring.outputs_of

    def watched(network, split, data, engine, *, name="network"):
        if split is data.test:
            read.append(name)
        return really(network, split, data, engine, name=name)

    for module in (measuring, fit_module, experiment_module):
        monkeypatch.setattr(module, "outputs_of", watched)
    trial = experiment("seeds=[0,1]", f"teacher.members={members}", "evaluate.shift_bias=[3]")
    finish(trial)
    members = [f"member/seed{seed}-{number}" for seed in (0, 1) for number in (0, 1)] if members > 1 else []
    teachers = ["teacher", "teacher"] if members else ["teacher/seed0", "teacher/seed1"]
    students = [f"{arm}/seed{seed}" for seed in (0, 1) for arm in ("alone", "kd")]
    assert sorted(read) == sorted(members + teachers + students)


def test_a_finished_run_does_not_predict_the_split_for_testing_again(monkeypatch):
    finish(experiment("seeds=[0,1]"))
    monkeypatch.setattr(experiment_module, "outputs_of", None)
    monkeypatch.setattr(fit_module, "outputs_of", None)
    finish(experiment("seeds=[0,1]", resume=True))


def test_what_is_tested_does_not_change_what_is_trained(monkeypatch):
    finish(experiment())

    def other_test_split(source, **options):
        loaded = load(source, **options)
        loaded.test.inputs.zero_()
        return loaded

    monkeypatch.setattr(experiment_module, "load", other_test_split)
    finish(experiment(folder="other"))
    assert same(load_file("run/student.safetensors"), load_file("other/student.safetensors"))
    assert lines_of("run") == lines_of("other")
    assert result_of("run").student.test != result_of("other").student.test


def test_a_stage_that_comes_twice_is_kept_after_the_first_time(monkeypatch):
    def twice(setup):
        return METHODS["alone"](setup) * 2

    monkeypatch.setitem(METHODS, "twice", twice)
    monkeypatch.setitem(known().methods, "twice", signature(twice))
    finish(experiment("method=twice"))
    assert list(Path("run").rglob("after_*.safetensors"))


def two_stages(setup, *, temperature: float = 4.0):
    """A method whose student learns in two stages."""
    (soft,) = METHODS["kd"](setup, temperature=temperature)
    (hard,) = METHODS["alone"](setup)
    return (
        Stage("first", soft.terms, setup.epochs, setup.optimizer, setup.schedule),
        Stage("second", hard.terms, setup.epochs, setup.optimizer, setup.schedule),
    )


INTERRUPTED = ("method=two", "seeds=[0,1]", "data.limit=64")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two seeds that nothing interrupted; the method is there while this module's tests run."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "two", two_stages)
        patch.setitem(known().methods, "two", signature(two_stages))
        patch.chdir(folder)
        finish(experiment(*INTERRUPTED))
        yield folder / "run"


def stop_after(trial, epochs):
    """Stop an experiment in the middle, as a crash would, after so many epochs in all."""
    events = trial.run()
    for event in events:
        epochs -= isinstance(event, Trained)
        if epochs == 0:
            break
    events.close()
    return event


@pytest.mark.parametrize(
    ("epochs", "job", "left"),
    [
        (1, "teacher/seed0", 2),
        (3, "teacher/seed0", 0),
        (4, "alone/seed0", 2),
        (6, "alone/seed0", 0),
        (8, "two/seed0", 4),
        (9, "two/seed0", 3),  # the end of the first stage
        (11, "two/seed0", 1),  # in the second
        (14, "teacher/seed1", 1),
    ],
)
def test_an_interrupted_run_is_resumed_to_the_same_bits(monkeypatch, whole, epochs, job, left):
    monkeypatch.setattr("limbeck.experiment.folder.CHECKPOINT_SHARE", 1e9)  # a checkpoint after every epoch
    assert str(stop_after(experiment(*INTERRUPTED), epochs).job) == job
    assert not Path("run/result.json").exists()
    resumed = finish(experiment(*INTERRUPTED, resume=True))
    assert same_runs("run", whole)
    started = [event for event in resumed if isinstance(event, Started)]
    assert (str(started[0].job), started[0].done > 0) == (job, True)
    assert [event.done for event in started[1:]] == [0] * (len(started) - 1)
    assert sum(isinstance(event, Trained) and str(event.job) == job for event in resumed) == left


MIXED = ("train.mixup=0.2", "train.label_smoothing=0.1", "train.balanced=true", "teacher.train.mixup=1.0")


@pytest.mark.parametrize("epochs", [2, 5, 8])
def test_a_run_with_mixed_inputs_is_resumed_to_the_same_bits(monkeypatch, epochs):
    monkeypatch.setattr("limbeck.experiment.folder.CHECKPOINT_SHARE", 1e9)  # a checkpoint after every epoch
    finish(experiment(*MIXED, folder="whole"))
    stop_after(experiment(*MIXED), epochs)
    finish(experiment(*MIXED, resume=True))
    assert same_runs("run", "whole")


def test_mixing_changes_the_students_and_the_teacher_is_not_stored():
    finish(experiment(folder="plain"))
    mixed = experiment("train.mixup=0.2")
    finish(mixed)
    assert (experiment(folder="other").recipe.cache.use, mixed.recipe.cache.use) == (True, False)
    assert result_of("run").teacher.test == result_of("plain").teacher.test
    for name in ("alone", "kd"):
        weights = [load_file(Path(folder, name, "seed0", "student.safetensors")) for folder in ("plain", "run")]
        assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_run_with_unlabelled_images_counts_them_and_measures_labelled_ones():
    for name, shade in (("dark", 40), ("light", 200), ("more", 120)):
        Path("photos", name).mkdir(parents=True)
        for number in range(20):
            Image.new("L", (4, 4), shade + number).save(f"photos/{name}/{number}.png")
    source = "{source: folder, path: photos, unlabelled: more, validation: 4}"
    trial = experiment(f"data={source}", "train.batch_size=4")
    finish(trial)
    result = result_of("run")
    assert "20 of 48 training samples are unlabelled" in result.notes
    assert (result.student.test.samples, result.student.validation.samples) == (8, 4)
    assert all(math.isfinite(line["loss"]) for line in lines_of("run"))
    with pytest.raises(LimbeckError, match="dkd needs the class index of each training sample"):
        experiment(f"data={source}", "method=dkd", folder="other")
    with pytest.raises(LimbeckError, match="balanced draws samples by their class, but 20 samples are unlabelled"):
        experiment(f"data={source}", "train.balanced=true", folder="other")


@pytest.mark.parametrize("epochs", [2, 5, 11])
def test_epochs_that_no_checkpoint_holds_are_trained_again_to_the_same_bits(monkeypatch, whole, epochs):
    monkeypatch.setattr("limbeck.experiment.folder.CHECKPOINT_SHARE", 1e-9)  # the first epoch's is the only checkpoint
    stop_after(experiment(*INTERRUPTED), epochs)
    finish(experiment(*INTERRUPTED, resume=True))
    assert same_runs("run", whole)


def test_a_run_that_is_interrupted_again_and_again_comes_to_the_same_bits(monkeypatch, whole):
    monkeypatch.setattr("limbeck.experiment.folder.CHECKPOINT_SHARE", 1e9)
    stop_after(experiment(*INTERRUPTED), 2)
    for _ in range(6):
        stop_after(experiment(*INTERRUPTED, resume=True), 3)
    finish(experiment(*INTERRUPTED, resume=True))
    assert same_runs("run", whole)


@pytest.mark.parametrize("arm", ["teacher", "alone", "kd"])
def test_a_run_that_stops_between_two_networks_is_resumed(arm):
    finish(experiment(folder="whole"))
    events = experiment().run()
    for event in events:
        if isinstance(event, Finished) and event.job.arm == arm:
            break
    events.close()
    resumed = finish(experiment(resume=True))
    assert same_runs("run", "whole")
    reused = [event.job.arm for event in resumed if isinstance(event, Finished) and event.reused]
    assert reused == ["teacher", "alone", "kd"][: ["teacher", "alone", "kd"].index(arm) + 1]


def test_an_ensemble_that_is_interrupted_is_resumed(monkeypatch):
    monkeypatch.setattr("limbeck.experiment.folder.CHECKPOINT_SHARE", 1e9)
    settings = ("teacher.members=2",)
    finish(experiment(*settings, folder="whole"))
    assert stop_after(experiment(*settings), 5).job == Job("member", 0, 1)
    finish(experiment(*settings, resume=True))
    assert same_runs("run", "whole")


def test_a_log_whose_last_line_was_cut_short_is_repaired(monkeypatch):
    monkeypatch.setattr("limbeck.experiment.folder.CHECKPOINT_SHARE", 1e9)
    finish(experiment(folder="whole"))
    stop_after(experiment(), 5)
    log = Path("run/metrics.jsonl")
    for cut in (1, 30):
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join(lines) + lines[-1][:-cut])
    finish(experiment(resume=True))
    assert same_runs("run", "whole")


def test_a_finished_run_that_is_resumed_says_the_same():
    finish(experiment())
    before, log = result_of("run"), lines_of("run")
    events = finish(experiment(resume=True))
    assert [event.reused for event in events if isinstance(event, Finished)] == [True, True, True]
    assert not any(isinstance(event, Trained | Started) for event in events)
    assert result_of("run") == before
    assert lines_of("run") == log


def test_building_an_experiment_leaves_generators_and_folder_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    experiment()
    assert torch.equal(torch.get_rng_state(), before)
    assert not Path("run").exists()


def test_a_teacher_that_is_to_be_trained_needs_its_model():
    given = recipe()
    lacking = given.model_copy(update={"teacher": given.teacher.model_copy(update={"model": None})})
    with pytest.raises(LimbeckError, match="so it needs a model:"):
        Experiment(lacking, Path("run"))


def test_a_run_of_code_that_has_changed_since_is_not_resumed():
    make = "from torch import nn\ndef make(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    Path("net.py").write_text(make)
    settings = ["student.model=net.py:make", "train.epochs=1"]
    finish(experiment(*settings))
    experiment(*settings, resume=True)
    Path("net.py").write_text(make + "# another one\n")
    with pytest.raises(LimbeckError, match=r"holds a run of another recipe.*\n.*it has    # net.py: "):
        experiment(*settings, resume=True)
