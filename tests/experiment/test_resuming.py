import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core import TARGETS, Batch, LimbeckError, Stage, Term, from_student
from limbeck.experiment.resuming import check_state
from limbeck.optimizers import OPTIMIZERS
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

ENGINE = make_engine(device="cpu", precision="32")
RATES = {"sgd": {"lr": 0.1}, "adam": {}, "adamw": {}, "rmsprop": {"lr": 0.01}}


class Source:
    """Two batches of four samples."""

    samples = 8

    def __len__(self):
        return 2

    def __call__(self, epoch):
        for index in torch.arange(8).split(4):
            yield Batch(torch.randn(4, 6), index % 2, index, epoch)

    def example_inputs(self):
        return torch.zeros(2, 6)


def networks():
    student = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    student[0].bias.requires_grad_(False)
    return {"student": student}


def stages(optimizer="sgd", **options):
    made = OPTIMIZERS[optimizer](**{**RATES[optimizer], **options})
    task = Term(F.cross_entropy, (from_student(), TARGETS))
    return [Stage(name, {"task": task}, 2, made, constant(), learns=learns) for name, learns in PARTS]


PARTS = (("first", ("student.0", "student.1")), ("second", ("student",)))


def states(plan):
    """The state after each epoch."""
    return [copy.deepcopy(epoch.state()) for epoch in run(plan, networks(), Source(), ENGINE)]


def first(state):
    return next(name for name in state["modules"] if name.endswith("0.weight"))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_after_any_epoch_is_taken_and_nothing_changes(optimizer):
    plan, asked = stages(optimizer), networks()
    before = copy.deepcopy(asked["student"].state_dict())
    flags = [parameter.requires_grad for parameter in asked["student"].parameters()]
    generator = torch.get_rng_state()
    for state in states(plan):
        drawn = torch.get_rng_state()
        check_state(state, plan, asked, ENGINE)
        assert torch.equal(torch.get_rng_state(), drawn)
    assert not torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in asked["student"].state_dict().items())
    assert [parameter.requires_grad for parameter in asked["student"].parameters()] == flags


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(stage=-1), "its stage is -1: allowed are 0 to 1"),
        (lambda state: state.update(stage=2), "its stage is 2"),
        (lambda state: state.update(stage=True), "its stage is True"),
        (lambda state: state.update(epoch=99), "its epoch is 99: allowed are 1 to 2 in stage 'first'"),
        (lambda state: state.update(epoch=0), "its epoch is 0"),
        (lambda state: state.update(epoch=None), "its epoch is None"),
        (lambda state: state.update(more=1), "it does not contain the state of a training"),
        (lambda state: state.clear(), "it does not contain the state of a training"),
        (lambda state: state.update(modules=None), "its modules are missing"),
        (lambda state: state.update(modules={}), "its modules lack "),
        (lambda state: state["modules"].pop(first(state)), "its modules lack .*0.weight"),
        (lambda state: state["modules"].update(more=torch.zeros(1)), "its modules hold 'more'"),
        (
            lambda state: state["modules"].update({first(state): torch.zeros(1)}),
            r"is float32 \(1,\), expected float32",
        ),
        (lambda state: state["modules"].update({first(state): torch.zeros(4, 6).double()}), "is float64"),
        (lambda state: state["modules"].update({first(state): 3}), "is int, expected float32"),
        (lambda state: state["modules"][first(state)].fill_(torch.nan), "0.weight holds a NaN or an infinite number"),
        (lambda state: state.update(generators={}), "its generators lack 'cpu'"),
        (lambda state: state.update(generators=None), "its generators are missing"),
        (lambda state: state["generators"]["cpu"].zero_(), "its generators are not states of a generator"),
        (lambda state: state["generators"].update(cpu=torch.zeros(3)), r"'cpu' is float32 \(3,\)"),
        (lambda state: state.update(optimizer={}), "its optimizer does not hold the state of an optimizer"),
        (
            lambda state: state["optimizer"].update(param_groups=None),
            "its optimizer differs from that of stage 'first'",
        ),
        (lambda state: state["optimizer"].update(param_groups=[3]), "its optimizer differs from that of stage 'first'"),
        (lambda state: state["optimizer"]["param_groups"][0].update(weight_decay=1.0), "or has other options"),
        (lambda state: state["optimizer"]["param_groups"][0].update(params=[0]), "or has other options"),
        (lambda state: state["optimizer"]["state"].update({99: {}}), "holds states of parameters that do not exist"),
        (lambda state: state["optimizer"]["state"][0].clear(), "its optimizer's state 0 lack 'momentum_buffer'"),
        (lambda state: state["optimizer"]["state"].update({0: 3}), "its optimizer's state 0 are missing"),
        (
            lambda state: state["optimizer"]["state"][0]["momentum_buffer"].fill_(torch.inf),
            "momentum_buffer 0 holds a NaN",
        ),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    plan = stages()
    state = states(plan)[0]
    check_state(state, plan, networks(), ENGINE)
    change(state)
    with pytest.raises(LimbeckError, match=message):
        check_state(state, plan, networks(), ENGINE)


@pytest.mark.parametrize("value", [None, 3, [], "state"])
def test_what_is_no_state_at_all_is_refused(value):
    with pytest.raises(LimbeckError, match="it does not contain the state of a training"):
        check_state(value, stages(), networks(), ENGINE)


@pytest.mark.parametrize("other", ["adam", "rmsprop"])
def test_the_state_of_another_optimizer_is_refused(other):
    state = states(stages(other))[0]
    with pytest.raises(LimbeckError, match="its optimizer differs from that of stage 'first'"):
        check_state(state, stages(), networks(), ENGINE)


def test_another_learning_rate_of_the_moment_is_the_schedules():
    state = states(stages())[0]
    state["optimizer"]["param_groups"][0]["lr"] = 1e-9
    check_state(state, stages(), networks(), ENGINE)
