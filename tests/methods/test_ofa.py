import math
from functools import partial

import pytest
import torch
from torch import nn

from limbeck.core import TARGETS, LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.kd import soft_loss
from limbeck.methods.ofa import Exits, TokenBranch, enhanced_loss, map_branch, ofa
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

ENGINE = make_engine(device="cpu", precision="32")
DATA = arrays(torch.rand(12, 3, 8, 8), torch.arange(12) % 4)
TRAINING = Training(2, 4, sgd(lr=0.1), constant())


class Block(nn.Module):
    """Tokens (N, L, D) to tokens."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, tokens):
        return tokens + self.second(self.first(tokens).tanh())


class Transformer(nn.Module):
    """Images (N, 3, 8, 8) to logits through blocks of 4 tokens."""

    def __init__(self, blocks):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(*(Block() for _ in range(blocks)))
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        return self.head(self.blocks(self.patches(images).flatten(2).mT).mean(dim=1))


def networks(student=None):
    teacher = build("mlp", classes=4, shape=(3, 8, 8), hidden=[5])
    return {"student": student or build("resnet8", classes=4, shape=(3, 8, 8)), "teacher": teacher}


def planned(nets=None, **options):
    (stage,) = plan(partial(ofa, **options), nets or networks(), DATA, TRAINING)
    return stage


def example(n=4, k=5):
    return *(2 * torch.randn(n, k, dtype=torch.float64) for _ in range(2)), torch.arange(n) % k


def softmax(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("n", [1, 4])
def test_is_the_formula_in_loops(n):
    student, teacher, targets = example(n)
    total = 0.0
    for mine, theirs, label in zip(student.tolist(), teacher.tolist(), targets.tolist(), strict=True):
        q, p = softmax(mine, 2.0), softmax(theirs, 2.0)
        for place in range(5):
            one = 1 if place == label else 0
            total -= ((p[place] + one) ** 1.4 - one) * math.log(q[place])
    value = enhanced_loss(student, teacher, targets, gamma=1.4, temperature=2.0)
    assert value.item() == pytest.approx(total / n, rel=1e-10)


def test_a_value_by_hand():
    """p_T = (1/2, 1/2), gamma = 2: the weights are (9/4 - 1, 1/4)."""
    student = torch.tensor([[math.log(3.0), 0.0]])  # p_S = (3/4, 1/4)
    value = enhanced_loss(student, torch.zeros(1, 2), torch.tensor([0]), gamma=2.0)
    assert value.item() == pytest.approx(-1.25 * math.log(0.75) - 0.25 * math.log(0.25))


def test_with_gamma_1_the_gradient_is_that_of_kd():
    student, teacher, targets = example()
    student.requires_grad_()
    losses = (enhanced_loss(student, teacher, targets, gamma=1.0), soft_loss(student, teacher, temperature=1.0))
    one, other = (torch.autograd.grad(loss, student)[0] for loss in losses)
    torch.testing.assert_close(one, other)


def test_the_gradient_is_that_of_the_value_and_none_is_the_teachers():
    student, teacher, targets = example(3, 4)
    student.requires_grad_()
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: enhanced_loss(s, teacher, targets), student)
    enhanced_loss(student, teacher, targets).backward()
    assert teacher.grad is None


def test_stays_finite_for_huge_logits():
    student = torch.tensor([[1e3, -1e3, 0.0]], requires_grad=True)
    value = enhanced_loss(student, torch.tensor([[-1e3, 1e3, 0.0]]), torch.tensor([1]), gamma=0.5)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_the_loss_is_the_sum_over_the_branches():
    student, teacher, targets = example(3, 4)
    branches = [nn.Linear(4, 4).double() for _ in range(2)]
    loss = Exits(branches, enhanced_loss)
    wanted = sum(enhanced_loss(branch(student), teacher, targets) for branch in branches)
    assert loss(student, student, teacher, targets).item() == pytest.approx(wanted.item())


def test_a_branch_of_maps_halves_them_and_doubles_the_channels():
    branch = map_branch(6, 2, 20, 4)
    assert branch[:2](torch.randn(2, 6, 9, 8)).shape == (2, 20, 3, 2)
    assert branch[0](torch.randn(2, 6, 9, 8)).shape == (2, 12, 5, 4)
    assert branch(torch.randn(2, 6, 9, 8)).shape == (2, 4)
    assert map_branch(6, 0, 20, 4)(torch.randn(2, 6, 3, 3)).shape == (2, 4)


@pytest.mark.parametrize(("length", "expected"), [(4, False), (5, True), (7, False)])
def test_a_branch_of_tokens_reads_the_class_token_or_the_mean(length, expected):
    branch = TokenBranch((length, 8), 1, 3).eval()
    assert branch.has_class_token is expected
    tokens = torch.randn(2, length, 8)
    after = branch.blocks(tokens)
    wanted = branch.classifier(after[:, 0] if expected else after.mean(dim=1))
    torch.testing.assert_close(branch(tokens), wanted)


def test_reads_every_section_of_the_student_and_only_the_logits_of_the_teacher():
    terms = planned().terms
    exits = tuple(Tap("student", f"stage{number}") for number in (1, 2, 3))
    assert terms["exits"].reads == (*exits, Tap("teacher"), TARGETS)
    assert terms["soft"].reads == (Tap("student"), Tap("teacher"), TARGETS)
    assert {name: term.weight for name, term in terms.items()} == {"hard": 1.0, "soft": 1.0, "exits": 1.0}


def test_the_branches_learn():
    nets = networks()
    stage = planned(nets)
    branches = stage.terms["exits"].loss.branches
    before = [branch[-1].weight.clone() for branch in branches]
    list(run([stage], nets, training_batches(DATA, TRAINING, seed=0, engine=ENGINE), ENGINE))
    assert all(not torch.equal(one, branch[-1].weight) for one, branch in zip(before, branches, strict=True))


@pytest.mark.parametrize(("blocks", "expected"), [(1, [0]), (2, [0, 1]), (6, [1, 2, 4, 5])])
def test_a_transformer_has_four_exits_or_as_many_as_it_has_blocks(blocks, expected):
    reads = planned(networks(Transformer(blocks))).terms["exits"].reads
    assert [int(tap.layer.partition(".")[2]) for tap in reads[:-2]] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, r"gamma is 0\.0: it must be above 0"),
        ({"width": 0}, "width is 0: it must be at least 1"),
        ({"student_layers": ("head:input",)}, r"ofa reads maps .* of the student, but student\.head .* gives \(64,\)"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)


def test_a_student_without_maps_or_tokens_is_refused():
    with pytest.raises(LimbeckError, match=r"ofa reads maps \(C, H, W\) or tokens"):
        planned(networks(nn.Sequential(nn.Flatten(), nn.Linear(192, 4))))
