import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from limbeck.core import TARGETS, LimbeckError, Tap, from_student
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.fsp import FlowPair, fsp, fsp_loss, fsp_matrix
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant, linear
from limbeck.taps import dry_run
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

ENGINE = make_engine(device="cpu", precision="32")
DATA = arrays(torch.rand(24, 3, 16, 16), torch.arange(24) % 4)
FORMS = ["paper", "elements", "columns"]
ACROSS = [("stage1.0:input", "stage1"), ("stage1", "stage2"), ("stage2", "stage3")]


def networks(student="resnet8", teacher="resnet14"):
    torch.manual_seed(1)
    return {
        "student": build(student, classes=4, shape=(3, 16, 16)),
        "teacher": build(teacher, classes=4, shape=(3, 16, 16)),
    }


def planned(nets=None, *, schedule=None, optimizer=None, epochs=3, **options):
    training = Training(epochs, 8, optimizer or sgd(lr=0.05), schedule or constant())
    return plan(partial(fsp, **options), nets or networks(), DATA, training)


def batches():
    return training_batches(DATA, Training(1, 8, sgd(lr=0.05), constant()), seed=0, engine=ENGINE)


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(one, other):
    return {name for name in one if not torch.equal(one[name], other[name])}


def maps(n=3, channels=(4, 6), size=(3, 5)):
    return [torch.randn(n, count, *size, dtype=torch.float64) for count in channels]


# --- the matrix


def matrix_in_loops(first, last):
    n, height, width = len(first), first.shape[2], first.shape[3]
    found = torch.zeros(n, first.shape[1], last.shape[1], dtype=torch.float64)
    for b in range(n):
        for i in range(first.shape[1]):
            for j in range(last.shape[1]):
                total = 0.0
                for s in range(height):
                    for t in range(width):
                        total += first[b, i, s, t].item() * last[b, j, s, t].item()
                found[b, i, j] = total / (height * width)
    return found


def test_the_matrix_is_the_formula_in_loops():
    first, last = maps()
    found = fsp_matrix(first, last)
    assert found.shape == (3, 4, 6)
    torch.testing.assert_close(found, matrix_in_loops(first, last), rtol=1e-12, atol=1e-14)


def test_an_order_of_channels_is_one_of_rows_and_columns():
    first, last = maps()
    rows, columns = torch.randperm(4), torch.randperm(6)
    wanted = fsp_matrix(first, last)[:, rows][:, :, columns]
    torch.testing.assert_close(fsp_matrix(first[:, rows], last[:, columns]), wanted, rtol=0, atol=0)


def test_a_common_order_of_places_changes_nothing_and_another_for_each_does():
    first, last = (one.flatten(2) for one in maps())
    order = torch.randperm(15)
    wanted = fsp_matrix(first.unflatten(2, (3, 5)), last.unflatten(2, (3, 5)))
    common = fsp_matrix(first[..., order].unflatten(2, (3, 5)), last[..., order].unflatten(2, (3, 5)))
    torch.testing.assert_close(common, wanted, rtol=1e-12, atol=1e-14)
    alone = fsp_matrix(first[..., order].unflatten(2, (3, 5)), last.unflatten(2, (3, 5)))
    assert (alone - wanted).abs().max() > 0.01


def test_the_mean_over_places_ignores_a_repetition_of_the_map():
    first, last = maps()
    twice = fsp_matrix(first.repeat(1, 1, 2, 1), last.repeat(1, 1, 2, 1))
    torch.testing.assert_close(twice, fsp_matrix(first, last), rtol=1e-12, atol=1e-14)


def largest_of_cells(one):
    """A 4 x 6 map at 2 x 3."""
    rows = [[one[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].amax((2, 3)) for j in range(3)] for i in range(2)]
    return torch.stack([torch.stack(row, dim=2) for row in rows], dim=2)


@pytest.mark.parametrize("larger", [0, 1])
def test_the_larger_map_is_max_pooled_whichever_it_is(larger):
    both = maps(size=(2, 3))
    both[larger] = maps(size=(4, 6))[larger]
    wanted = list(both)
    wanted[larger] = largest_of_cells(both[larger])
    torch.testing.assert_close(fsp_matrix(*both), matrix_in_loops(*wanted), rtol=1e-12, atol=1e-14)


def test_the_average_is_an_option():
    first, last = maps(size=(4, 6))[0], maps(size=(2, 3))[1]
    cells = first.unflatten(3, (3, 2)).unflatten(2, (2, 2)).mean((3, 5))
    torch.testing.assert_close(
        fsp_matrix(first, last, pool="average"), matrix_in_loops(cells, last), rtol=1e-12, atol=1e-14
    )


def test_height_and_width_are_pooled_each_to_the_smaller():
    assert fsp_matrix(torch.randn(2, 3, 4, 2), torch.randn(2, 5, 2, 7)).shape == (2, 3, 5)


# --- the loss


def loss_in_loops(student, teacher, form):
    total = 0.0
    n, rows, columns = student.shape
    for b in range(n):
        squares = [
            sum((teacher[b, i, j].item() - student[b, i, j].item()) ** 2 for i in range(rows)) for j in range(columns)
        ]
        total += sum(math.sqrt(square) for square in squares) if form == "columns" else sum(squares)
    return total / n / (rows * columns if form == "elements" else 1)


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_the_formula_in_loops(form):
    student, teacher = (torch.randn(3, 4, 6, dtype=torch.float64) for _ in range(2))
    wanted = loss_in_loops(student, teacher, form)
    assert fsp_loss(student, teacher, form=form).item() == pytest.approx(wanted, rel=1e-12)


def test_the_default_is_the_papers_squared_frobenius_norm():
    student, teacher = torch.randn(1, 4, 6), torch.randn(1, 4, 6)
    wanted = torch.linalg.matrix_norm(student[0] - teacher[0]).square()
    assert torch.allclose(fsp_loss(student, teacher), wanted)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [((3, 5), (3, 5)), ((4, 6), (2, 3))])
def test_the_gradient_is_that_of_the_value(form, sizes):
    first, last = (torch.randn(2, 3, *size, dtype=torch.float64) for size in sizes)
    teachers = [torch.randn(2, 3, *size, dtype=torch.float64) for size in sizes]
    loss = FlowPair(form=form)
    first.requires_grad_()
    last.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, *teachers), (first, last))


@pytest.mark.parametrize("form", FORMS)
def test_is_zero_with_a_finite_gradient_for_equal_maps_of_one_sample(form):
    first, last = (one[:1].float().requires_grad_() for one in maps())
    value = FlowPair(form=form)(first, last, first, last)
    value.backward()
    assert value.item() == 0
    assert not first.grad.any()
    assert not last.grad.any()


@pytest.mark.parametrize("form", FORMS)
def test_stays_finite_for_activations_of_a_thousand(form):
    first, last = ((1e3 * torch.randn(1, 16, 8, 8)).requires_grad_() for _ in range(2))
    value = FlowPair(form=form)(first, last, -first.detach(), last.detach())
    value.backward()
    assert value.isfinite()
    assert first.grad.isfinite().all()


def test_no_gradient_reaches_the_teacher():
    students, teachers = ([one.requires_grad_() for one in maps()] for _ in range(2))
    FlowPair()(*students, *teachers).backward()
    assert all(one.grad is None for one in teachers)
    assert all(one.grad.any() for one in students)


def test_ignores_a_common_order_of_both_networks_channels_and_the_students_places():
    students, teachers = maps(), maps()
    value = FlowPair()(*students, *teachers).item()
    orders = [torch.randperm(4), torch.randperm(6)]
    moved = [[one[:, order] for one, order in zip(both, orders, strict=True)] for both in (students, teachers)]
    turned = [one.flip(2, 3) for one in moved[0]]
    assert FlowPair()(*turned, *moved[1]).item() == pytest.approx(value, rel=1e-12)


def test_an_order_is_that_of_the_teachers_channels():
    students, teachers = maps(), maps()
    orders = torch.randperm(4), torch.randperm(6)
    moved = [one[:, order] for one, order in zip(teachers, orders, strict=True)]
    wanted = FlowPair()(*students, *moved).item()
    assert FlowPair(orders=orders)(*students, *teachers).item() == pytest.approx(wanted, rel=1e-12)


# --- the stages


def flows(stage):
    """Of each term: the student's pair of layers, and the teacher's."""
    found = []
    for term in stage.terms.values():
        assert [tap.source for tap in term.reads] == ["student", "student", "teacher", "teacher"]
        written = [tap.layer + (":input" if tap.side == "input" else "") for tap in term.reads]
        found.append((tuple(written[:2]), tuple(written[2:])))
    return found


def test_the_first_stage_has_no_labels_and_the_second_no_teacher():
    first, task = planned(epochs=7, fsp_epochs=2)
    assert (first.name, first.epochs, first.learns) == ("fsp", 2, ("student",))
    assert (task.name, task.epochs, task.learns) == ("task", 7, ("student",))
    assert list(first.terms) == ["fsp1", "fsp2", "fsp3"]
    assert {name: (term.reads, term.weight) for name, term in task.terms.items()} == {
        "hard": ((from_student(), TARGETS), 1.0)
    }


def test_the_pairs_go_across_from_section_to_section():
    first, _ = planned()
    assert flows(first) == [(pair, pair) for pair in ACROSS]


def test_the_pairs_within_a_section_go_from_its_first_block_to_its_last():
    first, _ = planned(networks("resnet14"), pairs="in_section")
    wanted = [("stage1.0:input", "stage1"), ("stage2.0", "stage2"), ("stage3.0", "stage3")]
    assert flows(first) == [(pair, pair) for pair in wanted]


def test_named_layers_form_a_pair_with_the_next():
    names = ("stem", "stage1.0.relu1", "stage1", "stage2")
    first, _ = planned(student_layers=names, teacher_layers=names)
    pairs = list(pairwise(names))
    assert flows(first) == [(pair, pair) for pair in pairs]


def tower(sections):
    """Without blocks: one convolution a section, all of 8 channels."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]
    for _ in range(sections - 1):
        layers += [nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def test_of_unequal_numbers_of_sections_the_deepest_meet():
    first, _ = planned({"student": tower(3), "teacher": tower(4)})
    assert flows(first) == [(("1", "1"), ("1", "3")), (("1", "3"), ("3", "5")), (("3", "5"), ("5", "7"))]


@pytest.mark.parametrize("form", FORMS)
def test_the_options_reach_the_loss(form):
    first, _ = planned(form=form, pool="average", weight=0.3)
    term = first.terms["fsp1"]
    assert term.weight == 0.3
    shapes = [(32, 8, 8), (64, 4, 4)] * 2
    values = [torch.randn(2, *shape) for shape in shapes]
    student, teacher = (fsp_matrix(*values[i : i + 2], pool="average") for i in (0, 2))
    assert torch.equal(term.loss(*values), fsp_loss(student, teacher, form=form))


def test_identical_networks_have_no_loss():
    nets = networks("resnet8", "resnet8")
    nets["teacher"].load_state_dict(nets["student"].state_dict())
    first, _ = planned(nets)
    values = dry_run(nets, {tap for term in first.terms.values() for tap in term.reads}, next(iter(batches()(0))))
    assert [term.loss(*(values[tap] for tap in term.reads)).item() for term in first.terms.values()] == [0, 0, 0]


def test_the_students_batchnorm_is_in_train_mode_in_the_first_stage_and_what_is_above_rests():
    nets = networks()
    modes = set()
    nets["student"].stage1[0].norm1.register_forward_pre_hook(
        lambda module, given: modes.add(module.training) if len(given[0]) > 2 else None  # 2 samples are for trials
    )
    first, _ = planned(nets, fsp_epochs=1)
    before = {name: state(network) for name, network in nets.items()}
    modes.clear()
    list(run([first], nets, batches(), ENGINE))
    assert modes == {True}
    moved = changed(before["student"], state(nets["student"]))
    assert moved == {name for name in before["student"] if not name.startswith("head")}
    assert changed(before["teacher"], state(nets["teacher"])) == set()


def test_the_second_stage_starts_where_the_first_ended_with_a_fresh_optimizer():
    made = []

    def optimizer(parameters):
        parameters = list(parameters)
        made.append((torch.optim.SGD(parameters, lr=0.05, momentum=0.9), [p.detach().clone() for p in parameters]))
        return made[-1][0]

    nets = networks()
    stages = planned(nets, optimizer=optimizer, epochs=1)
    made.clear()
    after_first = None
    for epoch in run(stages, nets, batches(), ENGINE):
        if epoch.stage == "fsp":
            after_first = [p.detach().clone() for p in nets["student"].parameters()]
            assert made[0][0].state_dict()["state"]
    assert len(made) == 2
    assert made[0][0] is not made[1][0]
    assert all(torch.equal(one, other) for one, other in zip(made[1][1], after_first, strict=True))
    assert len(made[1][1]) == len(list(nets["student"].parameters()))


def test_the_first_stages_rate_is_a_factor_on_the_schedule():
    first, task = planned(schedule=linear(start=1.0, end=0.0))
    assert [first.schedule(progress) for progress in (0.0, 0.5)] == pytest.approx([0.01, 0.005])
    assert [task.schedule(progress) for progress in (0.0, 0.5)] == pytest.approx([1.0, 0.5])
    assert planned(fsp_rate=0.5)[0].schedule(0.0) == pytest.approx(0.5)


def test_without_epochs_the_first_stage_is_left_out():
    assert [stage.name for stage in planned(fsp_epochs=0)] == ["task"]
    assert [stage.epochs for stage in planned(epochs=4)] == [4, 4]


def orders(seed):
    nets = networks()
    torch.manual_seed(seed)
    first, _ = planned(nets, shuffle=True)
    return first, {
        tap: order
        for term in first.terms.values()
        for tap, order in zip(term.reads[2:], (term.loss.first_order, term.loss.last_order), strict=True)
    }


def test_a_shuffle_orders_each_of_the_teachers_maps_alike_wherever_it_is_read():
    first, found = orders(3)
    assert len(found) == 4
    for term in first.terms.values():
        for tap, order in zip(term.reads[2:], (term.loss.first_order, term.loss.last_order), strict=True):
            assert torch.equal(order, found[tap])
            assert sorted(order.tolist()) == list(range(len(order)))
            assert order.tolist() != list(range(len(order)))
    assert [len(found[Tap("teacher", layer)]) for layer in ("stage1", "stage2", "stage3")] == [16, 32, 64]


def test_a_shuffle_is_drawn_from_the_seed():
    (_, one), (_, same), (_, other) = orders(3), orders(3), orders(4)
    assert all(torch.equal(one[tap], same[tap]) for tap in one)
    assert not any(torch.equal(one[tap], other[tap]) for tap in one)


def test_a_shuffle_is_kept_with_what_a_resumed_run_needs():
    first, _ = orders(3)
    assert {"first_order", "last_order"} == set(first.terms["fsp1"].loss.state_dict())
    assert not planned()[0].terms["fsp1"].loss.state_dict()


# --- unequal widths


def test_unequal_channels_are_refused_and_the_adapter_is_named():
    with pytest.raises(LimbeckError, match=r"16 channels and teacher.stage1.0 \(input\) has 32.*adapter: conv1x1"):
        planned(networks(teacher="resnet8x4"))


def test_an_adapter_bridges_each_map_of_the_student_once():
    first, _ = planned(networks(teacher="resnet8x4"), adapter="conv1x1")
    adapters = {}
    for term in first.terms.values():
        for tap, module in zip(term.reads[:2], term.loss.adapters, strict=True):
            assert adapters.setdefault(tap, module) is module
    assert {tap.layer: (one.in_channels, one.out_channels) for tap, one in adapters.items()} == {
        "stage1.0": (16, 32),
        "stage1": (16, 64),
        "stage2": (32, 128),
        "stage3": (64, 256),
    }


def test_where_the_channels_are_equal_there_is_no_adapter():
    first, _ = planned(adapter="conv1x1")
    assert not [p for term in first.terms.values() for p in term.loss.parameters()]


def test_adapters_learn_with_the_student():
    nets = networks(teacher="resnet8x4")
    first, _ = planned(nets, adapter="conv1x1", fsp_epochs=1)
    before = {name: state(term.loss) for name, term in first.terms.items()}
    list(run([first], nets, batches(), ENGINE))
    for name, term in first.terms.items():
        assert changed(before[name], state(term.loss)) == set(before[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student_layers": ("stem", "stage1")}, "given together and have the same length"),
        (
            {"student_layers": ("stem", "stage1"), "teacher_layers": ("stem", "stage1", "stage2")},
            "given together and have the same length",
        ),
        (
            {"student_layers": ("stem",), "teacher_layers": ("stem",)},
            r"needs two layers of a network, got \['stem'\]",
        ),
        (
            {"student_layers": ("stem", "head"), "teacher_layers": ("stem", "head")},
            r"fsp reads maps \(C, H, W\), but student.head gives \(4,\)",
        ),
        ({"weight": 0.0}, "fsp1 and fsp2 and fsp3 are all 0"),
        ({"weight": -1.0}, "weight is -1.0: it must be at least 0"),
        ({"fsp_epochs": -2}, "fsp_epochs is -2: it must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)


def test_a_network_without_maps_is_refused():
    nets = networks()
    nets["student"] = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(LimbeckError, match=r"fsp compares maps .* the student returns only vectors or tokens"):
        planned(nets)
