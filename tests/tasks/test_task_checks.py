"""What is refused before training, for each task."""

import re
from functools import cache

import pytest
import torch
from kinds import OTHERS, data_of, network, trained
from torch import nn

import limbeck
from limbeck.core import LimbeckError
from limbeck.data import bounds
from limbeck.experiment.arms import check_task
from limbeck.experiment.checks import check_teacher, check_trained
from limbeck.models import Ensemble
from limbeck.recipe.blocks import CacheBlock, EvaluateBlock, Recipe, TaskBlock, TeacherBlock, TrainBlock
from limbeck.tasks import TASKS, task_of
from limbeck.train.engine import make_engine

ENGINE = make_engine(device="cpu", precision="32")
every_task = pytest.mark.parametrize("task", OTHERS)


class Changed(nn.Module):
    """A network whose outputs are changed."""

    def __init__(self, inside, change):
        super().__init__()
        self.inside, self.change = inside, change

    def forward(self, inputs):
        return self.change(self.inside(inputs))


@cache
def data(task):
    return data_of(task)


@cache
def teacher(task):
    return trained(data(task))


def refused(task, change, check, **options):
    """The message about a teacher whose outputs are changed; its name turns the check off."""
    changed = Changed(teacher(task), change)
    with pytest.raises(LimbeckError, match=f"--allow {check}") as caught:
        check_teacher(changed, data(task), ENGINE, **options)
    allowed = ("chance", "not_finite", "random", "probabilities")
    assert check in [note.check for note in check_teacher(changed, data(task), ENGINE, allow=allowed, **options)]
    return str(caught.value)


@every_task
def test_a_good_teacher_passes(task):
    found = check_teacher(teacher(task), data(task), ENGINE)
    assert {note.check for note in found} == {"input", "permuted"}
    assert all(note.skipped and note.said == "the task is not classification" for note in found)


@every_task
def test_a_teacher_that_does_not_look_at_its_input_is_no_better_than_chance(task):
    label, count = TASKS[task].headline.label, len(data(task).validation)
    message = refused(task, lambda outputs: 0 * outputs - 3, "chance")
    assert message.startswith(f"the {label} of the teacher on {count} validation samples is ")
    assert "which is no better than" in message


@every_task
def test_a_teacher_that_the_method_trains_may_be_as_bad(task):
    found = check_teacher(Changed(teacher(task), lambda outputs: 0 * outputs - 3), data(task), ENGINE, learns=True)
    assert found[-1].said.endswith("before the method trains it")


@every_task
def test_a_teacher_that_the_run_has_trained_is_compared_with_chance_in_the_same_words(task):
    bad = Changed(teacher(task), lambda outputs: 0 * outputs - 3)
    (note,) = check_trained(bad, data(task), ENGINE)
    assert refused(task, lambda outputs: 0 * outputs - 3, "chance").startswith(f"{note}. ")
    assert check_trained(teacher(task), data(task), ENGINE) == []


def test_a_trained_classifier_is_compared_with_chance_if_there_is_a_validation_split():
    def constant(**options):
        given = limbeck.arrays(torch.rand(90, 3, 16, 16), torch.arange(90) % 3, test=30, **options)
        return check_trained(Changed(network(given, 4), lambda outputs: 0 * outputs), given, ENGINE)

    (note,) = constant(validation=30)
    assert note == (
        "the accuracy of the teacher is not clearly higher than chance: 33.3% of 30 validation samples; chance is 33.3%"
    )
    (note,) = constant(validation=9)
    assert note.startswith("9 validation samples are too few to tell whether the teacher is better than chance")
    assert constant(validation=0) == []


@every_task
def test_outputs_that_are_not_finite_are_refused(task):
    message = refused(task, lambda outputs: outputs.index_fill(0, torch.tensor(0), torch.nan), "not_finite")
    assert "for 1 of 24 validation samples" in message


@every_task
def test_outputs_that_are_drawn_are_refused(task):
    message = refused(task, lambda outputs: outputs + 0.05 * torch.randn_like(outputs), "random")
    assert "different outputs in each run" in message


def test_probabilities_are_refused_for_labels_and_pixels_and_are_numbers_otherwise():
    assert "is in [0, 1])" in refused("multi_label", torch.sigmoid, "probabilities")
    assert "is in [0, 1] and sums to 1)" in refused("segmentation", lambda logits: logits.softmax(1), "probabilities")
    for task in ("regression", "landmarks"):
        check_teacher(Changed(teacher(task), lambda outputs: outputs.clamp(0, 1)), data(task), ENGINE)


def test_constant_outputs_that_are_perfect_say_nothing_about_the_teacher():
    given = limbeck.arrays(torch.rand(60, 3, 16, 16), torch.ones(60, 2), task="multi_label", test=20, validation=20)
    found = check_teacher(Changed(network(given, 4), lambda outputs: outputs - 3), given, ENGINE)
    assert [note.said for note in found if note.check == "chance"] == [
        "constant outputs are right on all 20 validation samples"
    ]


def test_chance_is_the_best_constant():
    for task in ("regression", "landmarks"):
        targets = data(task).test.targets
        found = task_of(data(task)).by_chance(data(task), targets)
        torch.testing.assert_close(found, targets.flatten(1).mean(0).expand(24, -1))
    labels = data("multi_label").test.targets
    found = TASKS["multi_label"].by_chance(data("multi_label"), labels)
    torch.testing.assert_close(found.sigmoid(), labels.mean(0).expand(24, -1))
    masks = data("segmentation").test.targets
    found = TASKS["segmentation"].by_chance(data("segmentation"), masks)
    scores = []
    for label in range(2):
        constant = torch.zeros(24, 2, 16, 16)
        constant[:, label] = 1
        scores.append(TASKS["segmentation"].score(constant, masks))
    assert TASKS["segmentation"].score(found, masks) == max(scores)
    assert TASKS["classification"].by_chance(data("multi_label"), labels) is None


# --- data


def test_splits_on_which_nothing_can_be_measured_are_refused_before_training():
    inputs = torch.rand(40, 3, 16, 16)
    for task, targets, message in (
        (
            "multi_label",
            torch.zeros(40, 2),
            "cannot be measured on the validation split: no evaluated sample has a label",
        ),
        ("landmarks", torch.full((40, 3, 2), 0.5), "has size 0"),
        ("landmarks", torch.rand(40, 1, 2), "has size 0"),
    ):
        given = limbeck.arrays(inputs, targets, task=task, test=10, validation=10)
        with pytest.raises(LimbeckError, match=message):
            limbeck.distill(None, network(given, 4), given, method="alone", epochs=1)


def test_outputs_of_pixels_that_do_not_fit_in_memory_are_refused_before_training(monkeypatch):
    given = data("segmentation")
    needed = 3 * 4 * 24 * 2 * 16 * 16
    monkeypatch.setattr(bounds, "_memory", lambda: needed)
    TASKS["segmentation"].check_data(given)
    monkeypatch.setattr(bounds, "_memory", lambda: needed - 1)
    with pytest.raises(LimbeckError, match="the outputs of teacher and student for 24 images of one split would take"):
        limbeck.distill(None, network(given, 4), given, method="alone", epochs=1)


@every_task
def test_outputs_of_another_shape_are_refused(task):
    given = data(task)
    with pytest.raises(LimbeckError, match=rf"the student gives \(.*\) a sample; allowed for {task} of this data"):
        limbeck.distill(None, Changed(network(given, 4), lambda outputs: outputs[:, 1:]), given, method="alone")


@every_task
def test_data_without_outputs_is_refused(task):
    given = data(task)
    empty = {"multi_label": "labels", "regression": "numbers", "landmarks": "points", "segmentation": "class"}[task]
    classes = 1 if task == "segmentation" else 0
    if task == "segmentation":
        shown = limbeck.arrays(given.test.inputs, given.test.targets.clamp(255, 255).fill_(0), task=task, test=4)
    else:
        shape = (24, 0, 2) if task == "landmarks" else (24, 0)
        shown = limbeck.arrays(given.test.inputs, torch.zeros(shape), task=task, test=4)
    with pytest.raises(LimbeckError, match=f"the data has {classes} {empty}, so there is nothing to learn"):
        TASKS[task].check_data(shown)


# --- options of a recipe


PLAIN = TrainBlock(epochs=1)
OPTIONS = {
    "train.mixup": {"train": TrainBlock(epochs=1, mixup=0.2)},
    "train.label_smoothing": {"train": TrainBlock(epochs=1, label_smoothing=0.1)},
    "train.balanced": {"train": TrainBlock(epochs=1, balanced=True)},
    "train.exclude": {"train": TrainBlock(epochs=1, exclude=(1,))},
    "teacher.train.mixup": {"teacher": TeacherBlock(model="mlp", train=TrainBlock(epochs=1, mixup=0.2))},
    "teacher.table": {"teacher": TeacherBlock(table="labels.csv")},
    "cache.top_k": {"cache": CacheBlock(use=True, top_k=2)},
    "evaluate.shift_bias": {"evaluate": EvaluateBlock(shift_bias=(1,))},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_classification_are_refused(option):
    values = {"method": {"name": "kd"}, "train": PLAIN, "teacher": None, "cache": CacheBlock()}
    recipe = Recipe.model_construct(**values | {"evaluate": EvaluateBlock()} | OPTIONS[option])
    check_task(recipe, "classification")
    for task in OTHERS:
        with pytest.raises(LimbeckError, match=f"^{option} is for classification; the task of the data is {task}$"):
            check_task(recipe, task)


@pytest.mark.parametrize("option", [{"temperature": 8.0}, {"temperature_squared": False}])
@pytest.mark.parametrize("several", [False, True])
def test_a_temperature_that_is_chosen_is_refused_for_numbers(option, several):
    def checked(task, **options):
        block = {"name": "kd", "temperature": 4.0, "temperature_squared": True, **options}
        block = {"name": "mimic+kd", "parts": [{"name": "mimic"}, block]} if several else block
        recipe = Recipe.model_construct(
            method=block, train=PLAIN, teacher=None, cache=CacheBlock(), evaluate=EvaluateBlock()
        )
        check_task(recipe, task)

    for task in ("regression", "landmarks"):
        checked(task)
        with pytest.raises(
            LimbeckError, match=rf"^method: kd with {next(iter(option))}: .* no effect on numbers; .*{task}"
        ):
            checked(task, **option)
    checked("multi_label", **option)


def test_everything_that_does_not_fit_the_task_is_told_together():
    recipe = Recipe.model_construct(
        method={"name": "dkd"},
        train=TrainBlock(epochs=1, mixup=0.2),
        teacher=None,
        cache=CacheBlock(use=True, top_k=2),
        task=TaskBlock(eyes=(0, 1), hard_loss="wing"),
    )
    with pytest.raises(LimbeckError) as caught:
        check_task(recipe, "segmentation")
    keys = [re.split(r": | is for ", line)[0] for line in str(caught.value).splitlines()]
    assert keys == ["method", "task.eyes", "task.hard_loss", "cache.top_k", "train.mixup"]


def test_a_run_notes_a_student_that_ends_in_a_sigmoid():
    given = data("multi_label")
    student = nn.Sequential(network(given, 2), nn.Sigmoid())
    _, result = limbeck.distill(teacher("multi_label"), student, given, method="kd", epochs=1, allow=["chance"])
    assert any(note.startswith("the student ends in nn.Sigmoid") for note in result.notes)


def test_a_task_that_is_a_name_belongs_to_the_data():
    given = data("regression")
    with pytest.raises(LimbeckError, match=r"^task is 'regression'; allowed is a dict .* limbeck.arrays\("):
        limbeck.distill(teacher("regression"), network(given, 2), given, method="kd", epochs=1, task="regression")


def test_a_function_with_the_name_of_a_method_has_no_temperature():
    recipe = Recipe.model_construct(
        method={"name": "kd"}, train=PLAIN, teacher=None, cache=CacheBlock(), evaluate=EvaluateBlock()
    )
    check_task(recipe, "regression")


def test_options_of_methods_that_need_classes_are_refused():
    for method, message in (
        ({"name": "kd", "average": "elements"}, "average: elements and teacher_softmax are only for"),
        ({"name": "kd", "teacher_softmax": True}, "average: elements and teacher_softmax are only for"),
        ({"name": "srrl", "form": "kl"}, "form: kl compares distributions of classes: use form: l2"),
    ):
        given = data("regression")
        with pytest.raises(LimbeckError, match=message):
            limbeck.distill(teacher("regression"), network(given, 2), given, method=method, epochs=1)


# --- ensembles and probabilities


def outputs_of(task):
    return torch.randn(3, 5, 4, *((2, 6) if task == "segmentation" else ()), dtype=torch.float64)


class Given(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, inputs):
        return self.outputs


@every_task
def test_an_ensemble_averages_what_the_task_says(task):
    members = outputs_of(task)
    found = Ensemble([Given(one) for one in members], "arithmetic", task)
    mean = found(torch.zeros(5))
    if task == "multi_label":
        torch.testing.assert_close(mean.sigmoid(), members.sigmoid().mean(0))
    elif task == "segmentation":
        torch.testing.assert_close(mean.softmax(1), members.softmax(2).mean(0))
    else:
        torch.testing.assert_close(mean, members.mean(0))
    assert found.of_distributions == (task in ("multi_label", "segmentation"))


@every_task
def test_a_geometric_mean_is_of_probabilities(task):
    members = outputs_of(task)
    if task in ("regression", "landmarks"):
        with pytest.raises(LimbeckError, match=f"the task is {task}; allowed is arithmetic"):
            Ensemble([Given(members[0])], "geometric", task)
    else:
        mean = Ensemble([Given(one) for one in members], "geometric", task)(torch.zeros(5))
        torch.testing.assert_close(mean, members.mean(0))


def test_large_logits_of_labels_have_a_finite_mean():
    members = [Given(torch.full((1, 2), value)) for value in (1e4, -1e4)]
    assert Ensemble(members, "arithmetic", "multi_label")(torch.zeros(1)).abs().max() < 1e-3


@every_task
def test_an_ensemble_teaches(task):
    given = data(task)
    teachers = [teacher(task), trained(given, width=4)]
    plain = {"epochs": 1, "batch_size": 16, "precision": "32", "progress": False, "baseline": False}
    _, result = limbeck.distill(teachers, network(given, 2), given, **plain)
    key = TASKS[task].headline.key
    values = [getattr(one.test, key) for one in result.runs if one.arm in ("member", "teacher")]
    assert len(values) == 3
    with torch.no_grad():
        mean = Ensemble(teachers, "arithmetic", task).eval()
        inputs = limbeck.data.normalise(given.test.inputs, given.mean, given.std)
        expected = task_of(given).score(mean(inputs), given.test.targets)
    assert getattr(result.teacher.test, key) == pytest.approx(expected, rel=1e-5)


def test_declared_probabilities_of_labels_become_the_logarithm_of_their_odds():
    given = data("multi_label")
    plain = {"epochs": 1, "batch_size": 16, "precision": "32", "progress": False, "baseline": False}
    ends = Changed(teacher("multi_label"), torch.sigmoid)
    found = limbeck.distill(ends, network(given, 2), given, teacher_output="probabilities", **plain)[1]
    known = limbeck.distill(teacher("multi_label"), network(given, 2), given, **plain)[1]
    assert found.teacher.test.cross_entropy == pytest.approx(known.teacher.test.cross_entropy, rel=1e-4)
    assert any("the logarithm of their odds is used" in note for note in found.notes)
    given = data("regression")
    with pytest.raises(LimbeckError, match=r"output is 'probabilities', but the teacher returns numbers"):
        limbeck.distill(teacher("regression"), network(given, 2), given, teacher_output="probabilities", **plain)
