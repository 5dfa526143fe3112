import pytest
import torch

from limbeck.core import LimbeckError
from limbeck.evaluate.deferral import Answers, choose, deferral, for_accuracy, for_share


def drawn(samples, classes=4, seed=0, teacher=1.0):
    """Answers of a student, and of a teacher with ``teacher`` added to the logit of the target."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, (samples,), generator=generator)
    logits = torch.randn(2, samples, classes, generator=generator)
    logits[:, torch.arange(samples), targets] += torch.tensor([[0.7], [teacher]])
    return Answers(*logits, targets)


def accuracy(logits, targets):
    return (logits.argmax(1) == targets).sum().item() / len(targets)


def slow(answers, threshold):
    """The share of the student and the accuracy of the pair, sample by sample."""
    alone = right = 0
    for number, target in enumerate(answers.targets.tolist()):
        mine = answers.student[number].double().softmax(0).max().item() > threshold
        alone += mine
        right += int((answers.student if mine else answers.teacher)[number].argmax()) == target
    return alone / len(answers.targets), right / len(answers.targets)


def test_the_curve_is_that_of_a_slow_loop():
    answers = drawn(150)
    curve = deferral(answers).curve
    assert [(one.share, one.accuracy) for one in curve] == [slow(answers, one.threshold) for one in curve]
    thresholds = [one.threshold for one in curve]
    assert thresholds == sorted(set(thresholds))
    assert len(curve) == 101


def test_at_0_the_student_answers_alone_and_at_1_the_teacher():
    answers = drawn(60)
    answers.student[:5] *= 1000  # confidences of exactly 1
    first, *_, last = deferral(answers).curve
    assert (first.threshold, first.share) == (0, 1)
    assert (last.threshold, last.share) == (1, 0)
    assert first.accuracy == accuracy(answers.student, answers.targets)
    assert last.accuracy == accuracy(answers.teacher, answers.targets)


def test_few_samples_have_a_point_for_each_confidence():
    assert len(deferral(drawn(3)).curve) == 5
    assert len(deferral(Answers(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3).long())).curve) == 3


@pytest.mark.parametrize("margin", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_the_greatest_share_within_the_margin(margin, seed):
    answers = drawn(80, seed=seed)
    least = accuracy(answers.teacher, answers.targets) - margin
    confidences = answers.student.double().softmax(1).amax(1).tolist()
    fitting = [slow(answers, one) for one in (0.0, *confidences, 1.0)]
    share = max(share for share, right in fitting if right >= least - 1e-12)
    assert slow(answers, choose(answers, margin))[0] == share


def test_the_threshold_is_chosen_on_the_validation_split_whatever_the_test_split():
    validation, test = drawn(90), drawn(70, seed=1)
    found = deferral(test, validation)
    assert found.validation.threshold == found.test.threshold == choose(validation, 0)
    assert found.validation.accuracy >= accuracy(validation.teacher, validation.targets)
    assert (found.validation.share, found.validation.accuracy) == slow(validation, found.validation.threshold)
    assert (found.test.share, found.test.accuracy) == slow(test, found.test.threshold)
    wrong = Answers(test.student, test.teacher, 3 - test.targets)
    assert deferral(wrong, validation).validation == found.validation


def test_a_student_that_is_as_good_as_the_teacher_answers_alone():
    answers = drawn(50)
    assert choose(Answers(answers.teacher, answers.teacher, answers.targets), 0) == 0


def test_a_student_that_is_always_wrong_leaves_every_answer_to_the_teacher():
    targets = torch.zeros(4).long()
    wrong, right = torch.tensor([[0.0, 3.0]]).expand(4, 2), torch.tensor([[3.0, 0.0]]).expand(4, 2)
    found = deferral(Answers(wrong, right, targets), Answers(wrong, right, targets))
    assert (found.test.threshold, found.test.share, found.test.accuracy) == (1, 0, 1)


def test_a_margin_in_whole_samples_is_not_lost_to_rounding():
    targets = torch.zeros(100).long()
    student = torch.tensor([[3.0, 0.0]] * 71 + [[0.0, 3.0]] * 29)  # 0.29 * 100 is below 29
    assert choose(Answers(student, torch.tensor([[3.0, 0.0]]).expand(100, 2), targets), 0.29) == 0


def test_without_a_validation_split_nothing_is_chosen():
    found = deferral(drawn(10))
    assert found.validation is found.test is None


@pytest.mark.parametrize("margin", [-0.1, 1.1, float("nan")])
def test_a_margin_that_is_no_accuracy_is_an_error(margin):
    with pytest.raises(LimbeckError, match="the margin is"):
        deferral(drawn(10), margin=margin)


@pytest.mark.parametrize("seed", range(5))
def test_a_wanted_share_or_accuracy_is_that_of_the_best_threshold(seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(40, 3, generator=generator).round(decimals=1) for _ in range(2))
    answers = Answers(student, teacher, torch.randint(0, 3, (40,), generator=generator))
    thresholds = [0.0, *answers.confidences.tolist(), 1.0]
    joints = {one: answers.joints(torch.tensor([one], dtype=torch.float64))[0] for one in thresholds}
    for share in (0.0, 0.3, 0.75, 1.0):
        found = joints[for_share(answers, share)]
        assert found.share == min(one.share for one in joints.values() if one.share >= share - 1e-9)
    best = max(one.accuracy for one in joints.values() if one.share > 0)
    for accuracy in (0.0, best / 2, best):
        found = joints[for_accuracy(answers, accuracy)]
        assert found.accuracy >= accuracy - 1e-9
        assert found.share == max(one.share for one in joints.values() if one.accuracy >= accuracy - 1e-9)
    with pytest.raises(LimbeckError, match="do not reach an accuracy of 1"):
        for_accuracy(answers, 1.0)
