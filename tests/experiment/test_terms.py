import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core import TARGETS, Batch, Stage, Tap, Term, from_student, from_teacher
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.terms import meaningless
from limbeck.experiment.workspace import Training
from limbeck.methods import METHODS
from limbeck.methods.logits import logits_loss
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant


def data(classes=4):
    return arrays(torch.rand(48, 3, 16, 16), torch.arange(48) % classes)


def networks(classes=4, *more):
    torch.manual_seed(3)
    return {
        "student": build("resnet8", classes=classes, shape=(3, 16, 16)),
        "teacher": build("resnet8", classes=classes, shape=(3, 16, 16)),
        **{name: build("resnet8", classes=classes, shape=(3, 16, 16)) for name in more},
    }


def batch(classes=4, n=24):
    index = torch.arange(n)
    return Batch(torch.randn(n, 3, 16, 16), index % classes, index, 0)


MORE = {"assistants": ["middle"], "mutual": ["middle"], "specialists": ["first", "second"]}


def said(method, classes=4, nets=None, **options):
    nets = nets or networks(classes, *MORE.get(method, ()))
    stages = plan(partial(METHODS[method], **options), nets, data(classes), Training(2, 32, sgd(lr=0.1), constant()))
    return meaningless(stages, nets, batch(classes))


def of(loss, *reads, student=None, learns=("student",), prepare=None):
    """What is said of one term; a student that is given is its teacher too."""
    reads = reads or (from_student(), from_teacher())
    stage = Stage("own", {"term": Term(loss, reads)}, 1, sgd(lr=0.1), constant(), learns, prepare)
    nets = networks()
    if student is not None:
        nets["student"], nets["teacher"] = student, copy.deepcopy(student)
    return meaningless([stage], nets, batch())


@pytest.mark.parametrize("method", METHODS)
def test_of_an_ordinary_pair_there_is_nothing_to_say(method):
    assert said(method) == ()


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"kd_standardised", "dkd", "nkd", "specialists"}))
def test_of_two_classes_most_terms_mean_something(method):
    assert said(method, classes=2) == ()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 20.0])
def test_standardised_logits_of_two_classes_have_no_gradient(temperature):
    (sentence,) = said("kd_standardised", classes=2, temperature=temperature)
    assert sentence.startswith("the term 'soft' of stage 'kd_standardised' has no gradient on the first batch: its")


def test_the_other_classes_of_two_are_one_and_have_no_gradient():
    (sentence,) = said("dkd", classes=2)
    assert sentence == (
        "the term 'nontarget' of stage 'dkd' has no gradient on the first batch: its loss, 0, does not "
        "depend on any trained parameter"
    )


def test_a_student_that_gives_what_its_teacher_gives_is_not_taken_for_a_term_without_gradient():
    nets = networks()
    nets["teacher"].load_state_dict(nets["student"].state_dict())
    assert said("born_again", nets=nets) == ()
    assert said("kd", nets=nets, temperature=100.0) == ()


def test_a_margin_that_is_kept_is_not_taken_for_one_either():
    assert (
        of(lambda student, teacher: F.relu((student - student.detach()).abs() + (student - teacher).abs() - 0.1).sum())
        == ()
    )


def test_a_term_that_reads_nothing_that_learns_is_said():
    expected = ("the term 'term' of stage 'own' does not depend on any trained parameter, so it has no effect",)
    assert of(lambda teacher: teacher.square().mean(), from_teacher()) == expected
    student = networks()["student"]
    student.stem.requires_grad_(False)
    student.stage1.requires_grad_(False)
    assert of(lambda one: one.square().mean(), from_student("stage1"), student=student) == expected
    assert of(lambda one: one.square().mean(), from_student("stage2"), student=student) == ()


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (lambda student, teacher: logits_loss(student, teacher).detach() + 0 * student.sum(), None),
        (lambda student, teacher: (student.argmax(1) != teacher.argmax(1)).float().mean(), None),
        (lambda student, teacher: 3 + 0 * student.sum(), "3"),
    ],
)
def test_a_term_that_nothing_learnt_changes_is_said(loss, value):
    (sentence,) = of(loss)
    assert "has no gradient on the first batch: its loss, " in sentence
    assert sentence.endswith(", does not depend on any trained parameter")
    assert value is None or f"its loss, {value}, " in sentence


def test_a_gradient_that_no_weight_gets_is_said():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(768, 8), nn.Linear(8, 4, bias=False)

        def forward(self, images):
            return self.second((self.first(images.flatten(1)) - 1e6).relu())

    (sentence,) = of(logits_loss, student=Dead())
    assert "has no gradient for any weight on the first batch" in sentence


def test_a_loss_below_0_is_said_and_one_that_is_not_a_number():
    (sentence,) = of(lambda student, teacher: -(student - teacher).square().mean())
    assert "has a loss below 0 on the first batch, -" in sentence
    assert "a distance cannot be negative" in sentence
    (sentence,) = of(lambda student, teacher: logits_loss(student, teacher) + torch.inf)
    assert "has a loss of inf on the first batch" in sentence


def test_a_loss_that_its_stage_prepares_is_left_out():
    class Later(nn.Module):
        def forward(self, student):
            return 0 * student.sum()

    assert len(of(Later(), Tap("student"))) == 1
    assert of(Later(), Tap("student"), prepare=lambda sweep: None) == ()


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_is_changed_by_the_look(around):
    nets = networks()
    nets["student"].train()
    nets["student"].stem.requires_grad_(False)
    method = partial(METHODS["crd"], soft=1.0)
    stages = plan(method, nets, data(), Training(2, 32, sgd(lr=0.1), constant()))
    modules = [*nets.values(), stages[0].terms["contrast"].loss]
    before = [{name: value.clone() for name, value in one.state_dict().items()} for one in modules]
    modes = [part.training for one in modules for part in one.modules()]
    flags = [parameter.requires_grad for one in modules for parameter in one.parameters()]
    few, state = batch(), torch.get_rng_state()
    with around():
        assert meaningless(stages, nets, few) == ()
    assert torch.equal(state, torch.get_rng_state())
    for one, values in zip(modules, before, strict=True):
        assert all(torch.equal(values[name], value) for name, value in one.state_dict().items())
        assert all(parameter.grad is None for parameter in one.parameters())
        assert not any(part._forward_hooks for part in one.modules())
    assert modes == [part.training for one in modules for part in one.modules()]
    assert flags == [parameter.requires_grad for one in modules for parameter in one.parameters()]


def test_a_whole_network_that_rests_and_labels_may_be_read():
    assert of(lambda student, targets: F.cross_entropy(student, targets), from_student(), TARGETS) == ()
