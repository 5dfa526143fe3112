"""What an error of a method advises works."""

from functools import partial

import pytest
import torch
from torch import nn

from limbeck.core import LimbeckError
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training
from limbeck.methods import METHODS
from limbeck.models import Ensemble, build
from limbeck.optimizers import sgd
from limbeck.schedules import constant

DATA = arrays(torch.rand(16, 3, 16, 16), torch.arange(16) % 4)
SETTING = Training(1, 8, sgd(lr=1e-3), constant())


def perceptron(width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(768, width), nn.ReLU(), nn.Linear(width, 4))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(48, 4)

    def forward(self, images):
        tokens = images.unflatten(2, (4, 4)).unflatten(4, (4, 4)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(dim=1))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(48, 48), nn.Linear(48, 48)

    def forward(self, tokens):
        return tokens + self.second(self.first(tokens).relu())


def convolutional(name="resnet8"):
    return build(name, classes=4, shape=(3, 16, 16))


def planned(method, student, teacher, **options):
    return plan(partial(METHODS[method], **options), {"student": student, "teacher": teacher}, DATA, SETTING)


@pytest.mark.parametrize("method", ["at", "nst", "fsp", "ab", "ofd", "ft", "reviewkd", "semckd"])
@pytest.mark.parametrize("without", [perceptron, Tokens])
def test_without_maps_a_method_names_others_that_work(method, without):
    for pair in ((without(), convolutional()), (convolutional(), without())):
        with pytest.raises(LimbeckError, match=r"returns only vectors or tokens; use a .* kd, sp, rkd or srrl"):
            planned(method, *pair)


@pytest.mark.parametrize("method", ["kd", "sp", "rkd", "srrl"])
@pytest.mark.parametrize("without", [perceptron, Tokens])
def test_the_methods_that_are_named_for_networks_without_maps_work(method, without):
    for pair in ((without(), convolutional()), (convolutional(), without()), (without(), without())):
        assert planned(method, *pair)


def test_of_tokens_vid_says_how_to_read_the_feature_and_that_works():
    with pytest.raises(LimbeckError, match=r"name other layers as student_layers and teacher_layers .* :input"):
        planned("vid", convolutional(), Tokens())
    assert planned("vid", convolutional(), Tokens(), student_layers=("head:input",), teacher_layers=("head:input",))


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
@pytest.mark.parametrize("method", ["mimic", "simkd", "srrl", "cat_kd", "class_distance"])
def test_of_an_ensemble_a_method_that_needs_its_classifier_does_not_ask_for_layers_that_it_cannot_take(method, mean):
    teacher = Ensemble([convolutional(), convolutional()], mean)
    with pytest.raises(LimbeckError, match=r"needs the linear classifier of the teacher, which has none .* such as kd"):
        planned(method, convolutional(), teacher)
    assert planned("kd", convolutional(), teacher)
    assert planned(method, convolutional(), teacher.members[0])


@pytest.mark.parametrize("method", ["dkd", "kd_standardised", "dist", "mlkd", "wsld", "nkd", "wttm", "ofa"])
def test_of_an_ensemble_a_method_of_one_teacher_names_both_ways_out_and_they_work(method):
    members = [convolutional(), convolutional()]
    with pytest.raises(
        LimbeckError, match=r"set mean: geometric for the ensemble, or name a member as teacher_layer: members\.0"
    ):
        planned(method, convolutional(), Ensemble(members, "arithmetic"))
    assert planned(method, convolutional(), Ensemble(members, "geometric"))
    assert planned(method, convolutional(), Ensemble(members, "arithmetic"), teacher_layer="members.0")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("at", {"student_layers": ("stage2",), "teacher_layers": ("members.0.stage2",)}),
        ("sp", {"student_layers": ("stage2",), "teacher_layers": ("members.0.stage2",)}),
        ("rkd", {"teacher_layer": "members.1.head:input"}),
        ("fitnets", {"hint_layer": "members.0.stage2"}),
    ],
)
def test_of_an_ensemble_layers_can_be_named_where_that_is_advised(method, options):
    teacher = Ensemble([convolutional(), convolutional()], "geometric")
    with pytest.raises(LimbeckError, match="name the layers to read"):
        planned(method, convolutional(), teacher)
    assert planned(method, convolutional(), teacher, **options)


@pytest.mark.parametrize(("method", "options"), [("mimic", {"adapter": "linear"}), ("fsp", {"adapter": "conv1x1"})])
def test_widths_that_differ_are_bridged_as_advised(method, options):
    pair = convolutional(), build("wrn_16_2", classes=4, shape=(3, 16, 16))
    with pytest.raises(LimbeckError, match=f"set adapter: {options['adapter']}"):
        planned(method, *pair)
    assert planned(method, *pair, **options)
