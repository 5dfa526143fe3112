"""What `precision: auto` decides by. Most tests give the times instead of taking them."""

import itertools
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core import TARGETS, Batch, LimbeckError, Stage, Term, from_student, from_teacher
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train import engine as engine_module
from limbeck.train import timing
from limbeck.train.engine import make_engine
from limbeck.train.timing import resolve_precision


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

    def example_inputs(self):
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
    options = {"device": "cpu", "precision": "auto"} | asked
    return resolve_precision(plan or stages(), networks(), source or Source(), stored=stored, **options)


@pytest.fixture
def units(monkeypatch):
    monkeypatch.setattr(timing, "has_bf16_units", lambda device: True)
    monkeypatch.setattr(engine_module, "has_bf16_units", lambda device: True)


@pytest.fixture
def times(monkeypatch):
    """The seconds of a step, by precision."""

    def give(**seconds):
        taken = []

        def timed(stage, networks, batches, engine, zeros):
            taken.append(f"p{engine.precision}")
            return seconds[taken[-1]]

        monkeypatch.setattr(timing, "time_steps", timed)
        return taken

    return give


@pytest.mark.parametrize(("bf16", "picked"), [(0.5, "bf16"), (0.86, "bf16"), (0.9, "32"), (2.0, "32")])
def test_bf16_is_taken_where_it_is_clearly_faster(units, times, bf16, picked):
    taken = times(p32=1.0, pbf16=bf16)
    assert pick().precision == picked
    assert taken == ["p32", "pbf16"] * 2


def test_nothing_is_timed_where_there_is_no_choice(times, monkeypatch):
    monkeypatch.setattr(timing, "has_bf16_units", lambda device: False)
    monkeypatch.setattr(engine_module, "has_bf16_units", lambda device: False)
    taken = times()
    assert pick().precision == "32"
    assert pick(precision="bf16").precision == "bf16"
    assert pick(compile=True).compile is True
    assert taken == []


@pytest.mark.parametrize(("turns", "picked"), [((1.0, 0.9, 1.0, 0.5), "bf16"), ((0.5, 0.9, 1.0, 0.5), "32")])
def test_the_best_of_two_turns_counts(units, monkeypatch, turns, picked):
    left = iter(turns)
    monkeypatch.setattr(timing, "time_steps", lambda *_: next(left))
    assert pick().precision == picked
    assert list(left) == []


def test_the_longest_stage_is_timed(units, monkeypatch):
    seen = []
    monkeypatch.setattr(timing, "time_steps", lambda stage, *_: (seen.append(stage.epochs), 1.0)[1])
    pick((*stages(2), *stages(9), *stages(99, prepare=lambda sweep: None)))
    assert seen == [9] * 4


def test_a_method_that_must_prepare_is_not_timed(units, times):
    taken = times()
    assert pick(stages(prepare=lambda sweep: None)).reason.endswith("their speed was not measured")
    assert taken == []


def test_timing_takes_a_few_steps_and_leaves_no_trace(units):
    source, given = Source(), networks()
    before = {name: value.clone() for name, value in given["student"].state_dict().items()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    resolve_precision(stages(epochs=50), given, source, device="cpu", precision="auto")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in given["student"].state_dict().items())
    assert given["student"].training
    assert source.given == 4 * (timing.STEPS + 2)


def test_timing_stops_when_its_patience_is_over(units, monkeypatch):
    clock = itertools.count(step=20)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    source = Source()
    resolve_precision(stages(), networks(), source, device="cpu", precision="auto")
    assert source.given == 4 * 3


class Late:
    """A training's run whose steps take these seconds, by the clock that the timing reads."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds, self.steps = 0.0, seconds, 0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing, "run", self.run)

    def run(self, stages, networks, batches, engine, store):
        for _, seconds in zip(batches(0), self.seconds, strict=False):
            self.now += seconds
            self.steps += 1
        yield


@pytest.mark.parametrize(
    ("seconds", "median", "steps"),
    [
        ([12.0, *[0.5] * 9], 0.5, 5),  # a first step that compiles
        ([12.0, 0.3, 0.7, 0.4, 0.5, 9.0], 0.45, 5),
        ([1.0, 30.0, 1.0], 30.0, 2),
        ([1.0, 1.5, 1.5, 1.0], 1.5, 3),
    ],
)
def test_the_first_step_is_neither_counted_nor_waited_for(monkeypatch, seconds, median, steps):
    late = Late(monkeypatch, seconds)
    found = timing.time_steps(stages()[0], networks(), Source(), make_engine(device="cpu", precision="32"), None)
    assert found == pytest.approx(median)
    assert late.steps == steps


class OneBatch(Source):
    def __len__(self):
        return 1

    def __call__(self, epoch):
        self.given += 1
        yield Batch(self.inputs, torch.arange(40) % 2, torch.arange(40), epoch)


def test_a_training_of_one_batch_an_epoch_is_timed_after_its_first_step_too(units, monkeypatch):
    Late(monkeypatch, [12.0, *[0.5] * 9])
    engine = make_engine(device="cpu", precision="32")
    assert timing.time_steps(stages()[0], networks(), OneBatch(), engine, None) == 0.5


def test_no_timed_step_is_beyond_the_end_of_its_training(units):
    progress = []
    ((stage,),) = (stages(),)
    plan = (Stage("one", stage.terms, 1, stage.optimizer, lambda passed: (progress.append(passed), 1.0)[1]),)
    pick(plan, OneBatch())
    assert len(progress) == 4 * (timing.STEPS + 1)
    assert max(progress) < 1


class NotToBeCopied(nn.Linear):
    def __init__(self):
        super().__init__(6, 2)
        self.lock = threading.Lock()


class Keeping(nn.Linear):
    """A copy's hook keeps its tensor in the network that was copied."""

    def __init__(self):
        super().__init__(6, 2)
        self.kept = {}
        self.inner = nn.Identity()
        self.inner.register_forward_hook(lambda module, args, output: self.kept.update(x=output))

    def forward(self, x):
        self.inner(super().forward(x))
        return self.kept["x"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (NotToBeCopied, "not measured: the student cannot be copied, because its lock is a lock: TypeError"),
        (Keeping, "not measured: a copy of the networks does not run"),
    ],
)
def test_networks_that_cannot_be_copied_are_not_timed_and_it_is_said(units, kind, reason):
    def pick(**asked):
        given = networks() | {"student": kind()}
        options = {"device": "cpu", "precision": "auto"} | asked
        return resolve_precision(stages(), given, Source(), **options)

    engine = pick()
    assert (engine.precision, engine.compile) == ("32", False)
    assert engine.reason.startswith(reason)
    engine = pick(precision="bf16")
    assert (engine.precision, engine.compile, engine.reason) == ("bf16", False, "asked for")
    assert pick(compile=True).compile is True


def test_what_the_user_can_fix_is_raised_by_the_timing(units):
    def refuses(student, teacher):
        raise LimbeckError("fix me")

    with pytest.raises(LimbeckError, match=r"^fix me$"):
        pick((Stage("one", {"soft": Term(refuses, (from_student(), from_teacher()))}, 2, sgd(lr=0.1), constant()),))


def test_a_timed_step_that_fails_leaves_the_generators_as_they_were(units):
    def refuses(student, teacher):
        torch.rand(1)
        raise LimbeckError("no")

    plan = (Stage("one", {"soft": Term(refuses, (from_student(), from_teacher()))}, 2, sgd(lr=0.1), constant()),)
    given, state = networks(), torch.get_rng_state()
    with pytest.raises(LimbeckError):
        resolve_precision(plan, given, Source(), device="cpu", precision="auto")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_compiler_that_is_missing_is_said_before_anything_is_timed(units, times, monkeypatch):
    monkeypatch.setattr(engine_module, "can_compile", lambda device: False)
    taken = times()
    with pytest.raises(LimbeckError, match="has no compiler"):
        pick(compile=True)
    assert taken == []


def test_a_training_that_diverges_is_left_to_tell_it_itself(units):
    def nan(student, teacher):
        return student.sum() * float("nan")

    plan = (Stage("one", {"soft": Term(nan, (from_student(), from_teacher()))}, 2, sgd(lr=0.1), constant()),)
    assert pick(plan).reason.startswith("measured")


def test_a_stored_teacher_does_not_run_while_steps_are_timed(units):
    given = networks()
    given["teacher"].register_forward_pre_hook(lambda module, values: _few_only(values[0]))
    stored = frozenset({from_teacher()})
    engine = resolve_precision(stages(), given, Source(), device="cpu", precision="auto", stored=stored)
    assert engine.reason.startswith("measured")  # an error in a timed step would be its reason


def _few_only(inputs):
    assert len(inputs) == 2  # for the shapes
