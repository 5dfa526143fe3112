"""Methods over seeds in one folder: the bits of runs of their own, whatever stops them and whoever trains them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from limbeck.comparison import results
from limbeck.comparison.listing import list_runs
from limbeck.comparison.sweep import Sweep
from limbeck.core import LimbeckError
from limbeck.experiment.arms import longer
from limbeck.experiment.events import Elsewhere, Finished, Job, Started, Trained
from limbeck.experiment.run import Experiment
from limbeck.experiment.runfiles import file_record
from limbeck.recipe.read import RecipeError, read
from limbeck.train.loop import Diverged

RECIPE = """\
name: tiny
data: {source: digits, limit: 96}
teacher:
  model: {name: mlp, hidden: [16], dropout: 0.2}
  train: {epochs: 2, batch_size: 32, augment: {shift: 1}}
student:
  model: {name: mlp, hidden: [8], dropout: 0.1}
method: {name: kd, temperature: 3}
train: {epochs: 2, batch_size: 32}
seeds: [0, 1]
evaluate: {latency_runs: 1}
precision: 32
"""
METHODS = ("kd", "fitnets", "srrl")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def recipe(*settings, methods=METHODS):
    Path("recipe.yaml").write_text(RECIPE)
    return read(Path("recipe.yaml"), overrides=settings, methods=methods)


def sweep(*settings, methods=METHODS, folder="both"):
    return Sweep(recipe(*settings, methods=methods), Path(folder))


def finish(one):
    return list(one.run()), one.conclude()


def untimed(result):
    """The result without latencies, which differ from run to run."""
    teacher = result.teacher and replace(result.teacher, latency=None)
    return replace(result, teacher=teacher, arms=tuple(replace(arm, latency=None) for arm in result.arms))


def weights(folder, arm, seed):
    return load_file(Path(folder) / f"{arm}-seed{seed}" / arm / f"seed{seed}" / "student.safetensors")


def results_of(folder):
    return json.loads((folder / "result.json").read_text())["test"]["accuracy"]


def predicted(folder, arm, seed):
    file = folder / f"{arm}-seed{seed}" / arm / f"seed{seed}" / "outputs.safetensors"
    return load_file(file)["test"].argmax(1)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed comparison and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "recipe.yaml").write_text(RECIPE)
    one = Sweep(read(folder / "recipe.yaml", methods=METHODS), folder / "whole")
    return finish(one)[1], folder / "whole"


def test_every_student_has_the_bits_that_it_has_in_a_run_of_its_own(whole):
    result, folder = whole
    for method in METHODS:
        run = Experiment(
            read(folder.parent / "recipe.yaml", overrides=[f"method.name={method}"] * (method != "kd")), Path(method)
        )
        for _ in run.run():
            pass
        for arm in ("alone", method):
            for seed in (0, 1):
                own = load_file(Path(method) / arm / f"seed{seed}" / "student.safetensors")
                assert same(own, weights(folder, arm, seed)), (arm, seed)
        own = {(one.arm, one.seed): one for one in run.result.runs}
        for one in result.of(method):
            assert replace(own[one.arm, one.seed], trained_as=None) == replace(one, trained_as=None)


def test_the_recipe_of_a_student_trains_it_again_to_the_same_bits(whole):
    _, folder = whole
    for arm in ("srrl", "alone@2x"):
        run = Experiment(read(folder / f"{arm}-seed1" / "recipe.yaml"), Path(arm))
        for _ in run.run():
            pass
        name = arm.partition("@")[0]
        assert same(load_file(Path(arm) / name / "seed1" / "student.safetensors"), weights(folder, arm, 1))


def test_a_method_of_two_stages_is_compared_with_a_student_alone_of_as_many_epochs(whole):
    arms = {arm.arm: arm for arm in whole[0].arms}
    assert list(arms) == ["alone", "kd", "fitnets", "srrl", "alone@2x"]
    assert {name: arm.epochs for name, arm in arms.items()} == {
        "alone": 2,
        "kd": 2,
        "fitnets": 4,
        "srrl": 2,
        "alone@2x": 4,
    }
    assert [arms[name].alone.arm for name in METHODS] == ["alone", "alone@2x", "alone"]
    assert arms["kd"].options["temperature"] == 3
    # fitnets has more epochs than kd
    assert [arms[name].kd and arms[name].kd.arm for name in METHODS] == [None, None, "kd"]


def test_the_teachers_of_all_seeds_count(whole):
    result, folder = whole
    found = [results_of(folder / f"teacher-seed{seed}" / "teacher" / f"seed{seed}") for seed in (0, 1)]
    assert result.teachers.n == 2
    assert result.teachers.mean == pytest.approx(sum(found) / 2)
    assert result.teacher.test.accuracy == found[0]


def test_the_differences_are_those_of_the_figures(whole):
    result, folder = whole
    for arm in result.arms[1:4]:
        ours, others = ([one.test.accuracy for one in result.of(name)] for name in (arm.arm, arm.alone.arm))
        assert arm.alone.differences == pytest.approx([a - b for a, b in zip(ours, others, strict=True)])
        rows = [
            [
                load_file(folder / f"{name}-seed{seed}" / name / f"seed{seed}" / "outputs.safetensors")["test"].argmax(
                    1
                )
                for seed in (0, 1)
            ]
            for name in (arm.arm, arm.alone.arm)
        ]
        labels = Sweep(read(folder.parent / "recipe.yaml", methods=METHODS), folder).experiment.data.test.targets
        first, second = ([(row == labels) for row in arms] for arms in rows)
        only = sum(int((a & ~b).sum()) for a, b in zip(first, second, strict=True))
        assert arm.alone.mcnemar.only_method == only


def test_a_finished_student_has_no_checkpoint(whole):
    assert not list(whole[1].rglob("last.pt"))


def test_what_is_written_is_read_again(whole):
    result, folder = whole
    assert results.read(folder) == result
    file = folder / "comparison.json"
    text = file.read_text()
    try:
        file.write_text(text.replace('"epochs": 4', '"epochs": 5', 1))
        with pytest.raises(LimbeckError, match="is damaged, or was changed"):
            results.read(folder)
    finally:
        file.write_text(text)
    with pytest.raises(LimbeckError, match="no finished comparison"):
        results.read(Path("nowhere"))


@pytest.mark.parametrize("stops", [(1, 4, 9), (6, 2, 3)])
def test_a_comparison_that_is_stopped_comes_to_the_same_bits(whole, monkeypatch, stops):
    monkeypatch.setattr("limbeck.experiment.folder.CHECKPOINT_SHARE", 1e9)
    for count in stops:
        events = sweep().run()
        for event in events:
            count -= isinstance(event, Trained)
            if not count:
                break
        events.close()
    events, result = finish(sweep())
    assert any(isinstance(event, Finished) and event.reused for event in events) or any(
        isinstance(event, Started) and event.done for event in events
    )
    assert untimed(result) == untimed(whole[0])
    for one in result.runs:
        assert same(weights("both", one.arm, one.seed), weights(whole[1], one.arm, one.seed))


def test_students_that_do_not_fit_into_memory_together_are_trained_in_groups(whole, monkeypatch):
    monkeypatch.setattr("limbeck.comparison.sweep.free_memory", lambda device: 0)
    events, result = finish(sweep("seeds=[0]"))
    order = [event.job.arm for event in events if isinstance(event, Started | Finished)]
    assert order == [arm for arm in ("teacher", "alone", "kd", "fitnets", "srrl", "alone@2x") for _ in range(2)]
    for one in result.runs:
        assert same(weights("both", one.arm, one.seed), weights(whole[1], one.arm, one.seed))


def test_processes_that_train_in_one_folder_share_the_memory(monkeypatch):
    given, one = [], sweep("seeds=[0, 1, 2]", methods=("kd",))
    monkeypatch.setattr("limbeck.comparison.sweep.free_memory", lambda device: 900)
    monkeypatch.setattr("limbeck.comparison.sweep.groups", lambda sizes, free: given.append(free) or [])
    Path("both/locks").mkdir(parents=True)
    with FileLock("both/locks/seed1"):
        list(one.run(wait=False))
    list(one.run())
    assert given == [450, 450, 900, 900, 900]


def test_what_is_missing_is_known_without_reading_a_checkpoint(monkeypatch):
    monkeypatch.setattr("limbeck.experiment.folder.CHECKPOINT_SHARE", 1e9)
    events = sweep("seeds=[0]", methods=("kd",)).run()
    next(event for event in events if isinstance(event, Trained) and event.job.arm == "kd")
    events.close()
    assert list(Path("both").rglob("last.pt"))
    monkeypatch.setattr("limbeck.files.checkpoint.load", lambda file: pytest.fail(f"{file} was read"))
    assert [str(job) for job in sweep("seeds=[0]", methods=("kd",)).missing] == ["alone/seed0", "kd/seed0"]


def test_seeds_and_methods_that_are_added_later_train_only_what_is_missing(whole):
    finish(sweep("seeds=[0]", methods=("kd",)))
    events, result = finish(sweep())
    started = {str(event.job) for event in events if isinstance(event, Started)}
    expected = {f"{arm}/seed0" for arm in ("fitnets", "srrl", "alone@2x")}
    assert started == expected | {f"{arm}/seed1" for arm in ("teacher", "alone", "kd", "fitnets", "srrl", "alone@2x")}
    assert untimed(result) == untimed(whole[0])
    assert not list(sweep().run())


def test_whether_alone_is_listed_among_the_methods_changes_nothing():
    first = finish(sweep("seeds=[0]", methods=("kd",)))[1]
    events, result = finish(sweep("seeds=[0]", methods=("alone", "kd")))
    assert (events, result.runs) == ([], first.runs)


def test_a_seed_that_another_process_trains_is_left_to_it():
    Path("both/locks").mkdir(parents=True)
    one = sweep(methods=("kd",))
    with FileLock("both/locks/seed0"):
        events = list(one.run(wait=False))
    assert {event.job.seed for event in events if isinstance(event, Finished)} == {1}
    assert [event for event in events if isinstance(event, Elsewhere)] == [Elsewhere("seed 0", waits=False)]
    assert [str(job) for job in one.missing] == ["alone/seed0", "kd/seed0"]
    with pytest.raises(LimbeckError, match="2 of 4 students are not finished"):
        one.conclude()


def test_a_seed_that_another_process_trains_is_waited_for_and_trained_if_the_other_is_stopped(whole):
    Path("both/locks").mkdir(parents=True)
    other, one, finished = FileLock("both/locks/seed0"), sweep(), []
    other.acquire()
    for event in one.run():
        finished += [event.job.seed] if isinstance(event, Finished) else []
        if isinstance(event, Elsewhere) and event.waits:
            assert set(finished) == {1}
            other.release()
    assert set(finished) == {0, 1}
    assert untimed(one.conclude()) == untimed(whole[0])


def test_a_teacher_that_another_process_trains_is_waited_for_with_a_word():
    Path("both/locks").mkdir(parents=True)
    other = FileLock("both/locks/teacher-seed7")
    other.acquire()
    events = sweep("teacher.seed=7", "seeds=[0]", methods=("kd",)).run()
    assert next(events) == Elsewhere("teacher/seed7", waits=True)
    other.release()
    assert next(events) == Started(Job("teacher", 7), 0, 2)


def test_a_seed_that_another_process_has_finished_meanwhile_is_not_waited_for():
    Path("both/locks").mkdir(parents=True)
    other, waits = FileLock("both/locks/seed0"), []
    other.acquire()
    for event in sweep(methods=("kd",)).run():
        if isinstance(event, Elsewhere):
            waits.append(event.waits)
            other.release()
    assert waits == [False]


def test_work_is_what_is_not_finished():
    one = sweep(methods=("kd",))
    assert one.work == one.experiment.work
    finish(sweep("seeds=[0]", methods=("kd",)))
    assert list(map(str, one.work)) == ["teacher/seed1", "alone/seed1", "kd/seed1"]


def test_a_folder_that_cannot_be_written_is_an_error_of_limbeck():
    Path("file").touch()
    with pytest.raises(LimbeckError, match="file/inside/locks/folder cannot be written: Not a directory"):
        list(sweep(methods=("kd",), folder="file/inside").run())


def test_the_result_is_printed_as_a_line_for_each_arm_and_the_verdicts(whole):
    lines = str(whole[0]).splitlines()
    assert lines[0] == "tiny: test accuracy"
    assert [line.partition(":")[0] for line in lines[1:7]] == ["teacher", "alone", "kd", "fitnets", "srrl", "alone@2x"]
    mean = whole[0].arms[1].alone.judged.paired.mean
    assert f" %, n = 2, {100 * mean:+.2f} [" in lines[3]
    assert lines[3].endswith("] better than alone")
    assert lines[7:] == list(results.evidence(whole[0]))


def test_two_processes_that_start_at_once_agree_on_the_recipe():
    """Each has decided what `auto` stands for before one of them writes it."""
    one, other = sweep("seeds=[0]", methods=("kd",)), sweep("seeds=[0]", "precision=bf16", methods=("kd",))
    next(one.run())
    with pytest.raises(LimbeckError, match=r"(?s)comparison of another recipe.*precision: bf16"):
        next(other.run())


def test_a_resumed_comparison_has_the_same_result_where_the_precision_is_decided():
    first, again = (finish(sweep("seeds=[0]", "precision=auto", methods=("kd",)))[1] for _ in range(2))
    assert untimed(first) == untimed(again)


def test_the_notes_of_a_resumed_comparison_are_those_of_the_first(whole):
    """Also those on the teachers of all seeds, and on networks that are built anew in each start."""
    found = []
    for start in range(2):
        torch.manual_seed(start)
        found.append(finish(sweep("method.soft=1000", methods=("kd",)))[1].notes)
    assert found[0] == found[1] == results.read(Path("both")).notes
    assert any("the gradient of the term 'soft' of stage 'kd' has the norm" in note for note in found[0])
    for seed in (0, 1):
        assert any(note.startswith(f"teacher/seed{seed}: ") and "chance" in note for note in found[0])
    shutil.rmtree("both/teacher-seed1")  # is not trained again for its note
    result = finish(sweep("method.soft=1000", methods=("kd",)))[1]
    assert not Path("both/teacher-seed1").exists()
    assert result.notes == tuple(note for note in found[0] if not note.startswith("teacher/seed1"))


def test_the_outputs_of_a_teacher_that_is_given_are_kept(whole):
    place = whole[1] / "teacher-seed0" / "teacher" / "seed0"
    block = f"teacher: {{weights: {place / 'teacher.safetensors'}}}\nallow: [chance]\n"
    start, end = RECIPE.index("teacher:"), RECIPE.index("student:")
    Path("given.yaml").write_text(RECIPE[:start] + block + RECIPE[end:])
    result = finish(Sweep(read(Path("given.yaml"), methods=("kd",)), Path("both")))[1]
    assert result.learned.teacher_outputs_sha256 == file_record(Path("both/outputs.safetensors"))["sha256"]
    assert same(load_file("both/outputs.safetensors"), load_file(place / "outputs.safetensors"))
    assert same(weights("both", "kd", 0), weights(whole[1], "kd", 0))
    assert whole[0].learned.teacher_outputs_sha256 is None
    assert not (whole[1] / "outputs.safetensors").exists()


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("student.weights=start.safetensors", "student.weights"),
        ("teacher={weights: [start.safetensors]}", "teacher.weights.0"),
    ],
)
def test_a_folder_of_other_weights_is_refused(whole, setting, name):
    def begun(seed):
        shutil.copy(whole[1] / f"alone-seed{seed}/alone/seed{seed}/student.safetensors", "start.safetensors")
        return next(sweep(setting, "allow=[chance]", "seeds=[0]", methods=("kd",)).run())

    assert begun(seed=0) == begun(seed=0)
    line = f"# {name}: [0-9a-f]{{64}}"
    with pytest.raises(LimbeckError, match=rf"(?s)comparison of another recipe.*it has    {line}.*asked for {line}"):
        begun(seed=1)


def test_a_student_that_diverges_stops_no_other(monkeypatch):
    monkeypatch.setattr("limbeck.experiment.preflight.first_step", lambda *args, **options: [])
    monkeypatch.setattr("limbeck.experiment.preflight.meaningless", lambda *args: [])
    monkeypatch.setattr("limbeck.experiment.preflight.first_batch", lambda *args: [])
    one = sweep("method.soft=1.0e+300", methods=("kd", "srrl"))
    events = list(one.run())
    assert {str(event.job) for event in events if isinstance(event, Finished)} == {
        f"{arm}/seed{seed}" for arm in ("teacher", "alone", "srrl") for seed in (0, 1)
    }
    with pytest.raises(Diverged, match=r"kd/seed0: stage 'kd', epoch 1"):
        one.conclude()


def test_every_number_of_epochs_has_a_student_alone_of_its_own():
    one = recipe("train.epochs=240", methods=("kd",))
    blocks = tuple({"name": name} for name in ("a", "b", "c"))
    found = longer(one.model_copy(update={"methods": blocks}), {"a": 280, "b": 281, "c": 480})
    assert list(found.values()) == [280, 281, 480]
    assert "alone@2x" in found


def test_a_student_that_another_process_finishes_meanwhile_is_found():
    one, other, name = sweep("seeds=[0]", methods=("kd",)), sweep("seeds=[0]", methods=("kd",)), "kd/seed0"
    for event in one.run():
        if isinstance(event, Trained) and str(event.job) == name and event.epoch.number == 1:
            other.experiment.folder.refresh()
            assert other.experiment.folder.result(name) is None
    assert other.experiment.folder.result(name) == one.experiment.folder.result(name)


def test_a_method_that_the_networks_cannot_have_is_left_out_and_said():
    one = sweep("seeds=[0]", methods=("fsp", "kd"))
    assert one.experiment.arms == ("alone", "kd")
    assert any(note.startswith("fsp is left out: fsp compares maps") for note in one.experiment.notes)
    with pytest.raises(LimbeckError, match="fsp: fsp compares maps"):
        sweep("seeds=[0]", methods=("fsp",), folder="other")


def test_a_wrong_option_of_a_method_is_no_reason_to_leave_it_out():
    Path("recipe.yaml").write_text(RECIPE + "methods: [kd, {name: fitnets, guided_layer: layer9}]\n")
    with pytest.raises(LimbeckError, match=r"fitnets: .*has no layer 'layer9'"):
        Sweep(read(Path("recipe.yaml")), Path("both"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("cache=true", "a comparison does not have cache: true"),
        ("share_first_stage=true", "a comparison does not have share_first_stage"),
    ],
)
def test_what_only_a_run_has_is_refused(setting, message):
    with pytest.raises(LimbeckError, match=message):
        sweep(setting)


def test_a_recipe_without_methods_is_refused():
    with pytest.raises(LimbeckError, match="lists no methods to compare"):
        sweep(methods=())


def test_methods_to_compare_are_refused_by_a_run():
    with pytest.raises(LimbeckError, match="use limbeck compare"):
        Experiment(recipe(), Path("run"))


def test_a_folder_of_something_else_is_refused():
    for _ in Experiment(recipe(methods=()), Path("run")).run():
        pass
    with pytest.raises(LimbeckError, match="holds a run, not a comparison"):
        sweep(folder="run")
    finish(sweep("seeds=[0]", methods=("kd",)))
    with pytest.raises(LimbeckError, match=r"(?s)comparison of another recipe.*epochs: 3"):
        sweep("train.epochs=3")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(LimbeckError, match="holds a comparison, not a run"):
            Experiment(recipe(methods=()), Path("both"), **options)
    Path("runs").mkdir()
    Path("both").rename("runs/both")
    assert [run.folder for run in list_runs(Path("runs"))] == ["runs/both"]


def test_options_are_those_of_the_recipe():
    Path("recipe.yaml").write_text(RECIPE + "methods: [{name: srrl, alpha: 0.5}]\n")
    blocks = read(Path("recipe.yaml"), methods=("alone", "srrl", "kd", "kd+srrl")).methods
    assert blocks[1]["alpha"] == 0.5
    assert blocks[2]["temperature"] == 3
    assert blocks[3]["parts"] == [blocks[2], blocks[1]]


def test_a_method_with_other_options_is_compared_under_another_name():
    Path("recipe.yaml").write_text(f"{RECIPE}methods: [kd, {{name: kd, as: warm}}, {{name: alone, as: hard}}]\n")
    found = finish(Sweep(read(Path("recipe.yaml"), seed=0), Path("named")))[1]
    assert [(one.arm, one.kd is not None) for one in found.arms] == [
        ("alone", False),
        ("kd", False),
        ("warm", True),
        ("hard", True),
    ]
    run = Experiment(read(Path("named/warm-seed0/recipe.yaml")), Path("alone"))
    list(run.run())
    assert same(load_file(Path("alone/warm/seed0/student.safetensors")), weights("named", "warm", 0))
    assert [one.test for one in found.of("alone")] == [one.test for one in found.of("hard")]
    assert read(Path("recipe.yaml"), methods=["warm"]).methods == (read(Path("recipe.yaml")).methods[1],)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("{name: kd, as: a/b}", "methods.0.as: got 'a/b': it must be a name for a folder"),
        ("{name: kd, as: srrl}", "methods.0.as: 'srrl' is taken: choose another name"),
        ("{name: kd, as: teacher}", "methods.0.as: 'teacher' is taken"),
        ("{name: kd, as: warm, temperatur: 2}", "methods.0.temperatur: unknown key .* did you mean 'temperature'"),
    ],
)
def test_a_wrong_name_or_option_of_a_renamed_method_is_told(block, message):
    Path("recipe.yaml").write_text(RECIPE + f"methods: [{block}]\n")
    with pytest.raises(RecipeError, match=message):
        read(Path("recipe.yaml"))


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (("kdd",), r"--methods kdd: methods.0.name: there is no method 'kdd': did you mean 'kd'"),
        (("kd", "kd"), "kd is listed twice: give one of them another name with as:"),
    ],
)
def test_wrong_methods_are_told_before_anything_is_read(methods, message):
    with pytest.raises(RecipeError, match=message):
        recipe(methods=methods)
