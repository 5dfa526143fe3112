import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.connectors import Through, linear
from limbeck.core import TARGETS, Batch, LimbeckError, Stage, Tap, Term, from_student, from_teacher
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.schedules import linear as line
from limbeck.train import loop as train
from limbeck.train.engine import can_compile, make_engine
from limbeck.train.loop import run

ENGINE = make_engine(device="cpu", precision="32")


class Source:
    """24 samples in batches of 8, ordered by the epoch."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(24, 6, generator=generator)
        self.targets = (self.inputs[:, 0] > 0).long()

    def __len__(self):
        return 3

    def __call__(self, epoch):
        order = torch.randperm(24, generator=torch.Generator().manual_seed(epoch))
        for index in order.split(8):
            yield Batch(self.inputs[index], self.targets[index], index, epoch)

    def sweep(self):
        for index in torch.arange(24).split(10):
            yield Batch(self.inputs[index], self.targets[index], index, 0)

    def example_inputs(self):
        return self.inputs[:2]


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
    assert len(seen) >= 12
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


@pytest.mark.parametrize("resumed", [False, True])
def test_a_part_that_the_user_froze_stays_as_it_is_with_its_statistics_and_its_mode(resumed):
    def student(mode):
        torch.manual_seed(5)
        part = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.BatchNorm1d(5, affine=False))
        part.requires_grad_(False).train(mode)
        return nn.Sequential(part, nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 2))

    task, modes = Term(F.cross_entropy, (from_student(), TARGETS)), set()
    states = [
        copy.deepcopy(one.state()) for one in run([stage(task=task)], {"student": student(False)}, Source(), ENGINE)
    ]
    for mode in (False, True):
        nets = {"student": student(mode)}
        before = weights(nets["student"])
        nets["student"][0][2].register_forward_pre_hook(lambda module, _: modes.add(module.training))
        for _ in run([stage(task=task)], nets, Source(), ENGINE, state=states[0] if resumed else None):
            nets["student"].train()
        changed = {name for name, value in weights(nets["student"]).items() if not torch.equal(before[name], value)}
        assert {name.split(".")[0] for name in changed} == {"2", "3"}
        assert modes == {False}
        assert [part.training for part in nets["student"][0]] == [mode] * 4


def test_a_frozen_layer_inside_a_block_that_learns_stays_as_it_is():
    nets = networks()
    nets["student"][1].requires_grad_(False)  # its BatchNorm alone, as many do who fine-tune
    before = weights(nets["student"])
    list(run([stage()], nets, Source(), ENGINE))
    after = weights(nets["student"])
    assert {name for name in before if torch.equal(before[name], after[name])} == {
        name for name in before if name.startswith("1.")
    }


def test_a_frozen_layer_with_a_parametrisation_that_works_in_training_mode_stays_as_it_is():
    nets = networks()
    nn.utils.parametrizations.spectral_norm(nets["student"][0]).requires_grad_(False)
    before = weights(nets["student"][0])
    list(run([stage()], nets, Source(), ENGINE))
    assert same(before, weights(nets["student"][0]))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_a_block_without_gradients_around_the_call_changes_nothing(around):
    found, modes = [], []
    for block in (around, torch.enable_grad):
        nets = networks()
        torch.manual_seed(9)
        stages = [stage()]
        with block():
            for _ in run(stages, nets, Source(), ENGINE):
                modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        found.append(weights(nets["student"]))
        assert not any(parameter.is_inference() for parameter in nets["student"].parameters())
    assert same(*found)
    assert modes == [(False, around is torch.inference_mode)] * 2 + [(True, False)] * 2


def test_a_frozen_network_made_under_inference_mode_teaches():
    nets = networks()
    with torch.inference_mode():
        nets["teacher"] = network(7)
    before = weights(nets["teacher"])
    task = Term(mimic, (from_student(), from_teacher()))
    list(run([stage(task=task)], nets, Source(), ENGINE))
    assert same(before, weights(nets["teacher"]))
    assert all(parameter.requires_grad for parameter in nets["teacher"].parameters())


def test_a_student_made_under_inference_mode_is_refused_and_its_copy_learns():
    nets = networks()
    with torch.inference_mode():
        nets["student"] = network()
    with pytest.raises(
        LimbeckError, match=r"the student's weights were made under torch.inference_mode.* copy.deepcopy"
    ):
        next(run([stage()], nets, Source(), ENGINE))
    nets["student"] = copy.deepcopy(nets["student"]).requires_grad_()
    next(run([stage()], nets, Source(), ENGINE))


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
    from limbeck.files import checkpoint

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


def test_a_module_hidden_in_a_partial_is_refused():
    hidden = Term(partial(Through(linear((5,), (7,)), mimic)), (from_student("2"), from_teacher("2")))
    with pytest.raises(TypeError, match="hides its module's parameters"):
        next(run([stage(hint=hidden)], networks(), Source(), ENGINE))


def test_losses_see_32_bits_under_bf16():
    seen = []

    def watching(student, targets):
        seen.append(student.dtype)
        return F.cross_entropy(student, targets)

    engine = make_engine(device="cpu", precision="bf16")
    task = Term(watching, (from_student(), TARGETS))
    list(run([stage(task=task)], networks(), Source(), engine))
    assert set(seen) == {torch.float32}


def test_the_forward_runs_in_bf16_when_asked():
    nets = networks()
    seen = []
    nets["student"][0].register_forward_hook(lambda module, _, output: seen.append(output.dtype))
    list(run([stage()], nets, Source(), make_engine(device="cpu", precision="bf16")))
    assert set(seen) == {torch.bfloat16}
    assert nets["student"][0].weight.dtype == torch.float32


def test_the_teacher_runs_once_a_batch():
    nets, ran = networks(), []
    nets["teacher"].register_forward_pre_hook(lambda _, given: ran.append(len(given[0])))
    list(run([stage(epochs=1)], nets, Source(), ENGINE))
    assert ran.count(8) == 3  # besides the few samples on which its lean copy is tried


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


# --- what a stage names in part


def test_a_part_that_is_named_learns_and_the_rest_stays_bit_identical():
    nets = networks()
    nets["student"].append(nn.BatchNorm1d(2))
    before = {name: weights(net) for name, net in nets.items()}
    task = Term(F.cross_entropy, (from_student(), TARGETS))
    list(run([stage(learns=("student.4", "student.5"), task=task, epochs=3)], nets, Source(), ENGINE))
    after = {name: weights(net) for name, net in nets.items()}
    changed = {name for name in after["student"] if not torch.equal(before["student"][name], after["student"][name])}
    assert {name.split(".")[0] for name in changed} == {"4", "5"}
    assert "5.running_mean" in changed  # a BatchNorm that is named learns its statistics
    assert same(before["teacher"], after["teacher"])


def test_only_the_part_that_is_named_is_in_training_mode():
    nets, modes = networks(), set()
    nets["student"].train()
    nets["student"][1].register_forward_pre_hook(
        lambda *_: modes.add(tuple(module.training for module in (nets["student"], *nets["student"])))
    )
    task = Term(F.cross_entropy, (from_student(), TARGETS))
    for _ in run([stage(learns=("student.4",), task=task)], nets, Source(), ENGINE):
        nets["student"].train()
    assert modes == {(False, False, False, False, False, True)}
    assert all(module.training for module in nets["student"].modules())
    assert all(parameter.requires_grad for parameter in nets["student"].parameters())


def test_gradient_flows_through_a_frozen_upper_part_to_the_part_that_learns():
    nets = networks()
    before = weights(nets["student"])
    task = Term(F.cross_entropy, (from_student(), TARGETS))
    list(run([stage(learns=("student.0",), task=task)], nets, Source(), ENGINE))
    after = weights(nets["student"])
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"0.weight", "0.bias"}


@pytest.mark.parametrize(
    ("learns", "message"),
    [
        ("student.head", r"the student has no layer 'head': its top layers are 0, 1, 2, 3, 4"),
        ("pupil.4", r"there is no network 'pupil' to learn; there are student, teacher"),
    ],
)
def test_a_part_that_is_not_there_cannot_learn(learns, message):
    task = Term(F.cross_entropy, (from_student(), TARGETS))
    with pytest.raises(LimbeckError, match=message):
        next(run([stage(learns=(learns,), task=task)], networks(), Source(), ENGINE))


def test_a_part_without_parameters_cannot_learn_alone():
    task = Term(F.cross_entropy, (from_student(), TARGETS))
    with pytest.raises(LimbeckError, match=r"nothing learns in student.2"):
        next(run([stage(learns=("student.2",), task=task)], networks(), Source(), ENGINE))


def test_a_stage_in_which_the_losses_parameters_alone_learn():
    nets, connector = networks(), linear((5,), (7,))
    before = {name: weights(net) for name, net in nets.items()}
    first = weights(connector)
    hint = Term(Through(connector, mimic), (from_student("2"), from_teacher("2")))
    epochs = list(run([stage(learns=(), hint=hint, epochs=20)], nets, Source(), ENGINE))
    assert all(same(before[name], weights(net)) for name, net in nets.items())
    assert not same(first, weights(connector))
    assert epochs[-1].loss < epochs[0].loss


def test_a_part_resumes_to_the_same_bits():
    task = Term(F.cross_entropy, (from_student(), TARGETS))
    whole = networks()
    list(run([stage(learns=("student.4",), task=task, epochs=3)], whole, Source(), ENGINE))
    states = []
    for epoch in run([stage(learns=("student.4",), task=task, epochs=3)], networks(), Source(), ENGINE):
        states.append(copy.deepcopy(epoch.state()))
    again = networks()
    list(run([stage(learns=("student.4",), task=task, epochs=3)], again, Source(), ENGINE, state=states[1]))
    assert same(weights(whole["student"]), weights(again["student"]))


# --- what happens before each epoch, and after the last


INDEX = Tap("batch", "index")


class Prepared:
    """Remembers what its `prepare` and `finish` were given."""

    def __init__(self, *taps):
        self.taps, self.epochs, self.seen, self.finished = taps, [], [], 0

    def prepare(self, sweep):
        self.epochs.append(sweep.epoch)
        self.seen.append(list(sweep(*self.taps)))

    def finish(self):
        self.finished += 1

    def stage(self, **options):
        return replace(stage(**options), prepare=self.prepare, finish=self.finish)


def test_prepare_comes_before_each_epoch_and_finish_after_the_last():
    watched, told = Prepared(INDEX), []
    for epoch in run([watched.stage(epochs=3)], networks(), Source(), ENGINE):
        told.append((epoch.number, list(watched.epochs), watched.finished))
    assert told == [(1, [0], 0), (2, [0, 1], 0), (3, [0, 1, 2], 0)]
    assert watched.finished == 1


def test_each_stage_is_prepared_and_finished_by_its_own():
    order = []
    stages = [
        replace(
            stage(),
            name=name,
            prepare=lambda sweep, name=name: order.append((name, sweep.epoch)),
            finish=lambda name=name: order.append((name, "end")),
        )
        for name in ("one", "two")
    ]
    list(run(stages, networks(), Source(), ENGINE))
    assert order == [("one", 0), ("one", 1), ("one", "end"), ("two", 0), ("two", 1), ("two", "end")]


def test_a_sweep_gives_each_sample_once_in_order():
    watched, source = Prepared(INDEX, TARGETS, Tap("batch", "inputs")), Source()
    list(run([watched.stage()], networks(), source, ENGINE))
    for sweep in watched.seen:
        index, targets, inputs = (torch.cat(tensors) for tensors in zip(*sweep, strict=True))
        assert index.tolist() == list(range(24))
        assert torch.equal(targets, source.targets)
        assert torch.equal(inputs, source.inputs)


def test_a_sweep_reads_in_eval_mode_without_gradient():
    watched, nets, source = Prepared(from_student("3"), from_teacher()), networks(), Source()
    epochs = run([watched.stage()], nets, source, ENGINE)
    next(epochs)
    nets["student"].eval()  # the caller's; the loop sets it again
    with torch.no_grad():
        expected = nets["student"][:4](source.inputs)
        teacher = nets["teacher"].eval()(source.inputs)
    next(epochs)
    student, teachers = (torch.cat(tensors) for tensors in zip(*watched.seen[1], strict=True))
    torch.testing.assert_close(student, expected)
    torch.testing.assert_close(teachers, teacher)
    assert not student.requires_grad


@pytest.mark.parametrize("taken", [None, 1])
def test_a_sweep_leaves_modes_and_buffers_bit_identical(taken):
    nets, checked = networks(), []
    nets["student"][1].eval()
    nets["teacher"].train()

    def prepare(sweep):
        before = {name: (weights(net), [part.training for part in net.modules()]) for name, net in nets.items()}
        batches = sweep(from_student(), from_teacher("2"))
        for count, _ in enumerate(batches, start=1):
            if count == taken:
                break
        del batches
        for name, net in nets.items():
            assert same(before[name][0], weights(net))
            assert before[name][1] == [part.training for part in net.modules()]
        checked.append(sweep.epoch)

    list(run([replace(stage(), prepare=prepare)], nets, Source(), ENGINE))
    assert checked == [0, 1]


def test_no_hook_is_left_by_a_sweep_that_is_not_read_to_its_end():
    nets = networks()

    def prepare(sweep):
        next(sweep(from_student("2"), from_teacher("2")))

    list(run([replace(stage(), prepare=prepare)], nets, Source(), ENGINE))
    assert not any(part._forward_hooks or part._forward_pre_hooks for net in nets.values() for part in net.modules())


def test_a_training_with_a_sweep_is_the_same_as_one_without():
    """Dropout's generator and BatchNorm's statistics are not touched."""
    found = []
    for prepare in (None, lambda sweep: list(sweep(from_student(), from_teacher("2")))):
        nets = networks()
        torch.manual_seed(5)
        list(run([replace(stage(), prepare=prepare)], nets, Source(), ENGINE))
        found.append(weights(nets["student"]))
    assert same(*found)


def test_a_sweep_of_a_tap_that_is_not_there_is_refused():
    with pytest.raises(LimbeckError, match="the student has no layer '9'"):
        list(run([Prepared(from_student("9")).stage()], networks(), Source(), ENGINE))


def test_a_sweep_gives_32_bits_under_bf16_and_what_prepare_computes_is_in_32_bits_too():
    kinds, forwards, nets = [], set(), networks()
    nets["student"][0].register_forward_hook(lambda module, _, output: forwards.add(output.dtype))

    def prepare(sweep):
        for student, teacher, targets in sweep(from_student(), from_teacher("2"), TARGETS):
            kinds.append((student.dtype, teacher.dtype, targets.dtype, (student.T @ student).dtype))

    list(run([replace(stage(), prepare=prepare)], nets, Source(), make_engine(device="cpu", precision="bf16")))
    assert set(kinds) == {(torch.float32, torch.float32, torch.int64, torch.float32)}
    assert forwards == {torch.bfloat16}


def test_what_prepare_computes_from_its_own_parameters_may_have_a_gradient():
    seen, layer = [], nn.Linear(2, 2)

    def prepare(sweep):
        seen.extend(layer(student).requires_grad for (student,) in sweep(from_student()))

    list(run([replace(stage(), prepare=prepare)], networks(), Source(), ENGINE))
    assert seen
    assert all(seen)


class Centres(nn.Module):
    """The mean of the student's logits before the epoch, as state."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))

    def prepare(self, sweep):
        self.mean.copy_(torch.cat([student for (student,) in sweep(from_student())]).mean(dim=0))

    def forward(self, student):
        return F.mse_loss(student, self.mean.expand_as(student) + 1)


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_prepared_stage_resumes_to_the_same_bits(stop):
    def stages():
        torch.manual_seed(9)
        made = []
        for _ in range(2):
            centres = Centres()
            made.append(replace(stage(centre=Term(centres, (from_student(),))), prepare=centres.prepare))
        return made

    whole, plan = networks(), stages()
    states = [copy.deepcopy(epoch.state()) for epoch in run(plan, whole, Source(), ENGINE)]
    again, rest = networks(), stages()
    list(run(rest, again, Source(), ENGINE, state=states[stop - 1]))
    assert same(weights(whole["student"]), weights(again["student"]))
    last = [made[1].terms["centre"].loss.mean for made in (plan, rest)]
    assert torch.equal(*last)


def test_prepare_goes_on_with_the_epochs_number_after_resume():
    first = Prepared(INDEX)
    states = [copy.deepcopy(epoch.state()) for epoch in run([first.stage(epochs=3)], networks(), Source(), ENGINE)]
    again = Prepared(INDEX)
    list(run([again.stage(epochs=3)], networks(), Source(), ENGINE, state=states[0]))
    assert (again.epochs, again.finished) == ([1, 2], 1)


def test_finish_is_called_on_resume_of_a_stage_whose_epochs_are_over():
    states = [epoch.state() for epoch in run([Prepared(INDEX).stage()], networks(), Source(), ENGINE)]
    again = Prepared(INDEX)
    assert list(run([again.stage()], networks(), Source(), ENGINE, state=states[-1])) == []
    assert (again.epochs, again.finished) == ([], 1)


def test_the_stages_before_the_one_that_is_resumed_are_not_finished_again():
    states = [copy.deepcopy(epoch.state()) for epoch in run([stage(), stage()], networks(), Source(), ENGINE)]
    first, second = Prepared(INDEX), Prepared(INDEX)
    list(run([first.stage(), second.stage()], networks(), Source(), ENGINE, state=states[2]))
    assert (first.epochs, first.finished) == ([], 0)
    assert (second.epochs, second.finished) == ([1], 1)


def test_finish_is_not_called_while_the_last_epoch_is_still_looked_at():
    watched = Prepared(INDEX)
    epochs = run([watched.stage(epochs=1)], networks(), Source(), ENGINE)
    next(epochs)
    epochs.close()
    assert watched.finished == 0


def test_the_means_are_those_of_all_steps_however_many_are_summed_at_once(monkeypatch):
    found = []
    for most in (1, 2, 100):
        monkeypatch.setattr(train.Means, "_MOST", most)
        torch.manual_seed(9)
        found.append(next(run([stage()], networks(), Source(), ENGINE)))
    assert found[0].loss == pytest.approx(found[1].loss, rel=1e-6)
    assert found[2].loss == pytest.approx(found[1].loss, rel=1e-6)
    assert found[0].terms == pytest.approx(found[2].terms, rel=1e-6)


@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="needs a C++ compiler")
def test_compiled_it_trains_to_the_same_losses():
    found = []
    for compiled in (False, True):
        engine = make_engine(device="cpu", precision="32", compile=compiled)
        torch.manual_seed(9)
        found.append([epoch.loss for epoch in run([stage()], networks(), Source(), engine)])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


class Known:
    """A teacher's tensors that are nowhere else."""

    taps = frozenset({from_teacher("2")})
    rows = 24

    def __init__(self):
        self.asked = []

    def read(self, index, view):
        self.asked.append((len(index), view))
        return {from_teacher("2"): torch.ones(len(index), 7)}


def test_what_is_known_of_the_teacher_is_read_and_not_run():
    known, nets = Known(), networks()
    nets["teacher"].register_forward_pre_hook(lambda *_: pytest.fail("the teacher ran"))
    list(run([stage()], nets, Source(), ENGINE, store=known))
    assert known.asked == [(8, 0)] * 3 + [(8, 1)] * 3


def test_where_more_is_read_than_is_known_the_teacher_runs():
    known = Known()
    more = stage(far=Term(lambda mine, theirs: (mine - theirs).square().mean(), (from_student(), from_teacher())))
    list(run([more], networks(), Source(), ENGINE, store=known))
    assert known.asked == []
