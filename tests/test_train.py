from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.connectors import Through, linear
from limbeck.core import TARGETS, Batch, LimbeckError, Stage, Term, from_student, from_teacher
from limbeck.engine import Engine
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.schedules import linear as line
from limbeck.train import Diverged, run

ENGINE = Engine(device="cpu", precision="32")


class Source:
    """24 samples in batches of 8, ordered by the epoch."""

    def __init__(self, nan=False):
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(24, 6, generator=generator)
        self.targets = (self.inputs[:, 0] > 0).long()
        if nan:
            self.inputs[3] = float("nan")

    def __len__(self):
        return 3

    def __call__(self, epoch):
        order = torch.randperm(24, generator=torch.Generator().manual_seed(epoch))
        for index in order.split(8):
            yield Batch(self.inputs[index], self.targets[index], index, epoch)


def network(width=5):
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 2))


def mimic(student, teacher):
    return F.mse_loss(student, teacher.detach())


def stage(*, epochs=2, learns=("student",), schedule=None, connector=None, rate=0.1, **terms):
    connector = connector or linear((5,), (7,))
    terms = terms or {
        "hard": Term(F.cross_entropy, (from_student(), TARGETS)),
        "hint": Term(Through(connector, mimic), (from_student("2"), from_teacher("2")), 0.5),
    }
    return Stage("both", terms, epochs, sgd(lr=rate), schedule or constant(), learns)


def networks():
    torch.manual_seed(5)
    return {"student": network(), "teacher": network(7)}


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_learns_and_lowers_its_loss():
    epochs = list(run([stage(epochs=30)], networks(), Source(), ENGINE))
    assert len(epochs) == 30
    assert epochs[-1].loss < 0.6 * epochs[0].loss
    assert epochs[-1].images == 24
    assert (epochs[-1].number, epochs[-1].epochs) == (30, 30)


def test_the_loss_is_the_weighted_sum_of_the_terms():
    epoch = next(run([stage()], networks(), Source(), ENGINE))
    assert epoch.loss == pytest.approx(epoch.terms["hard"] + 0.5 * epoch.terms["hint"], rel=1e-6)


def test_a_frozen_network_stays_bit_identical_buffers_too():
    nets = networks()
    before = weights(nets["teacher"])
    nets["teacher"].train()
    list(run([stage()], nets, Source(), ENGINE))
    assert same(before, weights(nets["teacher"]))
    assert all(parameter.grad is None for parameter in nets["teacher"].parameters())


def test_a_frozen_network_gets_its_flags_back():
    nets = networks()
    nets["teacher"][0].requires_grad_(False)
    nets["teacher"][1].eval()
    list(run([stage()], nets, Source(), ENGINE))
    assert not nets["teacher"][0].weight.requires_grad
    assert nets["teacher"][4].weight.requires_grad
    assert nets["teacher"].training
    assert not nets["teacher"][1].training


def test_the_modes_are_set_again_every_epoch():
    nets = networks()
    seen = []
    nets["student"].register_forward_pre_hook(lambda module, _: seen.append(module.training))
    nets["teacher"].register_forward_pre_hook(lambda module, _: seen.append(not module.training))
    for _ in run([stage()], nets, Source(), ENGINE):
        nets["student"].eval()
    assert len(seen) == 12
    assert all(seen)


def test_what_the_user_froze_in_a_learner_stays_frozen():
    nets = networks()
    nets["student"][0].requires_grad_(False)
    before = weights(nets["student"][0])
    list(run([stage()], nets, Source(), ENGINE))
    assert same(before, weights(nets["student"][0]))


def test_the_parameters_of_a_loss_learn():
    connector = linear((5,), (7,))
    before = weights(connector)
    list(run([stage(connector=connector)], networks(), Source(), ENGINE))
    assert not same(before, weights(connector))


def test_nothing_to_learn_is_refused():
    nets = networks()
    nets["student"].requires_grad_(False)
    lonely = stage(hard=Term(F.cross_entropy, (from_student(), TARGETS)))
    with pytest.raises(LimbeckError, match="nothing learns in student"):
        next(run([lonely], nets, Source(), ENGINE))


def test_same_seed_same_bits():
    found = []
    for _ in range(2):
        nets = networks()
        list(run([stage()], nets, Source(), ENGINE))
        found.append(weights(nets["student"]))
    assert same(*found)


def test_each_stage_starts_with_a_fresh_optimizer_and_its_own_learners():
    nets = networks()
    made = []

    def optimizer(parameters):
        made.append(list(parameters))
        return torch.optim.SGD(made[-1], lr=0.1, momentum=0.9)

    task = Term(F.cross_entropy, (from_student(), TARGETS))
    other = Term(F.cross_entropy, (from_teacher(), TARGETS))
    stages = [
        Stage("first", {"task": other}, 1, optimizer, constant(), ("teacher",)),
        Stage("second", {"task": task}, 1, optimizer, constant()),
    ]
    before = weights(nets["student"])
    epochs = run(stages, nets, Source(), ENGINE)
    assert next(epochs).stage == "first"
    assert same(before, weights(nets["student"]))
    after = weights(nets["teacher"])
    second = next(epochs)
    assert (second.stage, second.position, second.number) == ("second", 1, 1)
    assert same(after, weights(nets["teacher"]))
    assert [len(parameters) for parameters in made] == [6, 6]


def test_a_stage_that_stops_early_leaves_the_layers_above_untouched():
    nets = networks()
    before = weights(nets["student"])
    hint = Term(Through(linear((5,), (7,)), mimic), (from_student("0"), from_teacher("0")))
    list(run([stage(hint=hint)], nets, Source(), ENGINE))
    after = weights(nets["student"])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"0.weight", "0.bias"}


def test_the_schedule_scales_the_learning_rate_step_by_step():
    rates = []

    def optimizer(parameters):
        made = torch.optim.SGD(parameters, lr=0.5)
        made.register_step_pre_hook(lambda self, *_: rates.append(self.param_groups[0]["lr"]))
        return made

    task = Term(F.cross_entropy, (from_student(), TARGETS))
    list(run([Stage("task", {"task": task}, 2, optimizer, line())], networks(), Source(), ENGINE))
    assert rates == pytest.approx([0.5 * (1 - step / 6) for step in range(6)])


def test_a_weight_may_be_a_schedule():
    task = Term(F.cross_entropy, (from_student(), TARGETS), line(start=2.0, end=0.0))
    first, second = run([stage(task=task, rate=1e-12)], networks(), Source(), ENGINE)
    assert first.loss == pytest.approx(first.terms["task"] * 5 / 3, rel=0.2)
    assert second.loss == pytest.approx(second.terms["task"] * 2 / 3, rel=0.2)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumes_to_the_same_bits_in_every_stage(tmp_path, stop):
    from limbeck import checkpoint

    def stages():
        torch.manual_seed(9)
        return [stage(schedule=line()), stage(schedule=line())]

    whole = networks()
    plan = stages()
    list(run(plan, whole, Source(), ENGINE))

    broken = networks()
    for count, epoch in enumerate(run(stages(), broken, Source(), ENGINE), start=1):
        if count == stop:
            checkpoint.save(tmp_path / "last.pt", epoch.state())
            break
    torch.manual_seed(1234)
    again = {"student": network(), "teacher": whole["teacher"]}
    rest = stages()
    torch.manual_seed(4321)
    left = list(run(rest, again, Source(), ENGINE, state=checkpoint.load(tmp_path / "last.pt")))
    assert len(left) == 4 - stop
    assert same(weights(whole["student"]), weights(again["student"]))
    for position in range(2):
        assert same(weights(plan[position].terms["hint"].loss), weights(rest[position].terms["hint"].loss))


def test_a_nan_stops_the_run_and_names_the_term():
    with pytest.raises(Diverged, match="stage 'both', epoch 1: hard, hint, loss became NaN or infinite"):
        list(run([stage()], networks(), Source(nan=True), ENGINE))


def test_a_module_hidden_in_a_partial_is_refused():
    hidden = Term(partial(Through(linear((5,), (7,)), mimic)), (from_student("2"), from_teacher("2")))
    with pytest.raises(TypeError, match="hides its module's parameters"):
        next(run([stage(hint=hidden)], networks(), Source(), ENGINE))


def test_losses_see_32_bits_under_bf16():
    seen = []

    def watching(student, targets):
        seen.append(student.dtype)
        return F.cross_entropy(student, targets)

    engine = Engine(device="cpu", precision="bf16")
    task = Term(watching, (from_student(), TARGETS))
    list(run([stage(task=task)], networks(), Source(), engine))
    assert set(seen) == {torch.float32}


def test_the_forward_runs_in_bf16_when_asked():
    nets = networks()
    seen = []
    nets["student"][0].register_forward_hook(lambda module, _, output: seen.append(output.dtype))
    list(run([stage()], nets, Source(), Engine(device="cpu", precision="bf16")))
    assert set(seen) == {torch.bfloat16}
    assert nets["student"][0].weight.dtype == torch.float32


def test_the_teacher_runs_once_a_batch():
    nets, ran = networks(), []
    nets["teacher"].register_forward_pre_hook(lambda *_: ran.append(1))
    list(run([stage(epochs=1)], nets, Source(), ENGINE))
    assert len(ran) == 3


def test_a_frozen_layer_that_a_loss_holds_stays_bit_identical_too():
    nets = networks()

    class ThroughTheTeachersNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.connector = linear((5,), (7,))
            self.norm = nets["teacher"][1]

        def forward(self, student, teacher):
            return F.mse_loss(self.norm(self.connector(student)), teacher.detach())

    before = weights(nets["teacher"])
    nets["student"].train()
    hint = Term(ThroughTheTeachersNorm(), (from_student("2"), from_teacher("1")))
    connector = weights(hint.loss.connector)
    list(run([stage(hint=hint)], nets, Source(), ENGINE))
    assert same(before, weights(nets["teacher"]))
    assert not same(connector, weights(hint.loss.connector))


def test_a_network_that_is_not_there_cannot_learn():
    task = Term(F.cross_entropy, (from_student(), TARGETS))
    with pytest.raises(LimbeckError, match="no network 'studnet' to learn; there are student, teacher"):
        next(run([stage(learns=("studnet",), task=task)], networks(), Source(), ENGINE))
