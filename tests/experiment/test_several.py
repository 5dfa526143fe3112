"""A recipe for several processes."""

import pytest

from limbeck.core import LimbeckError
from limbeck.experiment.several import as_begun, of_all, trainings
from limbeck.recipe.bundled import bundled
from limbeck.recipe.read import read


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
    other = as_begun(recipe("train.batch_size=25", *each), begun)
    assert sizes(of_all(other, 4)) == [(100, False), (80, False)]  # the run folder then refuses it


def test_a_network_that_learns_to_be_quantised_needs_one_process():
    quantised = recipe("train.quantise={bits: 8}")
    assert of_all(quantised, 1) == quantised
    with pytest.raises(LimbeckError, match=r"train\.quantise needs one process"):
        of_all(quantised, 2)
