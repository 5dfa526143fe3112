import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core import TARGETS, Batch, Stage, Tap, Term, from_student, from_teacher
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train import loop as train
from limbeck.train.engine import make_engine
from limbeck.train.loop import Diverged, run

ENGINE = make_engine(device="cpu", precision="32")


class Source:
    """40 samples in batches of 4; every epoch adds a little to them, as another view does."""

    samples = 40

    def __init__(self):
        self.inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
        self.targets = (self.inputs[:, 0] > 0).long()
        self.read = 0

    def __len__(self):
        return 10

    def __call__(self, epoch):
        for index in torch.arange(40).split(4):
            self.read += 1
            yield Batch(self.inputs[index] + 0.01 * epoch, self.targets[index], index, epoch)

    def sweep(self):
        for index in torch.arange(40).split(10):
            yield Batch(self.inputs[index], self.targets[index], index, 0)

    def example_inputs(self):
        return self.inputs[:2]


class Broken(nn.Module):
    """Gives NaN where the first input is above a bound."""

    def __init__(self, bound):
        super().__init__()
        self.first, self.second, self.bound = nn.Linear(6, 5), nn.Linear(5, 2), bound

    def forward(self, inputs):
        hidden = torch.where(inputs[:, :1] > self.bound, torch.nan, self.first(inputs))
        return self.second(hidden)


def plain():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def mimic(student, teacher):
    return F.mse_loss(student, teacher.detach())


def told(source, teacher, student=None, *, reads=None, rate=0.1, engine=ENGINE, store=None, terms=None, epochs=2):
    terms = terms or {
        "hard": Term(F.cross_entropy, (from_student(), TARGETS)),
        "soft": Term(mimic, reads or (from_student(), from_teacher())),
    }
    stage = Stage("both", terms, epochs, sgd(lr=rate), constant())
    with pytest.raises(Diverged) as error:
        list(run([stage], {"student": student or plain(), "teacher": teacher}, source, engine, store=store))
    return str(error.value)


def test_a_teacher_that_gives_nan_for_one_sample_is_named_with_the_sample_and_not_the_learning_rate():
    source = Source()
    bound = source.inputs[:, 0].sort(descending=True).values[1]
    worst = int(source.inputs[:, 0].argmax())
    message = told(source, Broken(bound))
    assert message == (
        f"stage 'both', epoch 1: soft, loss became NaN or infinite at step {worst // 4 + 1} of 10, because the teacher "
        f"gives NaN or infinite values for 1 of 40 training samples (2.5 %), which are, counted from 0, {worst}; "
        "correct that, or leave these samples out"
    )


def test_the_layer_that_is_read_is_named():
    message = told(Source(), Broken(0.0), reads=(from_student("0"), from_teacher("second", "input")))
    assert "because the teacher, at teacher.second (input), gives NaN or infinite values for" in message


def test_a_view_for_which_alone_the_teacher_gives_nan_is_found():
    source = Source()
    bound = source.inputs[:, 0].max() + 0.005  # the second epoch is above it
    message = told(source, Broken(bound))
    assert "epoch 2: soft, loss became" in message
    assert (
        f"1 of 40 training samples (2.5 %), which are, counted from 0, {int(source.inputs[:, 0].argmax())};" in message
    )


def test_inputs_that_are_not_finite_are_named_before_the_networks():
    source = Source()
    source.inputs[[3, 17]] = torch.inf
    message = told(source, plain())
    assert "because the inputs are NaN or infinite for 2 of 40 training samples (5 %), which are" in message
    assert "counted from 0, 3, 17; correct" in message


def test_a_student_that_gives_nan_at_once_is_not_blamed_on_the_learning_rate():
    message = told(Source(), plain(), Broken(-100.0))
    assert message.endswith(
        "hard, soft, loss became NaN or infinite at step 1 of 10, before anything was learnt, from finite inputs: look "
        "for NaN in the weights and the forward of student, and in the loss"
    )


def test_what_diverges_by_its_learning_rate_is_told_so():
    message = told(Source(), plain(), rate=1e30)
    assert "the inputs and the frozen networks are finite: lower the learning rate or the term's weight" in message
    assert message.endswith("the weights of student have no meaning any more")


def test_a_store_that_holds_nan_is_named_though_the_teacher_is_finite():
    class Store:
        taps = frozenset({from_teacher()})
        rows = 40

        def read(self, index, view):
            return {from_teacher(): torch.where(index[:, None] == 21, torch.nan, torch.zeros(len(index), 2))}

    message = told(Source(), plain(), store=Store())
    assert "the teacher gives NaN or infinite values for 1 of 40 training samples (2.5 %), which are" in message
    assert "counted from 0, 21;" in message


def test_it_is_told_before_the_epoch_is_over(monkeypatch):
    monkeypatch.setattr(train.Means, "_MOST", 2)
    source = Source()
    source.inputs[0] = torch.nan
    told(source, plain())
    assert source.read == 2 + 1  # the steps up to the sum, and the batch once more


def test_values_that_are_finite_and_whose_sum_is_not_stop_the_run_too():
    huge = {"huge": Term(lambda student: 3e38 + 0 * student.sum(), (Tap("student"),))}
    assert "huge, loss became NaN or infinite" in told(Source(), plain(), terms=huge, rate=1e-12)


def test_many_samples_are_not_all_listed():
    assert ", ...; correct" in told(Source(), Broken(0.0))


def test_weights_that_are_not_finite_at_the_end_of_an_epoch_stop_the_run_before_the_epoch_is_given():
    class One(Source):
        def __call__(self, epoch):
            yield Batch(self.inputs, self.targets, torch.arange(40), epoch)

        def __len__(self):
            return 1

    source = One()
    assert told(source, plain(), rate=1e39).startswith(
        "stage 'both', epoch 1: weights of student are NaN or infinite after step 1 of 1; the inputs"
    )


def test_a_training_that_diverges_ends_a_command_with_code_3():
    assert Diverged.exit_code == 3
