"""Clipping, accumulation, averages, warm-up, frozen layers, rates, and the best epoch, against plain loops."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import limbeck
from limbeck.connectors import Through, linear
from limbeck.core import TARGETS, Batch, LimbeckError, Stage, Tap, Term, from_student
from limbeck.experiment.plan import plan
from limbeck.experiment.resuming import check_state
from limbeck.experiment.workspace import Training
from limbeck.methods import METHODS
from limbeck.optimizers import adam, sgd
from limbeck.schedules import after_warmup, constant, cosine
from limbeck.schedules import linear as line
from limbeck.train import loop
from limbeck.train.best import Best
from limbeck.train.engine import make_engine
from limbeck.train.loop import run
from limbeck.train.regime import Average, Regime, check_regime

ENGINE = make_engine(device="cpu", precision="32")
INPUTS = torch.randn(22, 6, generator=torch.Generator().manual_seed(1))
LABELS = (INPUTS[:, 0] > 0).long()
ALL = Regime(
    clip=0.5, accumulate=2, ema=0.9, freeze=("1",), freeze_epochs=1, rates={"0": 0.5}, keep="best", stop_after=2
)


class Source:
    """22 samples in batches of 4; the last one has 2."""

    samples = 22

    def __init__(self, size=4):
        self.size = size

    def __len__(self):
        return -(-22 // self.size)

    def __call__(self, epoch):
        for index in torch.arange(22).split(self.size):
            yield Batch(INPUTS[index], LABELS[index], index, epoch)

    def sweep(self):
        return self(0)

    def example_inputs(self):
        return INPUTS[:2]


def student(*, norm=True):
    torch.manual_seed(5)
    middle = [nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2)] if norm else [nn.ReLU()]
    return nn.Sequential(nn.Linear(6, 5), *middle, nn.Linear(5, 2))


def stage(epochs=1, *, optimizer=None, **more):
    task = {"task": Term(F.cross_entropy, (from_student(), TARGETS))}
    return Stage("task", task, epochs, optimizer or sgd(lr=1.0, momentum=0.0), constant(), **more)


def trained(regime, *, epochs=1, size=4, net=None, optimizer=None):
    """The student after a training, and its losses."""
    net = net or student(norm=False)
    one = stage(epochs, optimizer=optimizer)
    losses = [epoch.loss for epoch in run([one], {"student": net}, Source(size), ENGINE, regime=regime)]
    return net, losses


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one, other):
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("regime", [Regime(), Regime(warmup=3, rates={"0": 2.0}, keep="best", stop_after=1)])
def test_the_step_is_as_it_was_where_nothing_changes_it(monkeypatch, regime):
    monkeypatch.setattr(loop, "Updater", None)  # it is not made
    trained(regime, epochs=2)


def test_the_norm_of_all_gradients_together_is_clipped():
    net, connector = student(norm=False), linear((5,), (3,))
    target = torch.full((22, 3), 100.0)
    loss = Through(connector, lambda mapped, index: F.mse_loss(mapped, target[index]))
    terms = {"hint": Term(loss, (from_student("1"), Tap("batch", "index")))}
    before = [one.clone() for module in (net, connector) for one in module.parameters()]
    one = Stage("hint", terms, 1, sgd(lr=1.0, momentum=0.0), constant())
    list(run([one], {"student": net}, Source(22), ENGINE, regime=Regime(clip=0.25)))
    after = [one for module in (net, connector) for one in module.parameters()]
    moved = sum((a - b).square().sum() for a, b in zip(after, before, strict=True)).sqrt()
    assert moved.item() == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize(("accumulate", "size"), [(3, 12), (4, 16), (6, 22), (99, 22)])
def test_accumulated_batches_are_one_large_batch_also_where_the_last_step_has_fewer(accumulate, size):
    few, _ = trained(Regime(accumulate=accumulate), epochs=2)
    large, _ = trained(Regime(), epochs=2, size=size)
    assert close(few, large)
    assert not close(few, trained(Regime(), epochs=2)[0])


@pytest.mark.parametrize("length", [5, 7])
def test_a_source_that_gives_another_number_of_batches_than_its_length_is_an_error(monkeypatch, length):
    monkeypatch.setattr(Source, "__len__", lambda source: length)
    with pytest.raises(LimbeckError, match=f"epoch 1 had 6 batches, but the length of their source is {length}"):
        trained(Regime(accumulate=4))


def test_the_average_is_that_of_the_formula_and_the_raw_weights_train_on():
    net, losses = trained(Regime(ema=0.7), epochs=2)
    raw = student(norm=False)
    optimizer = torch.optim.SGD(raw.parameters(), lr=1.0)
    average, count = [one.detach().clone() for one in raw.parameters()], 0
    for epoch in range(2):
        for batch in Source()(epoch):
            optimizer.zero_grad()
            F.cross_entropy(raw(batch.inputs), batch.targets).backward()
            optimizer.step()
            count += 1
            decay = min(0.7, (1 + count) / (10 + count))
            average = [decay * a + (1 - decay) * one.detach() for a, one in zip(average, raw.parameters(), strict=True)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(average, net.parameters(), strict=True))
    assert losses == pytest.approx(trained(Regime(), epochs=2)[1])


def test_the_networks_hold_the_average_between_epochs_with_the_buffers_of_the_trained_weights():
    net, other = student(), student()
    torch.manual_seed(0)
    epochs = run([stage(3)], {"student": net}, Source(), ENGINE, regime=Regime(ema=0.9))
    next(epochs)
    torch.manual_seed(0)
    plain = run([stage(3)], {"student": other}, Source(), ENGINE)
    next(plain)
    assert not torch.equal(net[0].weight, other[0].weight)
    assert torch.equal(net[1].running_mean, other[1].running_mean)
    assert int(net[1].num_batches_tracked) == 6


def test_swapping_an_average_twice_changes_no_bit():
    net = student()
    average = Average(list(net.parameters()), 0.9)
    with torch.no_grad():
        net[0].weight.mul_(3.7)
    before = weights(net)
    average.update()
    average.swap()
    assert not same(before, weights(net))
    average.swap()
    assert same(before, weights(net))


def test_frozen_layers_keep_their_weights_and_statistics_for_the_first_epochs_of_each_stage():
    net = student()
    seen = []
    for epoch in run(
        [stage(2), stage(2)], {"student": net}, Source(), ENGINE, regime=Regime(freeze=("0", "1"), freeze_epochs=1)
    ):
        seen.append((epoch.position, epoch.number, weights(net)))
    start = weights(student())
    frozen = [name for name in start if name[0] in "01"]
    assert all(torch.equal(seen[0][2][name], start[name]) for name in frozen)
    assert not any(torch.equal(seen[1][2][name], start[name]) for name in frozen)
    assert all(torch.equal(seen[2][2][name], seen[1][2][name]) for name in frozen)
    assert not torch.equal(seen[0][2]["4.weight"], start["4.weight"])
    assert all(parameter.requires_grad for parameter in net.parameters())


def planned(regime, *, net=None, epochs=4, optimizer=None):
    data = limbeck.arrays(INPUTS.numpy(), LABELS.numpy(), validation=6, test=6, normalise=False)
    training = Training(epochs, 4, optimizer or sgd(lr=1.0, momentum=0.0), constant(), regime=regime)
    return plan(METHODS["alone"], {"student": net or student()}, data, training)


def test_a_layer_has_its_own_rate_and_the_inner_layer_counts():
    net = nn.Sequential(student(norm=False), nn.Linear(2, 2))
    (one,) = planned(Regime(rates={"0": 0.5, "0.2": 0.25}), net=net)
    rates = {
        parameter: group["lr"]
        for group in one.optimizer(net.parameters()).param_groups
        for parameter in group["params"]
    }
    assert [rates[module.weight] for module in (net[0][0], net[0][2], net[1])] == [0.5, 0.25, 1.0]


def test_the_warm_up_rises_to_the_schedule_and_is_that_of_the_cosine():
    ours, known = after_warmup(cosine(end=0.1), 0.25), cosine(end=0.1, warmup=0.25)
    assert [ours(x / 20) for x in range(20)] == pytest.approx([known(x / 20) for x in range(20)])
    assert after_warmup(line(start=0.5, end=0.0), 0.5)(0.25) == 0.25
    (one,) = planned(Regime(warmup=1), epochs=4)
    assert [one.schedule(x) for x in (0.0, 0.125, 0.25, 0.9)] == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("regime", "message"),
    [
        (Regime(freeze=("con",)), "the network has no layer 'con'"),
        (Regime(rates={"7": 0.1}), "the network has no layer '7'"),
        (Regime(rates={"2": 0.1}), "freeze and rates: the layer '2' has no parameters"),
        (Regime(warmup=4), "warmup is 4 epochs, but stage 'alone' has 4: it must be shorter"),
        (Regime(freeze=("",), freeze_epochs=1), "freeze: nothing else learns in stage 'alone'"),
    ],
)
def test_what_cannot_be_trained_is_an_error_before_training(regime, message):
    with pytest.raises(LimbeckError, match=message):
        planned(regime)


def test_an_epoch_is_not_chosen_where_the_last_stage_does_not_train_the_student():
    with pytest.raises(LimbeckError, match="stage 'task' does not train the student: remove these keys"):
        check_regime(Regime(keep="best"), [stage(learns=("peer",))], {"student": student(), "peer": student()})


def test_a_layer_that_is_misspelt_has_a_nearest_name():
    net = nn.Sequential()
    net.add_module("backbone", student(norm=False))
    with pytest.raises(LimbeckError, match="no layer 'backbon': did you mean backbone"):
        planned(Regime(freeze=("backbon",), freeze_epochs=1), net=net)


def test_the_best_epoch_is_restored_and_the_stage_ends_without_gain():
    scores, seen = [0.1, 0.5, 0.4, 0.5, 0.9], []
    net, best = student(), Best(keep=True, stop_after=2)
    for epoch in run([stage(5)], {"student": net}, Source(), ENGINE, best=best):
        best.add(epoch.number, scores[epoch.number - 1], epoch.learned)
        seen.append(weights(net))
    assert (len(seen), best.epoch, best.score) == (4, 2, 0.5)
    assert same(weights(net), seen[1])


class Versioned(nn.Linear):
    """Reads its version, as MNASNet of torchvision does."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *others):
        assert metadata["version"] == 2
        super()._load_from_state_dict(state, prefix, metadata, *others)


def test_the_best_epoch_of_a_network_that_reads_its_version_is_restored():
    net, best = Versioned(2, 2), Best(keep=True, stop_after=None)
    best.add(1, 0.5, net)
    expected = weights(net)
    nn.init.zeros_(net.weight)
    best.restore(net)
    assert same(weights(net), expected)


def test_the_last_epochs_weights_stay_where_only_the_end_is_asked_for():
    net, best = student(), Best(keep=False, stop_after=1)
    for epoch in run([stage(5)], {"student": net}, Source(), ENGINE, best=best):
        best.add(epoch.number, 0.5, epoch.learned)
        last = weights(net)
    assert best.epoch == 1
    assert same(weights(net), last)


def test_the_best_weights_are_there_when_the_last_stage_finishes():
    net, found, seen = student(), [], []
    best = Best(keep=True, stop_after=None)
    ending = stage(2, finish=lambda: found.append(weights(net)))
    for epoch in run([stage(1), ending], {"student": net}, Source(), ENGINE, best=best):
        if epoch.position == 1:
            best.add(epoch.number, -epoch.number, epoch.learned)
            seen.append(weights(net))
    assert same(found[0], seen[0])


# --- exact resume


def course(plan, net, state, *, keep="best"):
    """Train with every option; each state after an epoch, and the score that it was given."""
    best = Best(keep=keep == "best", stop_after=ALL.stop_after)
    scores, states = [0.2, 0.6, 0.5, 0.4, 0.9], []
    for epoch in run(plan, {"student": net}, Source(), ENGINE, state=state, regime=ALL, best=best):
        if epoch.position + 1 == len(plan):
            best.add(epoch.number, scores[epoch.number - 1], epoch.learned)
        states.append(copy.deepcopy(epoch.state()))
    return states


@pytest.mark.parametrize("after", range(6))
def test_a_training_with_every_option_resumes_to_the_same_bits(after):
    whole = student()
    stages = [stage(2, optimizer=adam()), stage(5, optimizer=adam())]
    states = course(stages, whole, None)
    assert len(states) == 2 + 4  # the last stage stops after its epoch 4
    resumed = student()
    torch.manual_seed(99)
    check_state(states[after], stages, {"student": resumed}, ENGINE, ALL)
    rest = course(stages, resumed, states[after])
    assert len(rest) == 5 - after
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("best"), "it does not contain the state of a training"),
        (lambda state: state.pop("average"), "it does not contain the state of a training"),
        (lambda state: state.update(average=3), "its average are missing"),
        (lambda state: state["average"].update(updates="3"), "its average: 'updates' is str, expected int"),
        (lambda state: state["average"].update(updates=-11), "its average has -11 updates"),
        (lambda state: state["average"]["weights"].pop("0"), "its average lack '0'"),
        (lambda state: state["average"]["weights"]["0"].fill_(torch.nan), "its average: 0 holds a NaN"),
        (lambda state: state.update(best=None), "its best epoch are missing"),
        (lambda state: state["best"].update(epoch=9), "its best epoch is 9: allowed are 1 to 1"),
        (lambda state: state["best"].update(score="1"), "'score' is str, expected float"),
        (lambda state: state["best"]["weights"].clear(), "its best epoch lack"),
        (
            lambda state: next(iter(state["best"]["weights"].values())).fill_(torch.inf),
            "its best epoch: .* holds a NaN",
        ),
    ],
)
def test_a_state_that_does_not_fit_the_options_is_refused(change, message):
    stages = [stage(5, optimizer=adam())]
    state = course(stages, student(), None)[0]
    check_state(state, stages, {"student": student()}, ENGINE, ALL)
    change(state)
    with pytest.raises(LimbeckError, match=message):
        check_state(state, stages, {"student": student()}, ENGINE, ALL)


def test_the_state_of_an_optimizer_with_rates_by_layer_is_taken():
    net = student()
    stages = planned(Regime(rates={"0": 0.5}), net=net, optimizer=sgd(lr=0.1))
    epoch = next(run(stages, {"student": net}, Source(), ENGINE))
    check_state(copy.deepcopy(epoch.state()), stages, {"student": net}, ENGINE)
