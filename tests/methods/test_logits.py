import pytest
import torch

from limbeck.core import LimbeckError, Setup, Tap
from limbeck.methods.alone import alone
from limbeck.methods.logits import logits, logits_loss
from limbeck.schedules import constant

SETUP = Setup(
    epochs=3,
    optimizer=lambda parameters: None,
    schedule=constant(),
    shape=lambda tap: (),
    module=lambda source, layer: None,
    below=lambda tap: (),
    outline=lambda source: None,
    networks=("student", "teacher"),
    classes=5,
    targets=torch.zeros(4, dtype=torch.int64),
    batch_size=4,
)


def pair(n=4, k=5):
    return torch.randn(n, k, dtype=torch.float64), torch.randn(n, k, dtype=torch.float64)


def loop(student, teacher, centre):
    total = 0.0
    for z, v in zip(student.tolist(), teacher.tolist(), strict=True):
        shift_z, shift_v = (sum(z) / len(z), sum(v) / len(v)) if centre else (0.0, 0.0)
        total += sum(((a - shift_z) - (b - shift_v)) ** 2 for a, b in zip(z, v, strict=True))
    return total


@pytest.mark.parametrize("centre", [False, True])
def test_is_half_the_sum_of_squares_a_sample(centre):
    student, teacher = pair()
    found = logits_loss(student, teacher, centre=centre).item()
    assert found == pytest.approx(loop(student, teacher, centre) / (2 * 4), rel=1e-12)


def test_averages_over_all_elements_when_asked():
    student, teacher = pair()
    assert logits_loss(student, teacher, average="elements").item() == pytest.approx(loop(student, teacher, False) / 20)


def test_the_centred_form_ignores_a_shift_of_either_side():
    student, teacher = pair()
    moved = logits_loss(student + 3.0, teacher - 2.0, centre=True)
    assert moved.item() == pytest.approx(logits_loss(student, teacher, centre=True).item(), rel=1e-12)


def test_the_plain_form_does_not():
    student, teacher = pair()
    assert logits_loss(student + 3.0, teacher).item() != pytest.approx(logits_loss(student, teacher).item(), rel=0.1)


def test_matches_the_mean_of_several_teachers():
    student, first = pair()
    second = pair()[0]
    mean = logits_loss(student, (first + second) / 2)
    assert logits_loss(student, first, second).item() == pytest.approx(mean.item(), rel=1e-12)


def test_the_gradient_is_that_of_the_value():
    student, teacher = pair(3, 4)
    assert torch.autograd.gradcheck(lambda s: logits_loss(s, teacher, centre=True), student.requires_grad_())


def test_no_gradient_reaches_the_teacher():
    student, teacher = pair()
    teacher.requires_grad_()
    logits_loss(student.requires_grad_(), teacher).backward()
    assert teacher.grad is None


def test_is_zero_for_equal_logits_and_for_one_sample():
    student, _ = pair(1)
    assert logits_loss(student, student.clone()).item() == 0


def test_the_method_matches_only_unless_the_labels_are_asked_for():
    assert list(logits(SETUP)[0].terms) == ["matching"]
    (stage,) = logits(SETUP, hard=0.5, centre=True)
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 0.5, "matching": 1.0}
    assert stage.terms["matching"].reads == (Tap("student"), Tap("teacher"))


def test_the_method_reads_the_named_layers():
    (stage,) = logits(SETUP, student_layer="head", teacher_layer="fc")
    assert stage.terms["matching"].reads == (Tap("student", "head"), Tap("teacher", "fc"))


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(LimbeckError, match="all 0"):
        logits(SETUP, matching=0)


def test_alone_reads_the_labels_and_no_teacher():
    (stage,) = alone(SETUP, student_layer="head")
    assert [term.reads for term in stage.terms.values()] == [(Tap("student", "head"), Tap("batch", "targets"))]
