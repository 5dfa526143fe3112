"""Specialists: the loss of one, the distribution that fits to teacher and specialist, and the groups of the classes."""

import copy
from functools import partial

import pytest
import scipy.optimize
import torch
from torch import nn

from limbeck import arrays
from limbeck.core import LimbeckError
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.kd import soft_loss
from limbeck.methods.specialists import combine, combined_loss, divided, specialist_loss, specialists
from limbeck.models.inputs import Bridge, Input
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

ENGINE = make_engine(device="cpu", precision="32")
TRAINING = Training(epochs=2, batch_size=8, optimizer=sgd(lr=0.1), schedule=constant())
GROUPS = torch.tensor([0, 1, 0, 1, 1])
TARGETS = torch.arange(32) % 4
SCORES = 4.0 * torch.tensor([[3.0, 2, 0, 0], [2, 3, 0, 0], [0, 0, 3, 2], [0, 0, 2, 3]])  # 0 and 1, 2 and 3 are confused


def random(*shape, scale=2.0):
    return scale * torch.randn(*shape, dtype=torch.float64)


def test_half_of_the_loss_is_that_of_the_group_and_half_that_of_the_dustbin():
    targets = torch.tensor([0, 0, 1, 2, 3, 4, 4, 4])
    logits, shares = random(8, 5), targets.bincount() / 8
    inside, outside = [], []
    for row, label in zip(logits.softmax(dim=1).tolist(), targets.tolist(), strict=True):
        if label in (0, 2):
            inside.append(row[label])
        else:
            outside.append(row[1] + row[3] + row[4])
    halves = [-torch.tensor(found).double().log().mean() / 2 for found in (inside, outside)]
    loss = specialist_loss(logits, targets, GROUPS, shares, group=0)
    torch.testing.assert_close(loss, sum(halves), rtol=1e-6, atol=0)


def test_the_gradient_of_a_specialist_is_that_of_its_loss_and_finite_at_the_edge():
    targets, shares = torch.tensor([0, 1, 4]), torch.full((5,), 0.2, dtype=torch.float64)
    loss = partial(specialist_loss, targets=targets, groups=GROUPS, shares=shares, group=1)
    assert torch.autograd.gradcheck(loss, random(3, 5).requires_grad_())
    certain = torch.tensor([[-1e4, 0, 0, 0, 1e4]] * 3, requires_grad=True)
    loss(certain).backward()
    assert certain.grad.isfinite().all()


def objective(log_q, teacher, specialist, inside, share):
    """KL(p_g || q) + KL(p_m || q) of one sample, up to a constant; log q (K,)."""
    merged, own = (torch.cat([one[inside], one[~inside].logsumexp(0, keepdim=True)]) for one in (log_q, specialist))
    own[-1] += torch.log((1 - share) / share)
    return -(teacher.softmax(dim=0) * log_q).sum() - (own.softmax(dim=0) * merged).sum()


def minimum(*given):
    """The q of one sample by numerical minimisation over its logits, and the objective there."""

    def evaluated(values):
        z = torch.tensor(values, requires_grad=True)
        value = objective(z.log_softmax(dim=0), *given)
        value.backward()
        return value.item(), z.grad.numpy()

    found = scipy.optimize.minimize(evaluated, torch.zeros(5).double().numpy(), jac=True, tol=1e-12)
    return torch.tensor(found.x).softmax(dim=0), found.fun


@pytest.mark.parametrize("members", [[0, 2], [1, 3, 4], [3]])
@pytest.mark.parametrize("certain", [0.0, 3.0, -3.0, 30.0, -30.0])
def test_the_combination_is_the_minimum_of_both_divergences(members, certain):
    torch.manual_seed(len(members))
    inside = torch.zeros(5, dtype=torch.bool)
    inside[members] = True
    teacher, specialist, share = random(5), random(5), torch.tensor(0.3, dtype=torch.float64)
    teacher[members[0]] += certain
    log_q = combine(teacher[None], specialist[None], inside[None], share[None])[0]
    q, least = minimum(teacher, specialist, inside, share)
    assert log_q.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert objective(log_q, teacher, specialist, inside, share).item() <= least + 1e-12
    if abs(certain) < 30:  # where the objective is not flat
        torch.testing.assert_close(log_q.exp(), q, rtol=0, atol=2e-6)


def test_an_oversampled_specialist_of_the_teachers_opinion_changes_nothing():
    log_p, inside, share = random(1, 5).log_softmax(dim=1), GROUPS[None] == 1, torch.tensor([0.2]).double()
    oversampled = log_p - torch.where(inside, share, 1 - share).log()
    torch.testing.assert_close(combine(log_p, oversampled, inside, share), log_p)


def test_the_combination_of_certain_networks_is_finite():
    teacher, specialist = torch.tensor([[1e4, 0, 0, -1e4, 0]]), torch.tensor([[-1e4, 0, 1e4, 0, 0]])
    found = combine(teacher, specialist, GROUPS[None] == 0, torch.tensor([0.4]))
    assert found.isfinite().all()
    torch.testing.assert_close(found.exp().float(), torch.tensor([[0.5, 0, 0.5, 0, 0]]))


def test_the_student_learns_from_the_specialist_of_the_teachers_most_probable_class():
    student, teacher, *others = (random(2, 5).requires_grad_() for _ in range(4))
    with torch.no_grad():
        teacher[0, 2], teacher[1, 4] = 20, 20
    shares = torch.tensor([0.3, 0.1, 0.2, 0.1, 0.3])
    loss = combined_loss(student, teacher, *others, groups=GROUPS, shares=shares, temperature=3.0)
    rows = [
        combine(teacher[n, None], others[n][n, None], GROUPS[None] == n, torch.tensor([0.5])).detach() for n in (0, 1)
    ]
    torch.testing.assert_close(loss, soft_loss(student, torch.cat(rows), temperature=3.0))
    loss.backward()
    assert student.grad.any()
    assert [tensor.grad for tensor in (teacher, *others)] == [None] * 3


def division(scores, present=(True,) * 4, count=2):
    found = divided(lambda tap: [(part,) for part in scores.split(3)], torch.tensor(present), count).tolist()
    return {frozenset(place for place, group in enumerate(found) if group == one) for one in found}


def test_classes_that_are_often_confused_are_in_one_group():
    assert division(SCORES) == {frozenset({0, 1}), frozenset({2, 3})}


def test_a_class_without_training_samples_joins_the_nearest_group():
    scores = torch.tensor([[9.0, 8, 0, 0], [8, 9, 0, 0], [0, 0, 9, 9]])
    assert division(scores, (True, True, True, False)) == {frozenset({0, 1}), frozenset({2, 3})}


def test_a_teacher_that_does_not_distinguish_the_classes_is_refused():
    with pytest.raises(LimbeckError, match="divide the classes into 1 group, but there are 2 specialists"):
        division(torch.ones(4, 4))


def networks(*names, width=4):
    torch.manual_seed(0)
    nets = {name: nn.Linear(4, width) for name in ("student", "teacher", *names)}
    nets["teacher"].load_state_dict({"weight": SCORES, "bias": torch.zeros(4)})
    return nets


DATA = arrays(torch.eye(4)[TARGETS], TARGETS, validation=0, test_set=(torch.eye(4), range(4)))


def planned(nets, **options):
    return plan(partial(specialists, **options), nets, DATA, TRAINING)


def groups(stages):
    return [loss.shared.groups.tolist() for stage in stages for loss in stage.losses]


def trained(state=None):
    """The networks, and after each epoch a copy of their weights, the groups that the losses have, and the state."""
    nets = networks("first", "second")
    stages, seen = planned(nets), []
    batches = training_batches(DATA, TRAINING, seed=0, engine=ENGINE)
    for epoch in run(stages, nets, batches, ENGINE, state=state):
        weights = {name: net.weight.clone() for name, net in nets.items()}
        seen.append((epoch.stage, weights, groups(stages), copy.deepcopy(epoch.state())))
    return nets, seen


def test_the_specialists_learn_one_after_the_other_and_then_the_student():
    nets, seen = trained()
    assert [stage for stage, *_ in seen] == ["first", "first", "second", "second", "student", "student"]
    for place, name in enumerate(("first", "second", "student")):
        before, after = seen[max(0, 2 * place - 1)][1], seen[2 * place + 1][1]
        assert {one for one in nets if not torch.equal(before[one], after[one])} == {name}
    assert torch.equal(nets["teacher"].weight, SCORES)


def test_a_specialist_starts_with_the_weights_of_the_teacher():
    nets = networks("first", "second")
    first, second, _ = planned(nets)
    first.prepare(Sweep())
    assert torch.equal(nets["first"].weight, SCORES)
    assert not torch.equal(nets["second"].weight, SCORES)
    nets["first"].weight.data.zero_()
    second.prepare(Sweep())
    assert torch.equal(nets["second"].weight, SCORES)
    assert not nets["first"].weight.any()


class Sweep:
    epoch = 0

    def __call__(self, tap):
        yield (SCORES,)


def test_the_groups_are_found_once_and_kept_in_every_stage_and_by_a_resumed_run():
    nets, seen = trained()
    (found,) = {tuple(one) for _, _, kept, _ in seen for one in kept}
    assert found in {(0, 0, 1, 1), (1, 1, 0, 0)}
    assert set(map(tuple, groups(planned(networks("first", "second"))))) == {(1, 0, 1, 0)}  # until they are found
    for *_, state in seen:
        again, rest = trained(state)
        assert all(one == list(found) for _, _, kept, _ in rest for one in kept)
        assert all(torch.equal(nets[name].weight, again[name].weight) for name in nets)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "networks: is 0, and the training set has 4 classes: there must be at least two"),
        (["one"], {}, "networks: is 1, and"),
        (["one", "two", "three"], {}, "networks: is 3, and .*, and two classes for each"),
        (["one", "two"], {"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
        (["one", "two"], {"hard": 0.0, "soft": 0.0}, "the weights hard and soft are all 0"),
    ],
)
def test_what_cannot_work_is_refused_before_training(names, options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(networks(*names), **options)


@pytest.mark.parametrize("two", [(nn.Linear(4, 8), nn.Linear(8, 4)), (nn.Linear(4, 4), nn.Tanh())])
def test_a_specialist_that_is_another_network_than_the_teacher_is_refused(two):
    nets = {name: nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for name in ("student", "teacher", "one")}
    with pytest.raises(LimbeckError, match="the two is another network than the teacher, with whose weights"):
        planned({**nets, "two": nn.Sequential(*two)})


def test_a_teacher_that_reads_other_inputs_than_the_specialists_is_noted():
    nets = networks("first", "second")
    assert {stage.notes for stage in planned(nets)} == {()}
    Bridge(Input(mean=0.5, std=0.2), (4,), (0.0,), (1.0,)).install(nets["teacher"])
    assert "the teacher reads inputs of another form than the specialists" in planned(nets)[0].notes[0]


def test_a_specialist_starts_with_the_whole_of_a_divided_teacher():
    class Divided(torch.Tensor):
        def full_tensor(self):
            return SCORES

    nets = networks("first", "second")
    first, *_ = planned(nets)
    nets["teacher"].state_dict = lambda: {"weight": torch.zeros(4, 4).as_subclass(Divided), "bias": torch.zeros(4)}
    first.prepare(Sweep())
    assert torch.equal(nets["first"].weight, SCORES)
