import inspect

import pytest
import torch
from torch import nn

from limbeck.core import LimbeckError
from limbeck.optimizers import OPTIMIZERS, adam, adamw, rmsprop, sgd
from limbeck.options import call, fill

KINDS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}
# none of them a default, here or in torch
OPTIONS = {
    "sgd": {"lr": 0.3, "momentum": 0.7, "weight_decay": 0.02, "nesterov": True},
    "adam": {"lr": 0.3, "betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.02},
    "adamw": {"lr": 0.3, "betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.02},
    "rmsprop": {"lr": 0.3, "alpha": 0.4, "eps": 1e-3, "momentum": 0.7, "weight_decay": 0.02},
}


def parameter():
    return nn.Parameter(torch.tensor([1.0, -2.0]))


def test_every_optimizer_is_tested():
    assert set(OPTIMIZERS) == set(KINDS) == set(OPTIONS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_options_are_all_handed_on(name):
    assert set(OPTIONS[name]) == set(inspect.signature(OPTIMIZERS[name]).parameters)
    made = OPTIMIZERS[name](**OPTIONS[name])([parameter()])
    assert type(made) is KINDS[name]
    group = made.param_groups[0]
    assert {key: group[key] for key in OPTIONS[name]} == OPTIONS[name]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_steps_are_those_of_torch(name):
    ours, theirs = parameter(), parameter()
    made = OPTIMIZERS[name](**OPTIONS[name])([ours])
    reference = KINDS[name]([theirs], **OPTIONS[name])
    for factor in (1.0, 3.0):
        for weights, optimizer in ((ours, made), (theirs, reference)):
            optimizer.zero_grad()
            (factor * weights**3).sum().backward()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert not torch.equal(ours, parameter())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_call_makes_a_fresh_one(name):
    make = OPTIMIZERS[name](lr=0.1)
    first = make([parameter()])
    first.param_groups[0]["lr"] = 5.0
    second = make(iter([parameter()]))
    assert second is not first
    assert second.param_groups[0]["lr"] == 0.1
    assert second.state == {}


def test_the_defaults_are_written_here():
    group = sgd(lr=1.0)([parameter()]).param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["nesterov"], group["dampening"]) == (0.9, 0.0, False, 0)
    group = adam()([parameter()]).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-3, (0.9, 0.999), 1e-8, 0.0)
    group = adamw()([parameter()]).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-3, (0.9, 0.999), 1e-8, 1e-2)
    group = rmsprop(lr=1.0)([parameter()]).param_groups[0]
    assert (group["alpha"], group["eps"], group["momentum"], group["centered"]) == (0.9, 1e-5, 0.0, False)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_block_makes_the_same_optimizer(name):
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in OPTIONS[name].items()}
    block = fill(OPTIMIZERS, {"name": name, **listed}, kind="optimizer")
    assert block == {"name": name, **listed}
    group = call(OPTIMIZERS, block)([parameter()]).param_groups[0]
    assert {key: group[key] for key in listed if key != "betas"} == {k: v for k, v in listed.items() if k != "betas"}
    assert tuple(group.get("betas", ())) == tuple(listed.get("betas", ()))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("sgd", "optimizer: the key 'lr' is missing"),
        ({"name": "sgd", "lr": "0.1"}, "optimizer.lr: got '0.1': it must be a number"),
        ({"name": "adam", "beta": [0.9, 0.9]}, "optimizer.beta: unknown key 'beta': did you mean 'betas'?"),
        ({"name": "adam", "betas": 0.9}, "optimizer.betas: got 0.9: it must be a list"),
        ("admw", "optimizer.name: there is no optimizer 'admw': did you mean 'adamw'?"),
    ],
)
def test_a_wrong_block_is_refused(block, message):
    with pytest.raises(LimbeckError) as caught:
        fill(OPTIMIZERS, block, kind="optimizer")
    assert str(caught.value).startswith(message)
