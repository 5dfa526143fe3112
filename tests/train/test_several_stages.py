"""Recipes of several methods, stages and networks, run to the end on a few digits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.core import LimbeckError
from limbeck.data import load, normalise
from limbeck.experiment import results
from limbeck.experiment.networks import NetworkFactory
from limbeck.experiment.run import Experiment
from limbeck.models import load_network
from limbeck.recipe.read import RecipeError, dump, read, smoke

RECIPE = """\
name: tiny
data: {source: digits, limit: 64}
teacher:
  model: resnet8
  train: {epochs: 1, batch_size: 16}
student:
  model: resnet8
method: kd
train: {epochs: 1, batch_size: 16}
evaluate: {latency_runs: 1}
precision: 32
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIMBECK_DATA", raising=False)


def recipe(*settings):
    Path("recipe.yaml").write_text(RECIPE)
    return read(Path("recipe.yaml"), overrides=settings)


def ran(*settings, folder="run", resume=False):
    trial = Experiment(recipe(*settings), Path(folder), resume=resume)
    list(trial.run())
    return results.read(Path(folder))


def refused(*settings):
    with pytest.raises(LimbeckError) as caught:
        Experiment(recipe(*settings), Path("run"))
    return str(caught.value)


def test_methods_in_a_list_become_one_arm():
    result = ran("method=[kd, {name: srrl, beta: 0.5}]")
    assert result.method == "kd+srrl"
    assert {run.arm for run in result.runs} == {"teacher", "alone", "kd+srrl"}
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert set(lines[-1]["terms"]) == {"hard", "soft", "conv4"}


def test_a_recipe_with_a_list_reads_itself_again():
    given = recipe("method=[kd, {name: srrl, beta: 0.5}]")
    Path("again.yaml").write_text(dump(given))
    assert read(Path("again.yaml")) == given
    assert given.method["parts"][1]["beta"] == 0.5


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method=[kd, srl]", "method.1.name: there is no method 'srl': did you mean 'srrl'?"),
        ("method=[kd, {name: srrl, beat: 1}]", "method.1.beat: unknown key 'beat': did you mean 'beta'?"),
        ("method=[kd]", "method: got ['kd']: it must be a list of two methods or more"),
        ("networks={peer: {model: resnet9}}", "networks.peer.model.name: there is no model 'resnet9'"),
        ("networks={teacher: {model: resnet8}}", "the name 'teacher' is taken"),
        ("networks={Peer: {model: resnet8}}", "networks.Peer"),
        ("share_first_stage=true", "only several seeds can share a first stage"),
        ("student.init=fine_tune", "student.init: got 'fine_tune' without weights: to start from"),
        (
            "teacher.untrained=true",
            "a model: and train: {epochs: N} to train it in this run, or a model: and untrained: true",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place(setting, message):
    with pytest.raises(RecipeError) as caught:
        recipe(setting)
    assert message in str(caught.value)


def test_methods_that_cannot_be_combined_are_refused_before_training():
    assert "cannot be combined in one stage" in refused("method=[mimic, kd]")


def test_the_teacher_that_a_method_trains_is_a_copy_and_is_measured_afterwards():
    result = ran("method=class_distance", "seeds=[0, 1]", "teacher.seed=0")
    runs = result.of("class_distance")
    first, second = (run.teacher_after.test for run in runs)
    assert first != second
    assert runs[0].test.agreement is not None


def test_an_untrained_teacher_is_left_to_its_method():
    result = ran("method=class_distance", "teacher={model: resnet8, untrained: true}", "baseline=false")
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [(line["job"], line["stage"]) for line in lines] == [
        ("class_distance/seed0", "teacher"),
        ("class_distance/seed0", "mimic"),
    ]
    assert result.student.teacher_after is not None


def test_the_student_is_deployed_with_the_teachers_classifier():
    ran("method=mimic", "baseline=false")
    student, _ = load_network("run/student.safetensors")
    teacher, _ = load_network("run/teacher/seed0/teacher.safetensors")
    assert torch.equal(student.head.weight, teacher.head.weight)
    assert torch.equal(student.head.bias, teacher.head.bias)


def test_other_networks_are_built_and_learn():
    result = ran("method=assistants", "networks={middle: {model: resnet14}}", "baseline=false")
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if line["job"] == "assistants/seed0"] == ["middle", "student"]
    assert result.method == "assistants"


def test_mutual_learning_needs_no_teacher():
    result = ran("method=mutual", "teacher=null", "networks={peer: {model: resnet8}}")
    assert result.teacher is None
    assert result.student.test.samples == result.alone.test.samples


def test_the_weights_after_each_stage_but_the_last_are_kept():
    ran("method=fsp", "baseline=false")
    assert sorted(path.name for path in Path("run/fsp/seed0").glob("*.safetensors")) == [
        "after_fsp.safetensors",
        "student.safetensors",
    ]
    after = load_file("run/fsp/seed0/after_fsp.safetensors")
    student = load_file("run/fsp/seed0/student.safetensors")
    assert not torch.equal(after["head.weight"], student["head.weight"])


def test_a_shared_first_stage_is_trained_once_and_the_seeds_part_after_it():
    ran("method=fsp", "share_first_stage=true", "seeds=[0, 1, 2]", "teacher.seed=0", "baseline=false")
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    stages = [(line["job"], line["stage"]) for line in lines if line["job"].startswith("fsp")]
    assert stages == [
        ("fsp/seed0", "fsp"),
        ("fsp/seed0", "task"),
        ("fsp/seed1", "task"),
        ("fsp/seed2", "task"),
    ]
    heads = [load_file(f"run/fsp/seed{seed}/student.safetensors")["head.weight"] for seed in range(3)]
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[1], heads[2])


def test_a_method_of_one_stage_has_none_to_share():
    assert "kd has one stage, so there is nothing to share" in refused("share_first_stage=true", "seeds=[0, 1]")


def test_the_tiny_version_shortens_every_stage():
    small = smoke(recipe("method={name: fsp, fsp_epochs: 50}", "train.epochs=30"))
    assert (small.method["fsp_epochs"], small.train.epochs) == (2, 2)
    both = smoke(recipe("method=[{name: fitnets, hint_epochs: 9}, srrl]"))
    assert both.method["parts"][0]["hint_epochs"] == 2


def test_a_run_that_stops_in_its_second_stage_is_resumed_to_the_same_bits():
    settings = ("method=fitnets", "train.epochs=2", "baseline=false")
    ran(*settings, folder="whole")
    trial = Experiment(recipe(*settings), Path("run"))
    for event in trial.run():
        epoch = getattr(event, "epoch", None)
        if epoch is not None and (epoch.stage, epoch.number) == ("kd", 1):
            break
    ran(*settings, resume=True)
    one, other = (load_file(f"{folder}/student.safetensors") for folder in ("whole", "run"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_student_with_the_teachers_classifier_and_a_projector_is_saved_loaded_and_resumed():
    result = ran("method=simkd", "teacher.model=resnet14", "baseline=false")
    student, spec = load_network("run/student.safetensors")
    assert spec.reuse is not None
    assert sum(p.numel() for p in student.parameters()) == result.student.parameters
    resumed = ran("method=simkd", "teacher.model=resnet14", "baseline=false", resume=True)
    assert resumed.student.test == result.student.test


def test_a_student_goes_on_from_another_networks_weights():
    ran("method=alone", "baseline=false", folder="small")
    result = ran(
        "method=fine_tune",
        "teacher=null",
        "baseline=false",
        "student={model: resnet8, weights: small, init: fine_tune}",
        "method.backbone=frozen",
    )
    before = load_file("small/student.safetensors")
    after = load_file(f"run/{result.method}/seed0/student.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}


def test_a_deeper_student_begins_as_the_smaller_one_is():
    ran("method=alone", "baseline=false", folder="small")
    given = recipe("method=alone", "student={model: resnet14, weights: small, init: net2net, noise: 0.0}")
    data = load(**given.data.model_dump())
    student, _, _ = NetworkFactory(given, data).student(0, "kd")
    small, spec = load_network("small/student.safetensors")
    images = normalise(data.test.inputs, spec.mean, spec.std)
    with torch.no_grad():
        torch.testing.assert_close(student.eval()(images), small(images), rtol=1e-4, atol=1e-4)


def test_the_order_of_the_networks_is_kept_when_the_recipe_is_written():
    given = recipe("method=assistants", "networks={zebra: {model: resnet14}, ant: {model: resnet8}}")
    Path("again.yaml").write_text(dump(given))
    assert list(read(Path("again.yaml")).networks) == ["zebra", "ant"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["networks={peer: {model: resnet8}}"], "networks: kd does not use peer"),
        (["teacher={model: resnet8, untrained: true}"], "kd does not train the teacher"),
        (
            ["method=class_distance", "seeds=[0, 1]", "share_first_stage=true"],
            "share_first_stage: the first stage of class_distance trains teacher, not the student",
        ),
    ],
)
def test_what_has_no_use_is_refused_before_training(settings, message):
    assert message in refused(*settings)


def test_noise_is_for_net2net_alone():
    with pytest.raises(RecipeError, match=r"student.noise: got 0.1, but only init: net2net uses noise"):
        recipe("student.noise=0.1")


def test_one_seed_and_the_tiny_version_share_nothing():
    given = recipe("method=fsp", "share_first_stage=true", "seeds=[0, 1]")
    assert not smoke(given).share_first_stage
    Path("recipe.yaml").write_text(RECIPE + "share_first_stage: true\nseeds: [0, 1]\n")
    assert not read(Path("recipe.yaml"), seed=1).share_first_stage


def test_an_untrained_teacher_has_no_figures_of_its_own():
    result = ran("method=class_distance", "teacher={model: resnet8, untrained: true}")
    assert result.teacher is None
    assert result.alone.test.agreement is None
    assert result.student.test.agreement is not None


def test_only_stages_in_which_the_student_learns_leave_it_behind():
    ran("method=assistants", "networks={middle: {model: resnet14}}", "baseline=false")
    assert not list(Path("run/assistants/seed0").glob("after_*"))


def test_a_shared_first_stage_survives_a_crash_right_after_it():
    settings = ("method=fsp", "share_first_stage=true", "seeds=[0, 1]", "teacher.seed=0", "baseline=false")
    ran(*settings, folder="whole")
    trial = Experiment(recipe(*settings), Path("run"))
    for event in trial.run():
        epoch = getattr(event, "epoch", None)
        if epoch is not None and epoch.stage == "fsp":
            break
    ran(*settings, resume=True)
    for seed in (0, 1):
        one, other = (load_file(f"{folder}/fsp/seed{seed}/student.safetensors") for folder in ("whole", "run"))
        assert all(torch.equal(one[key], other[key]) for key in one)
