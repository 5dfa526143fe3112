"""Mutual learning, assistants, born-again networks and fine-tuning: methods whose networks are named."""

from functools import partial

import pytest
import torch

import limbeck
from limbeck.core import LimbeckError, Tap
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.assistants import assistants
from limbeck.methods.born_again import born_again
from limbeck.methods.fine_tune import fine_tune
from limbeck.methods.kd import soft_loss
from limbeck.methods.mutual import mutual, mutual_loss
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

TRAINING = Training(epochs=1, batch_size=8, optimizer=sgd(lr=0.1), schedule=constant())
ENGINE = make_engine(device="cpu", precision="32")
DATA = limbeck.arrays(torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3)


def networks(*names, kind="resnet8"):
    return {name: build(kind, classes=3, shape=(3, 8, 8)) for name in names}


def trained(method, group):
    """The networks' states before and after."""
    before = {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in group.items()}
    stages = plan(method, group, DATA, TRAINING)
    list(run(stages, group, training_batches(DATA, TRAINING, seed=0, engine=ENGINE), ENGINE))
    return stages, {
        name: not all(torch.equal(before[name][k], v) for k, v in net.state_dict().items())
        for name, net in group.items()
    }


def test_mutual_loss_is_the_mean_divergence_from_the_others_in_loops():
    own, first, second = (torch.randn(4, 5, dtype=torch.float64) for _ in range(3))
    total = 0.0
    for n in range(4):
        q = own[n].softmax(0)
        for other in (first, second):
            p = other[n].softmax(0)
            total += sum((p[k] * (p[k].log() - q[k].log())).item() for k in range(5))
    assert mutual_loss(own, first, second).item() == pytest.approx(total / (2 * 4), rel=1e-12)


def test_mutual_loss_sends_no_gradient_to_the_others():
    own, other = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    mutual_loss(own, other, temperature=2.0).backward()
    assert other.grad is None
    assert own.grad.abs().sum() > 0


def test_mutual_gradient_is_that_of_the_value():
    other = torch.randn(3, 4, dtype=torch.float64)
    own = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: mutual_loss(z, other), own)


def test_all_peers_learn_at_once():
    (stage,), changed = trained(mutual, networks("student", "peer", "third"))
    assert changed == {"student": True, "peer": True, "third": True}
    assert stage.terms["mutual_peer"].reads == (Tap("peer"), Tap("student"), Tap("third"))
    assert list(stage.terms) == [
        f"{kind}_{name}" for name in ("student", "peer", "third") for kind in ("hard", "mutual")
    ]


def test_mutual_learning_needs_a_peer():
    with pytest.raises(LimbeckError, match=r"needs at least two networks"):
        plan(mutual, networks("student"), DATA, TRAINING)


@pytest.mark.parametrize("method", [mutual, assistants, born_again])
def test_a_temperature_of_zero_is_refused(method):
    with pytest.raises(LimbeckError, match=r"temperature is 0.0: it must be above 0"):
        plan(partial(method, temperature=0.0), networks("student", "teacher", "extra"), DATA, TRAINING)


def test_each_assistant_learns_from_the_one_before_it():
    stages, changed = trained(assistants, networks("student", "middle", "small", "teacher"))
    assert [(stage.name, stage.learns) for stage in stages] == [
        ("middle", ("middle",)),
        ("small", ("small",)),
        ("student", ("student",)),
    ]
    assert [stage.terms["soft"].reads for stage in stages] == [
        (Tap("middle"), Tap("teacher")),
        (Tap("small"), Tap("middle")),
        (Tap("student"), Tap("small")),
    ]
    assert changed == {"student": True, "middle": True, "small": True, "teacher": False}


def test_the_soft_targets_of_a_chain_are_those_of_kd():
    stage = plan(partial(assistants, temperature=3.0), networks("student", "middle", "teacher"), DATA, TRAINING)[0]
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.equal(stage.terms["soft"].loss(student, teacher), soft_loss(student, teacher, temperature=3.0))


def test_there_must_be_an_assistant():
    with pytest.raises(LimbeckError, match=r"there is no assistant"):
        plan(assistants, networks("student", "teacher"), DATA, TRAINING)


def test_generations_follow_each_other():
    stages, changed = trained(born_again, networks("student", "second", "teacher"))
    assert [stage.name for stage in stages] == ["second", "student"]
    assert changed == {"student": True, "second": True, "teacher": False}


def test_generations_are_of_one_architecture():
    group = networks("student", "teacher") | networks("second", kind="resnet14")
    with pytest.raises(LimbeckError, match=r"the second is another network than the student"):
        plan(born_again, group, DATA, TRAINING)


def test_fine_tuning_trains_all_layers():
    _, changed = trained(fine_tune, networks("student"))
    assert changed == {"student": True}


def test_a_frozen_backbone_stays_as_it_is_and_its_statistics_too():
    group = networks("student")
    before = {k: v.clone() for k, v in group["student"].state_dict().items()}
    trained(partial(fine_tune, backbone="frozen"), group)
    changed = {k for k, v in group["student"].state_dict().items() if not torch.equal(before[k], v)}
    assert changed == {"head.weight", "head.bias"}
