"""A recipe for several processes."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch

import limbeck
from limbeck.core import LimbeckError
from limbeck.experiment.plan import plan
from limbeck.experiment.several import as_begun, check_division, kept_sizes, of_all, trainings
from limbeck.experiment.workspace import Training
from limbeck.methods import METHODS
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.recipe.bundled import bundled
from limbeck.recipe.read import read
from limbeck.schedules import constant


def recipe(*overrides):
    return read(bundled("digits_kd.yaml"), overrides=overrides)


def sizes(made):
    return [(block.batch_size, block.per_device) for block in trainings(made)]


def test_a_batch_size_per_device_is_multiplied_and_another_is_not():
    each = recipe("train.batch_size=24", "train.per_device=true", "teacher.train.batch_size=50")
    assert sizes(of_all(each, 3)) == [(72, False), (50, False)]


def test_a_resumed_run_keeps_its_batch_size_unless_the_recipe_has_another():
    each = ("train.per_device=true", "teacher.train.per_device=true", "teacher.train.batch_size=20")
    begun = of_all(recipe("train.batch_size=24", *each), 4)
    resumed = as_begun(recipe("train.batch_size=24", *each), begun)
    assert sizes(of_all(resumed, 2)) == sizes(begun) == [(96, False), (80, False)]
    assert kept_sizes(begun, resumed) == ()
    edited = recipe("train.batch_size=48", *each)
    (note,) = kept_sizes(of_all(edited, 4), of_all(as_begun(edited, begun), 4))
    assert note.said == "train.batch_size is 96, with which the run began, not 192"
    other = as_begun(recipe("train.batch_size=25", *each), begun)
    assert sizes(of_all(other, 4)) == [(100, False), (80, False)]  # the run folder then refuses it


def test_a_network_that_learns_to_be_quantised_needs_one_process():
    quantised = recipe("train.quantise={bits: 8}")
    assert of_all(quantised, 1) == quantised
    with pytest.raises(LimbeckError, match=r"train\.quantise needs one process"):
        of_all(quantised, 2)


SHARDED = ("teacher={weights: t.safetensors, model: resnet14, shard: true}", "cache=false")


def test_a_teacher_is_divided_among_several_processes_only():
    sharded = recipe(*SHARDED)
    assert of_all(sharded, 2) == sharded
    with pytest.raises(LimbeckError, match=r"teacher\.shard needs several processes: start the run with torchrun"):
        of_all(sharded, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("teacher.shard=true",), "only a trained network can be divided"),
        ((*SHARDED, "teacher.weights=[a.safetensors, b.safetensors]"), "only a trained network can be divided"),
        ((*SHARDED, "cache=true"), "it needs the whole teacher"),
        ((*SHARDED, "compile=true"), "cannot be compiled"),
        ((*SHARDED, "precision=auto"), "write precision: 32 or precision: bf16"),
        ((*SHARDED, "student={init: pruned, of: teacher, macs: 0.5}"), "needs the whole teacher"),
    ],
)
def test_what_a_divided_teacher_does_not_allow_is_said(settings, words):
    with pytest.raises(LimbeckError, match=words):
        recipe(*settings)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("kd", {}, None),
        ("srrl", {}, None),
        ("ofd", {}, None),
        ("srrl", {"positions": ("conv3",)}, "srrl runs layers of the teacher alone"),
        ("class_distance", {}, "class_distance trains the teacher"),
    ],
)
def test_a_method_may_read_a_divided_teacher_and_use_its_classifier(method, options, words):
    images, targets = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8), torch.arange(6) % 3
    data = limbeck.arrays(images, targets, validation=0, test_set=(images, targets))
    roles = {role: build("resnet8", classes=3, shape=(3, 8, 8)) for role in ("student", "teacher")}
    stages = plan(partial(METHODS[method], **options), roles, data, Training(1, 2, sgd(lr=0.1), constant()))
    with pytest.raises(LimbeckError, match=words) if words else nullcontext():
        check_division(method, stages, roles, data)
