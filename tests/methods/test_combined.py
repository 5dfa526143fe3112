from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import limbeck
from limbeck.core import LimbeckError
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.combined import combined
from limbeck.methods.fitnets import fitnets
from limbeck.methods.fsp import fsp
from limbeck.methods.kd import kd
from limbeck.methods.mimic import mimic
from limbeck.methods.srrl import srrl
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant, linear
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

TRAINING = Training(epochs=1, batch_size=8, optimizer=sgd(lr=0.01), schedule=constant())


def data():
    return limbeck.arrays(torch.randn(30, 3, 8, 8), torch.arange(30) % 3, classes=list("abc"))


def networks():
    return {name: build("resnet8", classes=3, shape=(3, 8, 8)) for name in ("student", "teacher")}


def planned(*parts):
    return plan(partial(combined, parts=parts), networks(), data(), TRAINING)


def test_terms_of_one_stage_are_summed_and_the_same_term_stays_one():
    (stage,) = planned(kd, srrl)
    assert stage.name == "kd+srrl"
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 1.1, "soft": 0.9, "conv4": 1.0}


def test_the_objective_is_the_sum_of_the_objectives():
    torch.manual_seed(1)
    group, given = networks(), data()
    values = []
    for method in (kd, partial(srrl, alpha=2.0), partial(combined, parts=[kd, partial(srrl, alpha=2.0)])):
        torch.manual_seed(2)
        stages = [
            replace(stage, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
            for stage in plan(method, group, given, TRAINING)
        ]
        engine = make_engine(device="cpu", precision="32")
        (epoch,) = run(stages, group, training_batches(given, TRAINING, seed=0, engine=engine), engine)
        values.append(epoch.loss)
    assert values[2] == pytest.approx(values[0] + values[1], rel=1e-5)


def test_other_terms_of_one_name_are_told_apart():
    (stage,) = planned(kd, partial(srrl, soft=0.5, temperature=2.0))
    assert list(stage.terms) == ["hard", "soft", "conv4", "srrl_soft"]


def test_first_stages_come_in_order_and_the_last_become_one():
    stages = planned(fitnets, fsp, kd)
    assert [stage.name for stage in stages] == ["hint", "fsp", "kd+task+kd"]
    assert [stage.learns for stage in stages] == [("student",)] * 3


def test_a_method_that_gives_the_student_another_classifier_cannot_be_combined():
    with pytest.raises(
        LimbeckError, match=r"mimic and kd cannot be combined in one stage: mimic replaces the student's classifier"
    ):
        planned(mimic, kd)


def test_stages_of_different_lengths_cannot_be_one():
    def short(setup):
        return kd(replace(setup, epochs=2))

    with pytest.raises(LimbeckError, match=r"their epochs differ \(kd: 2, srrl: 1\)"):
        planned(short, srrl)


def test_stages_in_which_different_networks_learn_cannot_be_one():
    def other(setup):
        return tuple(replace(stage, learns=("teacher",)) for stage in kd(setup))

    with pytest.raises(LimbeckError, match=r"their learns differ"):
        planned(other, srrl)


def test_a_schedule_and_a_number_are_added():
    (stage,) = planned(partial(kd, hard=linear(start=1.0, end=0.0)), srrl)
    assert [stage.terms["hard"].weight(progress) for progress in (0.0, 0.5)] == [2.0, 1.5]


def test_no_term_is_lost_among_several_of_one_name():
    (stage,) = planned(*(partial(kd, hard=0.0, soft=float(t), temperature=float(t)) for t in (2, 4, 8)))
    assert {name: term.weight for name, term in stage.terms.items()} == {"soft": 2.0, "kd_soft": 4.0, "kd_soft_2": 8.0}


def test_rates_of_their_own_cannot_be_one_stages():
    with pytest.raises(LimbeckError, match=r"one of them changes the learning rates"):
        planned(kd, partial(fitnets, conv_rate=0.05))


def test_an_empty_list_is_refused():
    with pytest.raises(LimbeckError, match=r"got an empty list of methods"):
        planned()


def test_two_preparations_cannot_be_one():
    def preparing(setup):
        return tuple(replace(stage, prepare=lambda sweep: None) for stage in kd(setup))

    with pytest.raises(LimbeckError, match=r"both need a pass over the training set before each epoch"):
        planned(preparing, preparing)


def test_what_one_of_them_prepares_is_kept():
    seen = []

    def preparing(setup):
        return tuple(replace(stage, prepare=lambda sweep: seen.append(sweep.epoch)) for stage in kd(setup))

    group, given, engine = networks(), data(), make_engine(device="cpu", precision="32")
    stages = plan(partial(combined, parts=[srrl, preparing]), group, given, TRAINING)
    list(run(stages, group, training_batches(given, TRAINING, seed=0, engine=engine), engine))
    assert seen == [0]


def test_distill_takes_a_list():
    group = networks()
    before = {name: value.clone() for name, value in group["teacher"].state_dict().items()}
    _, result = limbeck.distill(
        group["teacher"],
        group["student"],
        data(),
        method=["kd", {"name": "srrl", "beta": 0.5}],
        epochs=1,
        baseline=False,
        device="cpu",
        precision="32",
    )
    assert result.method == "kd+srrl"
    assert all(torch.equal(before[name], value) for name, value in group["teacher"].state_dict().items())


def test_a_list_names_what_is_wrong():
    with pytest.raises(LimbeckError, match=r"there is no method 'srl'"):
        limbeck.distill(nn.Identity(), nn.Identity(), data(), method=["kd", "srl"])
