from dataclasses import FrozenInstanceError

import pytest
import torch

from limbeck.core import (
    TARGETS,
    Batch,
    LimbeckError,
    Outline,
    Setup,
    Stage,
    Tap,
    Term,
    from_student,
    from_teacher,
    tap,
    weighted,
)
from limbeck.schedules import constant


def loss(student):
    return student.sum()


def term(weight):
    return Term(loss, (from_student(),), weight)


def test_a_tap_says_where_it_reads():
    assert str(Tap("student")) == "student"
    assert str(Tap("teacher", "layer3.0.relu")) == "teacher.layer3.0.relu"
    assert str(Tap("student", "fc", "input")) == "student.fc (input)"
    assert str(Tap("student", side="input")) == "student (input)"
    assert str(TARGETS) == "batch.targets"


def test_the_shorthands_name_their_network():
    assert from_student("fc", "input") == Tap("student", "fc", "input")
    assert from_teacher() == Tap("teacher", "", "output")


def test_a_stage_names_what_it_reads_and_the_networks_that_learn_each_once():
    terms = {
        "hard": Term(loss, (from_student(), TARGETS)),
        "soft": Term(loss, (from_student(), from_teacher("fc"), from_teacher())),
    }
    learns = ("student.head", "peer", "student.body")
    stage = Stage("both", terms, 1, lambda parameters: None, constant(), learns)
    assert stage.networks == ("student", "peer")
    assert stage.reads == (from_student(), TARGETS, from_teacher("fc"), from_teacher())


def test_equal_taps_are_one_key():
    assert len({from_student("fc"), Tap("student", "fc"), from_teacher("fc"), from_student("fc", "input")}) == 3


def test_a_batch_cannot_be_changed():
    batch = Batch(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), torch.arange(2), 0)
    with pytest.raises(FrozenInstanceError):
        batch.view = 1


@pytest.mark.parametrize("weight", [0, 0.0, -0.0])
def test_a_term_of_weight_0_is_left_out(weight):
    kept = weighted({"hard": term(weight), "soft": term(0.9)})
    assert list(kept) == ["soft"]


def test_a_negative_weight_and_a_schedule_are_kept():
    terms = {"minus": term(-0.1), "hard": term(0.1), "varying": term(constant(value=0.0))}
    assert weighted(terms) == terms
    assert list(weighted(terms)) == ["minus", "hard", "varying"]


def test_weights_that_are_all_0_are_refused_by_name():
    with pytest.raises(LimbeckError, match="the weights hard and soft are all 0: nothing would be learnt"):
        weighted({"hard": term(0.0), "soft": term(0)})


def test_a_setup_reads_the_teachers_output_unless_told_otherwise():
    setup = Setup(
        epochs=1,
        optimizer=torch.optim.SGD,
        schedule=constant(),
        shape=lambda tap: (),
        module=lambda *_: torch.nn.Identity(),
        below=lambda tap: (),
        outline=lambda network: Outline("head", Tap(network, "head", "input"), (), None, False, ()),
        networks=("student", "teacher"),
        classes=2,
        targets=torch.tensor([0, 1]),
        batch_size=2,
    )
    assert setup.teacher_logits == (from_teacher(),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layer1.0", Tap("student", "layer1.0")),
        ("layer1.0:output", Tap("student", "layer1.0")),
        ("head:input", Tap("student", "head", "input")),
        ("layer1.1.relu:input:1", Tap("student", "layer1.1.relu", "input", 1)),
        ("act::0", Tap("student", "act", "output", 0)),
    ],
)
def test_a_tap_as_a_recipe_writes_it(text, expected):
    assert tap("student", text) == expected


@pytest.mark.parametrize("text", ["head:inside", "head:input:first", "head:input:-1"])
def test_a_tap_that_is_written_otherwise_is_refused(text):
    with pytest.raises(LimbeckError, match=r"is not written as layer, layer:input, layer:input:1 or"):
        tap("student", text)


def test_a_tap_says_side_and_run():
    assert str(Tap("student", "act", "input", 1)) == "student.act (input, run 1)"
    assert str(Tap("student", "act")) == "student.act"
