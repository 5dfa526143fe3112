"""Hints between networks whose layers differ in kind or size: what the methods choose, and what they say of it."""

from functools import partial

import pytest
import torch
from torch import nn

from limbeck.connectors import as_map, map_shape
from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods import METHODS
from limbeck.methods.combined import combined
from limbeck.methods.fitnets import fitnets, fitting, hint_loss, regressor
from limbeck.methods.fitnets_one_stage import fitnets_one_stage, one_stage_regressor
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

DATA = arrays(torch.rand(16, 3, 16, 16), torch.arange(16) % 4)
SETTING = Training(1, 8, sgd(lr=1e-3), constant())
ENGINE = make_engine(device="cpu", precision="32")


class Transformer(nn.Module):
    """A small vision transformer, with or without a class token."""

    def __init__(self, width=8, patch=4, beside=1):
        super().__init__()
        count = (16 // patch) ** 2
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.beside = nn.Parameter(torch.randn(1, beside, width))
        self.places = nn.Parameter(torch.randn(1, beside + count, width))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(2)
        )
        self.blocks = nn.ModuleList(Residual(block) for block in self.blocks)
        self.head = nn.Linear(width, 4)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).mT
        tokens = torch.cat([self.beside.expand(len(images), -1, -1), tokens], dim=1) + self.places
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(dim=1))


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, tokens):
        return tokens + self.inner(tokens)


def convolutional(stride, width=6):
    layers = [nn.Conv2d(3, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()]
    layers += [nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


def perceptron(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(768, width), nn.ReLU(), nn.Linear(width, 4))


NETWORKS = {
    "fine": partial(convolutional, 1),
    "coarse": partial(convolutional, 4),
    "transformer": Transformer,
    "large patches": partial(Transformer, 6, 8, 0),
    "perceptron": partial(perceptron, 8),
    "wide perceptron": partial(perceptron, 12),
}


def pair(student, teacher):
    torch.manual_seed(1)
    return {"student": NETWORKS[student](), "teacher": NETWORKS[teacher]()}


@pytest.mark.parametrize("teacher", NETWORKS)
@pytest.mark.parametrize("student", NETWORKS)
@pytest.mark.parametrize("method", [fitnets, fitnets_one_stage])
def test_the_defaults_train_every_ordinary_pair(method, student, teacher):
    nets = pair(student, teacher)
    stages = plan(method, nets, DATA, SETTING)
    before = {name: value.clone() for name, value in nets["student"].state_dict().items()}
    epochs = list(run(stages, nets, training_batches(DATA, SETTING, seed=0, engine=ENGINE), ENGINE))
    assert all(epoch.loss > 0 for epoch in epochs)
    assert any(not torch.equal(before[name], value) for name, value in nets["student"].state_dict().items())


@pytest.mark.parametrize(
    ("student", "teacher", "notes"),
    [
        ("fine", "coarse", ()),
        ("perceptron", "wide perceptron", ()),
        ("transformer", "transformer", ()),
        (
            "coarse",
            "fine",
            (
                "fitnets: the guided layer gives (6, 4, 4) and the hint is (6, 16, 16): the regressor enlarges the "
                "guided map bilinearly (regressor: upsample)",
            ),
        ),
        (
            "transformer",
            "fine",
            (
                "fitnets: the guided layer gives (17, 8) and the hint is (6, 16, 16), which are compared as maps "
                "(8, 4, 4) and (6, 16, 16): the regressor enlarges the guided map bilinearly (regressor: upsample)",
            ),
        ),
        (
            "fine",
            "transformer",
            (
                "fitnets: the guided layer gives (6, 16, 16) and the hint is (17, 8), which are compared as maps "
                "(6, 16, 16) and (8, 4, 4)",
            ),
        ),
        (
            "perceptron",
            "coarse",
            (
                "fitnets: the guided layer gives (8,) and the hint is (6, 4, 4): the regressor is fully connected "
                "(regressor: full)",
            ),
        ),
    ],
)
def test_what_is_not_the_published_regressor_is_said(student, teacher, notes):
    stages = plan(fitnets, pair(student, teacher), DATA, SETTING)
    assert tuple(stages[0].notes) == notes
    assert stages[1].notes == ()


def test_the_notes_survive_a_combination():
    both = partial(combined, parts=[METHODS["fitnets_one_stage"], METHODS["at"]])
    (stage,) = plan(both, pair("fine", "coarse"), DATA, SETTING)
    assert stage.notes == ()
    both = partial(combined, parts=[METHODS["kd"], METHODS["fitnets_one_stage"]])
    (stage,) = plan(both, pair("transformer", "fine"), DATA, SETTING)
    assert ["compared as maps" in note or "enlarged" in note for note in stage.notes] == [True, True]


@pytest.mark.parametrize(
    ("source", "target"),
    [((4, 8, 8), (6, 8, 8)), ((4, 8, 6), (6, 3, 6)), ((5, 8), (5, 6)), ((8,), (6,)), ((4, 1, 1), (6, 1, 1))],
)
def test_where_the_published_regressor_is_possible_it_is_the_very_same(source, target):
    fit = fitting(source, target)
    assert (fit.kind, fit.source, fit.target, fit.notes) == ("conv", source, target, ())


@pytest.mark.parametrize("student", ["fine", "perceptron", "transformer"])
def test_auto_gives_the_numbers_of_conv_where_conv_is_possible(student):
    teacher = {"fine": "coarse", "perceptron": "wide perceptron", "transformer": "transformer"}[student]
    found = []
    for options in ({}, {"regressor": "conv"}):
        nets = pair(student, teacher)
        torch.manual_seed(3)
        stages = plan(partial(fitnets, **options), nets, DATA, SETTING)
        epochs = run(stages, nets, training_batches(DATA, SETTING, seed=0, engine=ENGINE), ENGINE)
        found.append([epoch.loss for epoch in epochs])
    assert found[0] == found[1]


def test_a_regressor_that_nobody_asked_for_is_not_huge():
    with pytest.raises(LimbeckError, match=r"would have 67,108,864 weights; name a guided_layer and a hint_layer of"):
        fitting((4096,), (256, 8, 8))
    with pytest.raises(LimbeckError, match="weights; name a guided_layer"):
        fitting((256, 56, 56), (512,))
    regressor((4, 56, 56), (8, 1, 1))  # as published: it is not for us to refuse


def test_the_advice_where_conv_was_asked_for_works():
    nets = pair("coarse", "fine")
    with pytest.raises(LimbeckError, match="set regressor: auto or upsample, or choose a later hint or an earlier"):
        plan(partial(fitnets, regressor="conv"), nets, DATA, SETTING)
    for options in ({"regressor": "auto"}, {"regressor": "upsample"}, {"regressor": "conv", "hint_layer": "6"}):
        plan(partial(fitnets, **options), nets, DATA, SETTING)
    mixed = pair("perceptron", "coarse")
    with pytest.raises(LimbeckError, match="set regressor: auto or full"):
        plan(partial(fitnets, regressor="conv"), mixed, DATA, SETTING)
    for kind in ("auto", "full"):
        plan(partial(fitnets, regressor=kind), mixed, DATA, SETTING)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 4, 5), (3, 4, 5)),
        ((7,), (7, 1, 1)),
        ((16, 8), (8, 4, 4)),
        ((17, 8), (8, 4, 4)),
        ((198, 8), (8, 14, 14)),
        ((261, 8), (8, 16, 16)),
        ((20, 8), None),
        ((12, 8), None),
    ],
)
def test_what_is_taken_as_a_map(shape, expected):
    assert map_shape(shape) == expected
    if expected is not None:
        assert as_map(torch.randn(2, *shape)).shape == (2, *expected)
    else:
        with pytest.raises(LimbeckError, match="its tokens form no square"):
            as_map(torch.randn(2, *shape))


def test_tokens_become_the_map_of_their_patches_row_by_row_without_the_class_token():
    image = torch.arange(18.0).reshape(1, 2, 3, 3)
    tokens = torch.cat([torch.full((1, 1, 2), -1.0), image.flatten(2).mT], dim=1)
    assert torch.equal(as_map(tokens), image)


def test_a_hint_of_tokens_is_compared_with_its_map():
    student, tokens = torch.randn(2, 8, 4, 4), torch.randn(2, 17, 8)
    for average in ("batch", "elements"):
        expected = hint_loss(student, tokens[:, 1:].mT.reshape(2, 8, 4, 4), average=average)
        assert torch.equal(hint_loss(student, tokens, average=average), expected)


def test_tokens_that_form_no_square_take_a_full_regressor_or_are_refused_by_the_one_stage_form():
    assert fitting((10, 4), (7, 4)).kind == "full"
    setup = type(
        "Setup",
        (),
        {"shape": staticmethod(lambda tap: (10, 4) if tap.source == "student" else (7, 4)), "batch_size": 8},
    )()
    with pytest.raises(
        LimbeckError, match="tokens that do not form a square cannot be compared as maps: name other layers"
    ):
        fitnets_one_stage(setup, guided_layer="a", hint_layer="b")


def test_the_one_stage_regressor_of_tokens_may_be_negative():
    student = torch.randn(8, 4, 3, 3)
    assert one_stage_regressor((4, 3, 3), (6, 3, 3))(student).min() == 0
    assert one_stage_regressor((4, 3, 3), (6, 3, 3), activated=False)(student).min() < 0
    (stage,) = plan(fitnets_one_stage, pair("fine", "transformer"), DATA, SETTING)
    assert isinstance(stage.terms["hint"].loss.connector[-1], nn.Identity)
    assert stage.terms["hint"].reads[1] == Tap("teacher", "blocks.0")
