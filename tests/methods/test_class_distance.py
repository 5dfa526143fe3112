from functools import partial

import pytest
import torch
from torch import nn

from limbeck.core import TARGETS, LimbeckError, Tap, from_teacher
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.class_distance import (
    ClassDistance,
    class_distance,
    class_distance_loss,
    mean_squared_distance,
    squared_distances,
)
from limbeck.methods.mimic import mimic_loss
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.taps import evaluation_mode
from limbeck.train.engine import make_engine
from limbeck.train.loop import TrainingSweep, run

ENGINE = make_engine(device="cpu", precision="32")
GENERATOR = torch.Generator().manual_seed(5)
DATA = arrays(torch.randn(40, 6, generator=GENERATOR), torch.randint(4, (40,), generator=GENERATOR), classes="abcd")
FEATURE = Tap("teacher", "5", "input")


def mlp(seed, width=8):
    torch.manual_seed(seed)
    hidden = [nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, width), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(width, 4))


def networks(width=8):
    return {"student": mlp(1, width), "teacher": mlp(2)}


def training(*, epochs=3, exclude=()):
    return Training(epochs, 8, sgd(lr=0.02), constant(), exclude=exclude)


def planned(nets=None, *, epochs=3, exclude=(), **options):
    return plan(partial(class_distance, **options), nets or networks(), DATA, training(epochs=epochs, exclude=exclude))


def batches(exclude=()):
    return training_batches(DATA, training(exclude=exclude), seed=0, engine=ENGINE)


def prepare(stage, nets, epoch=0, exclude=()):
    stage.prepare(TrainingSweep(epoch, nets, batches(exclude), ENGINE))


def measured(nets, exclude=()):
    """The mean feature of each class, one sample at a time."""
    rows = {label: [] for label in range(4)}
    with evaluation_mode([nets["teacher"]]), torch.no_grad():
        for batch in batches(exclude).sweep():
            for sample, label in zip(batch.inputs, batch.targets.tolist(), strict=True):
                rows[label].append(nets["teacher"][:5](sample[None])[0])
    return {label: sum(found) / len(found) for label, found in rows.items() if found}


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(one, other):
    return {name for name in one if not torch.equal(one[name], other[name])}


def tensors(n=5, d=6):
    return [torch.randn(n, d, dtype=torch.float64) for _ in range(3)]


def module(centres, *, mode="epoch", other="random", phi=1e9, momentum=0.9, present=None):
    """The term with these centres."""
    classes, width = centres.shape
    made = ClassDistance(
        torch.arange(classes) if present is None else present,
        classes,
        width,
        phi=phi,
        relative=False,
        centres=mode,
        other=other,
        momentum=momentum,
        begins=0,
    )
    made.centres.copy_(centres)
    return made


# --- the loss


def loop(feature, own, other, phi):
    total = 0.0
    for n in range(len(feature)):
        near = sum((feature[n, d].item() - own[n, d].item()) ** 2 for d in range(feature.shape[1]))
        far = sum((feature[n, d].item() - other[n, d].item()) ** 2 for d in range(feature.shape[1]))
        total += near - min(phi, far)
    return total / len(feature)


@pytest.mark.parametrize("phi", [0.5, 12.0, 1e9])
def test_is_the_formula_in_loops(phi):
    feature, own, other = tensors()
    assert class_distance_loss(feature, own, other, phi=phi).item() == pytest.approx(
        loop(feature, own, other, phi), rel=1e-12
    )


def test_of_several_other_centres_it_is_the_mean_after_the_cap():
    feature, own, first = tensors()
    others = torch.stack([first, *tensors()[:2]], dim=1)
    wanted = sum(loop(feature, own, others[:, m], 12.0) for m in range(3)) / 3
    assert class_distance_loss(feature, own, others, phi=12.0).item() == pytest.approx(wanted, rel=1e-12)


def test_is_never_below_minus_phi_which_is_reached_at_the_own_centre():
    feature, own, other = tensors()
    assert class_distance_loss(own, own, own + 100.0, phi=3.0).item() == -3.0
    for scale in (0.1, 1.0, 100.0):
        assert class_distance_loss(scale * feature, own, other, phi=3.0).item() >= -3.0


def test_the_second_distance_has_no_gradient_beyond_phi():
    feature, own, other = tensors()
    distances = (feature - other).square().sum(dim=1)
    phi = distances.median().item() * 1.001
    leaf = feature.clone().requires_grad_()
    class_distance_loss(leaf, own, other, phi=phi).backward()
    inside = (distances < phi).unsqueeze(1)
    assert 0 < inside.sum() < 5
    wanted = 2 * (feature - own) - torch.where(inside, 2 * (feature - other), 0.0)
    torch.testing.assert_close(leaf.grad, wanted / 5, rtol=1e-12, atol=1e-14)


def test_no_gradient_reaches_the_centres():
    feature, own, other = (one.requires_grad_() for one in tensors())
    class_distance_loss(feature, own, other, phi=1e9).backward()
    assert own.grad is None
    assert other.grad is None
    assert feature.grad.any()


def test_the_gradient_is_that_of_the_value():
    feature, own, other = tensors()
    assert torch.autograd.gradcheck(lambda f: class_distance_loss(f, own, other, phi=12.0), feature.requires_grad_())


def test_ignores_a_common_shift_and_rotation():
    feature, own, other = tensors()
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    moved = [one @ rotation + 3.0 for one in (feature, own, other)]
    value = class_distance_loss(feature, own, other, phi=12.0).item()
    assert class_distance_loss(*moved, phi=12.0).item() == pytest.approx(value, rel=1e-10)


def test_is_zero_for_equal_points_and_finite_for_large_ones_of_one_sample():
    feature = torch.randn(1, 6)
    assert class_distance_loss(feature, feature, feature, phi=1.0).item() == 0
    leaf = (1e3 * feature).requires_grad_()
    value = class_distance_loss(leaf, -feature, feature, phi=1.0)
    value.backward()
    assert value.isfinite()
    assert leaf.grad.isfinite().all()


# --- the other class


def chosen(other, targets, centres, feature=None, present=None):
    made = module(centres, other=other, present=present)
    return made._others(torch.zeros(len(targets), centres.shape[1]) if feature is None else feature, targets)


def test_a_random_other_class_is_never_the_own_and_each_of_the_rest_alike():
    centres = torch.arange(4.0).unsqueeze(1)
    targets = torch.arange(4).repeat(6000)
    found = chosen("random", targets, centres).squeeze(1).long()
    counts = torch.zeros(4, 4)
    counts.index_put_((targets, found), torch.ones(len(targets)), accumulate=True)
    assert counts.diagonal().tolist() == [0, 0, 0, 0]
    rest = counts[~torch.eye(4, dtype=torch.bool)]
    assert rest.min() > 1850
    assert rest.max() < 2150


@pytest.mark.parametrize("other", ["random", "nearest", "mean"])
def test_only_classes_that_the_training_set_has_are_others(other):
    centres = torch.tensor([[100.0], [1.0], [200.0], [3.0], [4.0]])
    targets = torch.tensor([1, 3, 4]).repeat(50)
    found = chosen(other, targets, centres, torch.zeros(150, 1), torch.tensor([1, 3, 4]))
    for target, values in zip(targets.tolist(), found.reshape(150, -1).tolist(), strict=True):
        assert set(values) <= {1.0, 3.0, 4.0} - {centres[target].item()}


def test_the_nearest_is_the_nearest_of_another_class():
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    feature = torch.tensor([[0.1, 0.0], [0.9, 0.0], [0.0, 4.0], [0.0, 4.0]])
    found = chosen("nearest", torch.tensor([0, 0, 2, 1]), centres, feature)
    assert found.tolist() == [[1, 0], [1, 0], [0, 0], [0, 5]]


def test_the_mean_is_over_all_other_classes():
    centres, targets = torch.randn(4, 6), torch.tensor([2, 0])
    feature = torch.randn(2, 6)
    found = chosen("mean", targets, centres)
    wanted = [{(n, c) for c in range(4) if c != target} for n, target in enumerate(targets.tolist())]
    assert [{tuple(row) for row in rows} for rows in found.tolist()] == [
        {tuple(centres[c].tolist()) for _, c in pairs} for pairs in wanted
    ]
    total = sum(
        loop(feature[n, None], centres[None, target], centres[None, c], 7.0) / 3 / 2
        for n, target in enumerate(targets.tolist())
        for c in range(4)
        if c != target
    )
    made = module(centres, other="mean", phi=7.0)
    assert made(feature, targets).item() == pytest.approx(total, rel=1e-5)


# --- the centres


def test_the_centres_are_the_classes_exact_means_in_eval_mode():
    nets = networks()
    teaching, _ = planned(nets)
    loss = teaching.terms["distance"].loss
    prepare(teaching, nets)
    for label, mean in measured(nets).items():
        torch.testing.assert_close(loss.centres[label], mean, rtol=1e-5, atol=1e-6)


def test_exact_centres_are_measured_again_before_every_epoch():
    nets = networks()
    teaching, _ = planned(nets)
    prepare(teaching, nets)
    first = teaching.terms["distance"].loss.centres.clone()
    with torch.no_grad():
        nets["teacher"][3].weight.mul_(2)
    prepare(teaching, nets, epoch=2)
    second = teaching.terms["distance"].loss.centres
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second[1], measured(nets)[1], rtol=1e-5, atol=1e-6)


def test_exact_centres_stay_as_they_are_within_an_epoch():
    made = module(torch.randn(3, 6)).train()
    before = made.centres.clone()
    made(torch.randn(4, 6, requires_grad=True), torch.tensor([0, 1, 1, 2]))
    assert torch.equal(made.centres, before)


@pytest.mark.parametrize(("mode", "kept"), [("ema", 0.9), ("batch", 0.0)])
def test_centres_that_follow_the_batches(mode, kept):
    centres = torch.randn(4, 6)
    feature, targets = torch.randn(5, 6), torch.tensor([0, 2, 2, 2, 0])
    made = module(centres, mode=mode).train()
    made(feature.requires_grad_(), targets)
    wanted = centres.clone()
    wanted[0] = kept * centres[0] + (1 - kept) * (feature[0] + feature[4]) / 2
    wanted[2] = kept * centres[2] + (1 - kept) * (feature[1] + feature[2] + feature[3]) / 3
    torch.testing.assert_close(made.centres, wanted.detach())
    assert not made.centres.requires_grad


def test_centres_do_not_follow_what_is_only_evaluated():
    made = module(torch.randn(3, 6), mode="batch")
    before = made.centres.clone()
    made.eval()(torch.randn(2, 6), torch.tensor([0, 1]))
    with torch.no_grad():
        made.train()(torch.randn(2, 6), torch.tensor([0, 1]))
    assert torch.equal(made.centres, before)


@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_centres_that_follow_start_from_exact_ones_when_the_term_begins(mode):
    nets = networks()
    teaching, _ = planned(nets, epochs=4, centres=mode, warmup_epochs=2)
    loss = teaching.terms["distance"].loss
    prepare(teaching, nets, epoch=1)
    assert not loss.centres.any()
    prepare(teaching, nets, epoch=2)
    torch.testing.assert_close(loss.centres[1], measured(nets)[1], rtol=1e-5, atol=1e-6)
    kept = loss.centres.clone()
    with torch.no_grad():
        nets["teacher"][3].weight.mul_(2)
    prepare(teaching, nets, epoch=3)
    assert torch.equal(loss.centres, kept)


def test_excluded_classes_have_no_part():
    nets = networks()
    teaching, _ = planned(nets, exclude=(1,))
    loss = teaching.terms["distance"].loss
    assert loss.present.tolist() == [0, 2, 3]
    prepare(teaching, nets, exclude=(1,))
    assert not loss.centres[1].any()
    torch.testing.assert_close(loss.centres[3], measured(nets, (1,))[3], rtol=1e-5, atol=1e-6)


# --- phi


def test_the_mean_squared_distance_is_over_the_pairs():
    centres = torch.randn(4, 6, dtype=torch.float64)
    total = sum((centres[m] - centres[n]).square().sum().item() for m in range(4) for n in range(m + 1, 4))
    assert mean_squared_distance(centres).item() == pytest.approx(total / 6, rel=1e-12)


def test_distances_of_centres_far_from_zero_are_exact():
    """As of 30 classes whose features share a large mean: a matrix product would lose them."""
    centres = 1000 + torch.randn(30, 16)
    wanted = mean_squared_distance(centres.double() - 1000).item()
    assert mean_squared_distance(centres).item() == pytest.approx(wanted, rel=1e-3)
    assert squared_distances(centres, centres).diagonal().tolist() == [0] * 30


def test_a_relative_phi_is_a_multiple_of_what_is_measured_after_the_warm_up():
    nets = networks()
    teaching, _ = planned(nets, epochs=4, phi=2.5, warmup_epochs=2)
    loss = teaching.terms["distance"].loss
    for epoch in (0, 1):
        prepare(teaching, nets, epoch=epoch)
        assert loss.phi.item() == 2.5
    prepare(teaching, nets, epoch=2)
    centres = list(measured(nets).values())
    pairs = [(a - b).square().sum().item() for n, a in enumerate(centres) for b in centres[n + 1 :]]
    assert loss.phi.item() == pytest.approx(2.5 * sum(pairs) / 6, rel=1e-4)
    fixed = loss.phi.item()
    with torch.no_grad():
        nets["teacher"][3].weight.mul_(2)
    prepare(teaching, nets, epoch=3)
    assert loss.phi.item() == fixed


def test_a_relative_phi_leaves_excluded_classes_out():
    nets = networks()
    teaching, _ = planned(nets, exclude=(1,), warmup_epochs=0)
    prepare(teaching, nets, exclude=(1,))
    centres = list(measured(nets, (1,)).values())
    pairs = [(a - b).square().sum().item() for n, a in enumerate(centres) for b in centres[n + 1 :]]
    assert teaching.terms["distance"].loss.phi.item() == pytest.approx(sum(pairs) / 3, rel=1e-4)


def test_a_raw_phi_stays_as_it_is():
    nets = networks()
    teaching, _ = planned(nets, phi=2.5, phi_unit="raw", warmup_epochs=0)
    prepare(teaching, nets)
    assert teaching.terms["distance"].loss.phi.item() == 2.5


def test_what_was_measured_is_kept_with_what_a_resumed_run_needs():
    teaching, _ = planned()
    assert set(teaching.terms["distance"].loss.state_dict()) == {"present", "centres", "phi"}


# --- the stages


def test_the_teacher_learns_first_and_the_student_mimics_it():
    teaching, mimicking = planned(epochs=7, teacher_epochs=4)
    assert (teaching.name, teaching.epochs, teaching.learns) == ("teacher", 4, ("teacher",))
    assert teaching.terms["hard"].reads == (from_teacher(), TARGETS)
    assert teaching.terms["distance"].reads == (FEATURE, TARGETS)
    assert (mimicking.name, mimicking.epochs, mimicking.learns) == ("mimic", 7, ("student",))
    assert list(mimicking.terms) == ["mimic"]
    assert mimicking.terms["mimic"].loss is mimic_loss


def test_the_first_stage_has_as_many_epochs_as_the_second_unless_it_says():
    assert [stage.epochs for stage in planned(epochs=4)] == [4, 4]
    assert [stage.name for stage in planned(teacher_epochs=0)] == ["mimic"]


def test_the_weight_is_nothing_in_the_warm_up():
    teaching, _ = planned(epochs=5, weight=0.03, warmup_epochs=2)
    weight = teaching.terms["distance"].weight
    steps = [(epoch + position / 7) / 5 for epoch in range(5) for position in range(7)]
    assert [weight(progress) for progress in steps] == [0.0] * 14 + [0.03] * 21
    assert planned(weight=0.03, warmup_epochs=0)[0].terms["distance"].weight == 0.03


@pytest.mark.parametrize(("epochs", "warmup", "begins"), [(3, 1, 1), (3, 3, 2), (3, 9, 2), (1, 1, 0)])
def test_the_term_counts_in_the_last_epoch_however_long_the_warm_up(epochs, warmup, begins):
    teaching, _ = planned(epochs=epochs, weight=0.03, warmup_epochs=warmup)
    weight = teaching.terms["distance"].weight
    values = [weight if isinstance(weight, float) else weight(epoch / epochs) for epoch in range(epochs)]
    assert values == [0.0] * begins + [0.03] * (epochs - begins)
    nets = networks()
    teaching, _ = planned(nets, epochs=epochs, warmup_epochs=warmup, centres="ema")
    prepare(teaching, nets, epoch=begins)
    assert teaching.terms["distance"].loss.centres.any()


def test_without_a_weight_the_teacher_learns_by_cross_entropy_alone():
    teaching, _ = planned(weight=0.0)
    assert list(teaching.terms) == ["hard"]
    assert teaching.prepare is None


def test_the_teacher_changes_in_the_first_stage_only_and_the_student_in_the_second_only():
    nets = networks()
    stages = planned(nets, epochs=2)
    seen = [{name: state(network) for name, network in nets.items()}]
    for epoch in run(stages, nets, batches(), ENGINE):
        if epoch.number == epoch.epochs:
            seen.append({name: state(network) for name, network in nets.items()})
    start, taught, mimicked = seen
    assert changed(start["teacher"], taught["teacher"]) >= set(start["teacher"]) - {"0.bias"}  # BatchNorm undoes it
    assert changed(taught["teacher"], mimicked["teacher"]) == set()
    assert changed(start["student"], taught["student"]) == set()
    assert changed(taught["student"], mimicked["student"])


def test_the_student_ends_with_exactly_the_classifier_of_the_taught_teacher():
    nets = networks()
    before = state(nets["teacher"][5])
    list(run(planned(nets, epochs=2), nets, batches(), ENGINE))
    assert changed(before, state(nets["teacher"][5])) == {"weight", "bias"}
    assert changed(state(nets["teacher"][5]), state(nets["student"][5])) == set()


def test_the_teachers_clusters_become_denser():
    """Claim A4: the ratio of the distances within and between the classes is lower than by cross-entropy alone."""

    def ratio(weight):
        nets = {"student": mlp(1), "teacher": mlp(2)}
        teaching, _ = planned(nets, epochs=30, weight=weight)
        torch.manual_seed(0)
        list(run([teaching], nets, batches(), ENGINE))
        means = measured(nets)
        with evaluation_mode([nets["teacher"]]), torch.no_grad():
            inside = [
                (nets["teacher"][:5](batch.inputs) - torch.stack([means[label] for label in batch.targets.tolist()]))
                for batch in batches().sweep()
            ]
        within = torch.cat(inside).square().sum(dim=1).mean()
        return (within / mean_squared_distance(torch.stack([means[label] for label in range(4)]))).item()

    assert ratio(0.1) < 0.8 * ratio(0.0)


def test_an_adapter_bridges_unequal_widths():
    _, mimicking = planned(networks(width=5), adapter="linear")
    assert mimicking.terms["mimic"].loss.connector.weight.shape == (8, 5)
    with pytest.raises(LimbeckError, match="set adapter: linear"):
        planned(networks(width=5))


def test_is_planned_for_networks_with_maps():
    data = arrays(torch.rand(12, 3, 16, 16), torch.arange(12) % 4)
    nets = {
        "student": build("resnet8", classes=4, shape=(3, 16, 16)),
        "teacher": build("resnet14", classes=4, shape=(3, 16, 16)),
    }
    teaching, _ = plan(class_distance, nets, data, training())
    assert teaching.terms["distance"].loss.centres.shape == (4, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -0.1}, "weight is -0.1: it must be at least 0"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"phi": 0.0}, "phi is 0.0: it must be above 0"),
        ({"phi": float("nan")}, "phi is nan"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        ({"teacher_epochs": -1}, "teacher_epochs is -1"),
        ({"exclude": (0, 1, 2)}, "only one class: class_distance needs at least two"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)
