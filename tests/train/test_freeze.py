"""That what makes training fast is there, and that it changes no number."""

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.connectors import Through
from limbeck.core import TARGETS, Batch, Stage, Tap, Term, from_student, from_teacher
from limbeck.optimizers import adam, sgd
from limbeck.schedules import constant
from limbeck.train import loop as train
from limbeck.train import memory_format, readers
from limbeck.train.engine import make_engine
from limbeck.train.freeze import Versions, frozen, frozen_parts
from limbeck.train.loop import run

ENGINE = make_engine(device="cpu", precision="32")
LOW = make_engine(device="cpu", precision="bf16")
CHANNELS_LAST = torch.channels_last
CONTIGUOUS = torch.contiguous_format


class Source:
    """12 images in batches of 4, ordered by the epoch."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(12, 3, 6, 6, generator=generator)
        self.targets = torch.arange(12) % 5

    def __len__(self):
        return 3

    def __call__(self, epoch):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(epoch))
        for index in order.split(4):
            yield Batch(self.inputs[index], self.targets[index], index, epoch)

    def sweep(self):
        yield Batch(self.inputs, self.targets, torch.arange(12), 0)

    def example_inputs(self):
        return self.inputs[:2]


def network(width=4):
    made = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 5),
    )
    nn.init.uniform_(made[1].running_var, 0.5, 2.0)
    nn.init.normal_(made[1].running_mean, std=0.3)
    return made


def networks():
    torch.manual_seed(5)
    return {"student": network(), "teacher": network()}


def mimic(student, teacher):
    return F.mse_loss(student, teacher.detach())


HARD = Term(F.cross_entropy, (from_student(), TARGETS))
SOFT = Term(mimic, (from_student(), from_teacher()))
MAPS = Term(mimic, (from_student("1"), from_teacher("2")))


def stage(*, epochs=2, optimizer=None, learns=("student",), **terms):
    terms = terms or {"hard": HARD, "soft": SOFT, "maps": MAPS}
    return Stage("both", terms, epochs, optimizer or sgd(lr=0.1), constant(), learns)


def losses(stages, engine=ENGINE, nets=None, **options):
    nets = nets or networks()
    torch.manual_seed(7)
    return [epoch.loss for epoch in run(stages, nets, Source(), engine, **options)], nets["student"].state_dict()


def same(one, other):
    """Bit-identical losses and weights."""
    return one[0] == other[0] and all(torch.equal(value, other[1][name]) for name, value in one[1].items())


def lies(weight):
    return CHANNELS_LAST if weight.is_contiguous(memory_format=CHANNELS_LAST) else CONTIGUOUS


@pytest.fixture
def allowed(monkeypatch):
    """Says which networks run in channels_last; gives the list of those that were asked about, and how."""

    def allow(*fit):
        asked = []

        def runs(network, inputs, *, learns=False):
            asked.append((network, learns))
            return any(network is one for one in fit)

        monkeypatch.setattr(memory_format, "runs_channels_last", runs)
        monkeypatch.setattr(readers, "runs_channels_last", runs)
        return asked

    return allow


# --- layout


def test_a_network_that_learns_lies_in_channels_last_while_it_trains(allowed):
    nets, seen = networks(), []
    asked = allowed(nets["student"])
    nets["student"].register_forward_pre_hook(lambda module, _: seen.append(lies(module[0].weight)))
    list(run([stage()], nets, Source(), ENGINE))
    assert seen == [CHANNELS_LAST] * 6
    assert lies(nets["student"][0].weight) is CONTIGUOUS
    assert [net for net, learns in asked if learns] == [nets["student"]]


def test_a_network_that_does_not_run_in_channels_last_is_not_laid_out_so(allowed):
    nets, seen = networks(), []
    allowed()
    nets["student"].register_forward_pre_hook(lambda module, _: seen.append(lies(module[0].weight)))
    list(run([stage()], nets, Source(), ENGINE))
    assert seen == [CONTIGUOUS] * 6
    assert lies(nets["student"][0].weight) is CONTIGUOUS


def test_of_several_that_learn_only_those_that_run_so_lie_so(allowed):
    nets = networks()
    allowed(nets["student"])
    other = Term(F.cross_entropy, (from_teacher(), TARGETS))
    for _ in run([stage(hard=HARD, other=other, learns=("student", "teacher.0"))], nets, Source(), ENGINE):
        assert lies(nets["student"][0].weight) is CHANNELS_LAST
        assert lies(nets["teacher"][0].weight) is CONTIGUOUS


def test_the_memory_format_of_a_frozen_network_is_left_as_it_is(allowed):
    nets = networks()
    allowed(*nets.values())
    for _ in run([stage()], nets, Source(), ENGINE):
        assert lies(nets["teacher"][0].weight) is CONTIGUOUS


@pytest.mark.parametrize("fits", [True, False])
def test_a_network_that_came_in_channels_last_stays_so(allowed, fits):
    nets = networks()
    allowed(*[nets["student"].to(memory_format=CHANNELS_LAST)] * fits)
    for _ in run([stage()], nets, Source(), ENGINE):
        assert lies(nets["student"][0].weight) is CHANNELS_LAST
    assert lies(nets["student"][0].weight) is CHANNELS_LAST


def test_the_layout_is_undone_where_training_ends_early(allowed):
    nets = networks()
    allowed(nets["student"])
    epochs = run([stage()], nets, Source(), ENGINE)
    next(epochs)
    assert lies(nets["student"][0].weight) is CHANNELS_LAST
    epochs.close()
    assert lies(nets["student"][0].weight) is CONTIGUOUS


# --- memory


class Watched(Source):
    """Counts the maps that are still there when the next batch is asked for."""

    def __init__(self):
        super().__init__()
        self.maps, self.left = [], []

    def loss(self, *maps):
        self.maps += [weakref.ref(tensor) for tensor in maps]
        return (maps[0] - maps[1]).square().mean()

    def __call__(self, epoch):
        for batch in super().__call__(epoch):
            yield batch
            self.left.append((len(self.maps), sum(reference() is not None for reference in self.maps)))


@pytest.mark.parametrize("engine", [ENGINE, LOW])
def test_a_steps_maps_are_gone_when_the_next_batch_is_asked_for(engine):
    watched = Watched()
    maps = Term(watched.loss, (from_student("1"), from_teacher("2"), from_student("0")))
    gc.disable()  # what only the collector frees is held for long
    try:
        list(run([stage(maps=maps, hard=HARD)], networks(), watched, engine))
    finally:
        gc.enable()
    assert watched.left == [(3 * steps, 0) for steps in range(1, 7)]


# --- changes to a frozen network


def change_weight(teacher):
    teacher[0].weight.data = teacher[0].weight.data  # which is none
    with torch.no_grad():
        teacher[0].weight.mul_(3)


def change_statistics(teacher):
    teacher[1].running_mean.add_(1)


def change_all(teacher):
    teacher.load_state_dict(network().state_dict())


class Reading:
    """A term on the teacher's logits that keeps what it was given, and how often the readers were made."""

    def __init__(self, monkeypatch):
        self.given, self.made = [], 0
        self.term = Term(self.loss, (from_student(), from_teacher(), Tap("batch", "inputs")))
        monkeypatch.setattr(train, "frozen_readers", self.frozen_readers)

    def loss(self, student, teacher, inputs):
        self.given.append((inputs, teacher))
        return F.mse_loss(student, teacher)

    def frozen_readers(self, *given):
        self.made += 1
        return readers.frozen_readers(*given)

    def check(self, teacher):
        """Every tensor so far is what the network gives now."""
        assert len(self.given) == 3
        for inputs, found in self.given:
            with torch.no_grad():
                torch.testing.assert_close(found, teacher(inputs), rtol=1e-4, atol=1e-5)
        self.given.clear()


@pytest.mark.parametrize("change", [change_weight, change_statistics, change_all])
@pytest.mark.parametrize("by", ["caller", "prepare"])
def test_a_network_that_is_changed_between_epochs_is_read_as_changed(monkeypatch, change, by):
    nets, reading = networks(), Reading(monkeypatch)

    def prepare(sweep):
        if sweep.epoch == 1 and by == "prepare":
            change(nets["teacher"])

    for epoch in run([replace(stage(epochs=3, soft=reading.term), prepare=prepare)], nets, Source(), ENGINE):
        reading.check(nets["teacher"])
        if epoch.number == 1 and by == "caller":
            change(nets["teacher"])
    assert reading.made == 2


def test_a_network_that_is_not_changed_is_copied_once_a_stage(monkeypatch):
    nets, reading = networks(), Reading(monkeypatch)
    for _ in run([stage(epochs=3, soft=reading.term)] * 2, nets, Source(), ENGINE):
        reading.check(nets["teacher"])
    assert reading.made == 2


def new_weight(teacher):
    layer = next(module for module in teacher.modules() if isinstance(module, nn.Conv2d))
    layer.weight = nn.Parameter(layer.weight.detach().clone())


def test_versions_tell_each_write_and_each_new_tensor():
    teacher, found = network(), []
    for change in (lambda teacher: None, change_weight, change_statistics, change_all, new_weight, new_weight):
        change(teacher)
        found.append(Versions([teacher]))
        assert Versions([teacher]).numbers == found[-1].numbers
    assert len({tuple(versions.numbers) for versions in found}) == 6


# --- what others leave


def stray(module):
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)


@pytest.mark.parametrize("when", ["before", "between", "prepare"])
def test_gradients_that_were_there_before_do_not_enter_a_step(when):
    nets, connector = networks(), nn.Conv2d(4, 4, 1)
    nn.init.dirac_(connector.weight)
    nn.init.zeros_(connector.bias)
    maps = Term(Through(copy.deepcopy(connector), mimic), (from_student("1"), from_teacher("2")))
    expected = losses([stage(hard=HARD, maps=maps)])
    maps = Term(Through(connector, mimic), (from_student("1"), from_teacher("2")))

    def leave():
        stray(nets["student"])
        stray(connector)

    def prepare(sweep):
        if when == "prepare":
            leave()

    if when == "before":
        leave()
    torch.manual_seed(7)
    found = []
    for epoch in run([replace(stage(hard=HARD, maps=maps), prepare=prepare)], nets, Source(), ENGINE):
        found.append(epoch.loss)
        if when == "between":
            leave()
    assert same(expected, (found, nets["student"].state_dict()))


class Centre(nn.Module):
    """The mean of the student's logits before the epoch, as state."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))

    def prepare(self, sweep):
        ((student, _),) = sweep(from_student(), from_teacher())
        self.mean.copy_(student.mean(dim=0))

    def forward(self, student):
        return F.mse_loss(student, self.mean.expand_as(student) + 1)


@pytest.mark.parametrize("engine", [ENGINE, LOW])
@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("prepared", [True, False])
def test_an_autocast_of_the_callers_changes_no_number(monkeypatch, engine, checked, prepared):
    if not checked:
        for module in (memory_format, readers):
            monkeypatch.setattr(module, "runs_channels_last", lambda *_, **options: False)

    def plan():
        made, centre = stage(epochs=3, optimizer=sgd(lr=1.0)), Centre()
        if not prepared:
            return [made]
        terms = {**made.terms, "centre": Term(centre, (from_student(),))}
        return [replace(made, terms=terms, prepare=centre.prepare)]

    expected = losses(plan(), engine)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(losses(plan(), engine), expected)
        assert torch.is_autocast_enabled("cpu")
    assert expected[0] != losses(plan(), LOW if engine is ENGINE else ENGINE)[0]


# --- resume in another memory format


def laid(state, memory_format):
    """The state, its optimizer's tensors in a memory format, and how many of them that changed."""
    made, changed = copy.deepcopy(state), 0
    for held in made["optimizer"]["state"].values():
        for name, value in held.items():
            if value.dim() == 4:
                held[name] = value.contiguous(memory_format=memory_format)
                changed += held[name].stride() != value.stride()
    return made, changed


@pytest.mark.parametrize("optimizer", [sgd(lr=0.1, momentum=0.9), adam(lr=0.05)], ids=["sgd", "adam"])
@pytest.mark.parametrize("lying", [CHANNELS_LAST, CONTIGUOUS])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumes_to_the_same_bits_where_the_optimizers_state_lies_otherwise(allowed, optimizer, lying, stop):
    def plan():
        torch.manual_seed(9)
        maps = Term(Through(nn.Conv2d(4, 4, 3, padding=1), mimic), MAPS.reads)
        hint = stage(optimizer=optimizer, maps=maps)
        return [hint, stage(optimizer=optimizer)]

    def prepared():
        nets = networks()
        allowed(*[nets["student"]] * (lying is CHANNELS_LAST))
        return nets

    nets, states, found = prepared(), [], []
    for epoch in run(plan(), nets, Source(), ENGINE):
        found.append(epoch.loss)
        states.append(copy.deepcopy(epoch.state()))
    state, changed = laid(states[stop - 1], CONTIGUOUS if lying is CHANNELS_LAST else CHANNELS_LAST)
    assert changed
    again = losses(plan(), nets=prepared(), state=state)
    assert same(again, (found[stop:], nets["student"].state_dict()))


@pytest.mark.parametrize("optimizer", [sgd(lr=0.1), adam(lr=0.1)], ids=["sgd", "adam"])
def test_a_restored_optimizers_tensors_get_the_memory_format_of_their_parameters(optimizer):
    layer = nn.Conv2d(3, 4, 3)
    made = optimizer(list(layer.parameters()))
    layer(torch.randn(2, 3, 6, 6)).square().sum().backward()
    made.step()
    before = copy.deepcopy(made.state_dict())
    layer.to(memory_format=CHANNELS_LAST)
    memory_format.match_parameters(made)
    after = made.state_dict()
    for position, parameter in enumerate(layer.parameters()):
        assert after["state"][position].keys() == before["state"][position].keys()
        for name, value in after["state"][position].items():
            assert torch.equal(value, before["state"][position][name])
            assert value.dim() == 0 or value.stride() == parameter.stride()


def test_weights_made_under_inference_mode_are_frozen_and_left_as_they_were():
    with torch.inference_mode():
        network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with frozen([*network.modules()]):
        assert not network.training
    assert network.training
    assert Versions([network]).numbers == Versions([network]).numbers


# --- what the user froze


def test_the_topmost_parts_whose_parameters_are_all_frozen_are_named():
    network = nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()),
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False)),
        nn.Dropout(),
        nn.Linear(4, 2),
    )
    assert frozen_parts(network) == ()
    network[0].requires_grad_(False)
    network[1][1].requires_grad_(False)
    network[3].bias.requires_grad_(False)  # half a layer is none
    assert frozen_parts(network) == ("0", "1.1")
    assert frozen_parts(network.requires_grad_(False)) == ("",)
    assert frozen_parts(nn.ReLU()) == ()


def test_the_layers_of_a_part_are_not_taken_for_those_of_one_whose_name_begins_alike():
    network = nn.ModuleDict({"block": nn.Linear(2, 2), "block2": nn.Linear(2, 2), "rest": nn.Linear(2, 2)})
    network["block"].requires_grad_(False)
    network["block2"].requires_grad_(False)
    assert frozen_parts(network) == ("block", "block2")
