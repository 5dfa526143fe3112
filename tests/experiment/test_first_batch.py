"""What a first batch shows: gradients that outweigh the task's, constant tensors, buffers that change."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core import TARGETS, Batch, Stage, Term, from_student, from_teacher
from limbeck.experiment.first_batch import first_batch
from limbeck.optimizers import sgd
from limbeck.schedules import constant

BATCH = Batch(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3, torch.arange(8), 0)


def found(teacher, *, weight=1.0, student=None, reads=None):
    torch.manual_seed(1)
    nets = {"student": student or nn.Linear(4, 3), "teacher": teacher}
    terms = {
        "hard": Term(F.cross_entropy, (from_student(), TARGETS)),
        "soft": Term(F.mse_loss, reads or (from_student(), from_teacher()), weight),
    }
    before = {name: value.clone() for net in nets.values() for name, value in net.state_dict().items()}
    notes = first_batch([Stage("own", terms, 2, sgd(lr=0.1), constant())], nets, BATCH)
    after = {name: value for net in nets.values() for name, value in net.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    return notes


def test_of_an_ordinary_pair_there_is_nothing_to_say():
    assert found(nn.Linear(4, 3)) == []


@pytest.mark.parametrize("weight", [1e4, lambda progress: 1e4 * (1 - progress)])
def test_a_term_that_outweighs_the_labels_is_told_with_both_norms(weight):
    (note,) = found(nn.Linear(4, 3), weight=weight)
    assert note.check == "gradients"
    one, other = (float(word.strip(",:")) for word in note.said.split() if word[0].isdigit() and word != "100")
    assert one > 100 * other > 0
    assert note.said.startswith("the gradient of the term 'soft' of stage 'own' has the norm")


def test_a_tensor_that_is_the_same_for_all_samples_is_told():
    teacher = nn.Linear(4, 3)
    nn.init.zeros_(teacher.weight)
    (note,) = found(teacher)
    assert note == ("teacher is the same for all 8 samples of the first batch", "constant", "", False)


def test_without_a_term_of_the_labels_the_gradients_are_not_compared():
    terms = {"soft": Term(F.mse_loss, (from_student(), from_teacher()), 1e6)}
    networks = {"student": nn.Linear(4, 3), "teacher": nn.Linear(4, 3)}
    (note,) = first_batch([Stage("own", terms, 2, sgd(lr=0.1), constant())], networks, BATCH)
    assert (note.check, note.skipped) == ("gradients", True)


def test_what_cannot_be_compared_is_skipped():
    nets = {"student": nn.Linear(4, 3), "teacher": nn.Linear(4, 3)}
    terms = {
        "hard": Term(lambda student, targets: 0 * student.sum(), (from_student(), TARGETS)),
        "soft": Term(F.mse_loss, (from_student(), from_teacher())),
    }
    one = Batch(BATCH.inputs[:1], BATCH.targets[:1], BATCH.index[:1], 0)
    notes = first_batch([Stage("own", terms, 2, sgd(lr=0.1), constant())], nets, one)
    assert [(note.check, note.skipped) for note in notes] == [("gradients", True), ("constant", True)]


class Counts(nn.Linear):
    """A network that counts its forwards also in eval mode."""

    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("forwards", torch.zeros(()))

    def forward(self, inputs):
        self.forwards += 1
        return super().forward(inputs)


class Caches(nn.Sequential):
    """A network that registers a buffer in its forward, before its other buffers."""

    def forward(self, inputs):
        self[0].register_buffer("positions", torch.arange(4.0))
        return super().forward(inputs)


def test_a_buffer_that_is_new_is_not_compared_with_another_one():
    assert found(Caches(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))) == []


def test_a_frozen_network_that_changes_its_buffers_is_told_and_left_as_it_was():
    (note,) = found(Counts())
    assert note.check == "buffers"
    assert "the teacher is frozen, but running it in eval mode changes its buffers: forwards" in note.said
