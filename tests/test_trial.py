"""What `auto` decides by: the trial's times are given here, not taken."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck import engine as engine_module
from limbeck import trial
from limbeck.core import TARGETS, Batch, Stage, Term, from_student, from_teacher
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.trial import engine_for


class Source:
    samples = 40

    def __init__(self):
        self.inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
        self.given = 0

    def __len__(self):
        return 10

    def __call__(self, epoch):
        for index in torch.arange(40).split(4):
            self.given += 1
            yield Batch(self.inputs[index], index % 2, index, epoch)

    def sweep(self):
        return self(0)

    def few(self):
        return self.inputs[:2]


def mimic(student, teacher):
    return F.mse_loss(student, teacher.detach())


def networks():
    torch.manual_seed(0)
    return {"student": nn.Sequential(nn.Linear(6, 2), nn.Dropout(0.5)), "teacher": nn.Linear(6, 2)}


def stages(epochs=2, **changes):
    terms = {
        "hard": Term(F.cross_entropy, (from_student(), TARGETS)),
        "soft": Term(mimic, (from_student(), from_teacher())),
    }
    return (Stage("one", terms, epochs, sgd(lr=0.1), constant(), **changes),)


def pick(plan=None, source=None, stored=frozenset(), **asked):
    options = {"device": "cpu", "precision": "auto", "compile": False} | asked
    return engine_for(plan or stages(), networks(), source or Source(), stored=stored, **options)


@pytest.fixture
def units(monkeypatch):
    monkeypatch.setattr(trial, "has_bf16_units", lambda device: True)
    monkeypatch.setattr(engine_module, "has_bf16_units", lambda device: True)


@pytest.fixture
def times(monkeypatch):
    """The seconds of a step, by precision and whether it is compiled."""

    def give(**seconds):
        taken = []

        def timed(stage, networks, batches, engine, zeros):
            taken.append(f"compiled_{engine.precision}" if engine.compile else f"p{engine.precision}")
            return seconds[taken[-1]]

        monkeypatch.setattr(trial, "_seconds", timed)
        return taken

    return give


@pytest.mark.parametrize(("bf16", "picked"), [(0.5, "bf16"), (0.86, "bf16"), (0.9, "32"), (2.0, "32")])
def test_bf16_is_taken_where_it_is_clearly_faster(units, times, bf16, picked):
    taken = times(p32=1.0, pbf16=bf16)
    assert pick().precision == picked
    assert taken == ["p32", "pbf16"] * 2


def test_nothing_is_tried_where_there_is_no_choice(times, monkeypatch):
    monkeypatch.setattr(trial, "has_bf16_units", lambda device: False)
    monkeypatch.setattr(engine_module, "has_bf16_units", lambda device: False)
    taken = times()
    assert pick().precision == "32"
    assert pick(precision="bf16").precision == "bf16"
    assert pick(compile=True).compile is True
    assert taken == []


@pytest.mark.parametrize(("step", "compiled", "pays"), [(60.0, 40.0, True), (60.0, 58.0, False), (10.0, 1.0, False)])
def test_a_long_training_is_compiled_where_that_is_faster(times, step, compiled, pays):
    taken = times(p32=step, compiled_32=compiled)
    assert pick(precision="32", compile="auto").compile is pays  # 20 steps
    assert taken == ["p32", "p32"] + (["compiled_32"] if step == 60.0 else [])


def test_what_cannot_be_compiled_stays_eager(times, monkeypatch):
    from limbeck.compiled import CannotCompile

    def timed(stage, networks, batches, engine, zeros):
        if engine.compile:
            raise CannotCompile("no")
        return 60.0

    monkeypatch.setattr(trial, "_seconds", timed)
    assert pick(precision="32", compile="auto").compile is False


def test_a_teacher_that_is_read_from_a_store_is_not_compiled(times):
    taken = times()
    assert pick(precision="32", compile="auto", stored=frozenset({from_teacher()})).compile is False
    assert taken == []


def test_a_method_that_must_prepare_is_not_tried(units, times):
    taken = times()
    assert pick(stages(prepare=lambda sweep: None)).reason.endswith("their speed was not tried")
    assert taken == []


def test_the_trial_itself_takes_a_few_steps_and_leaves_no_trace(units):
    source, given = Source(), networks()
    before = {name: value.clone() for name, value in given["student"].state_dict().items()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    engine_for(stages(epochs=50), given, source, device="cpu", precision="auto", compile="auto")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in given["student"].state_dict().items())
    assert given["student"].training
    assert source.given == 4 * (trial.STEPS + 2)


def test_the_trial_stops_when_its_patience_is_over(units, monkeypatch):
    clock = itertools.count(step=20)
    monkeypatch.setattr(trial.time, "perf_counter", lambda: next(clock))
    source = Source()
    engine_for(stages(), networks(), source, device="cpu", precision="auto", compile=False)
    assert source.given == 4 * 2


def test_a_training_that_diverges_is_left_to_tell_it_itself(units):
    def nan(student, teacher):
        return student.sum() * float("nan")

    plan = (Stage("one", {"soft": Term(nan, (from_student(), from_teacher()))}, 2, sgd(lr=0.1), constant()),)
    assert pick(plan).reason.startswith("tried")


def test_a_stored_teacher_does_not_run_in_the_trial(units):
    given = networks()
    given["teacher"].register_forward_pre_hook(lambda module, values: _few_only(values[0]))
    engine_for(
        stages(), given, Source(), device="cpu", precision="auto", compile=False, stored=frozenset({from_teacher()})
    )


def _few_only(inputs):
    assert len(inputs) == 2  # for the shapes
