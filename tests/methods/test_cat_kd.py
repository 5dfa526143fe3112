import math
from functools import partial

import pytest
import torch
from torch import nn

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.cat_kd import ClassMaps, cat_kd, class_attention_loss
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.taps import dry_run
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

DATA = arrays(torch.rand(40, 3, 16, 16), torch.arange(40) % 4)
TRAINING = Training(epochs=1, batch_size=8, optimizer=sgd(lr=0.01), schedule=constant())


def pair(student="resnet8", teacher="resnet14"):
    names = {"student": student, "teacher": teacher}
    return {role: build(name, classes=4, shape=(3, 16, 16)) for role, name in names.items()}


def planned(networks=None, **options):
    (stage,) = plan(partial(cat_kd, **options), networks or pair(), DATA, TRAINING)
    return stage


def maps(n=2, k=3, sizes=((4, 4), (4, 4))):
    return [torch.randn(n, k, *size, dtype=torch.float64) for size in sizes]


def pooled(one, resolution):
    """The means of the cells, which may overlap where the size is no multiple of the resolution."""

    def cell(place, size):
        return range(place * size // resolution, -(-(place + 1) * size // resolution))

    found = []
    for row in range(resolution):
        for column in range(resolution):
            rows, columns = cell(row, len(one)), cell(column, len(one[0]))
            found.append(sum(one[y][x] for y in rows for x in columns) / (len(rows) * len(columns)))
    return found


def loop(student, teacher, resolution, normalise, binarise):
    """Summed over places, mean over classes and batch."""
    total = 0.0
    for n in range(student.shape[0]):
        for k in range(student.shape[1]):
            ours, theirs = student[n, k].tolist(), teacher[n, k].tolist()
            if binarise:
                values = [abs(value) for row in theirs for value in row]
                theirs = [[float(value > sum(values) / len(values)) for value in row] for row in theirs]
            ours, theirs = pooled(ours, resolution), pooled(theirs, resolution)
            if normalise:
                ours, theirs = (
                    [value / (math.sqrt(sum(other**2 for other in one)) or 1) for value in one]
                    for one in (ours, theirs)
                )
            total += sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True))
    return total / student.shape[0] / student.shape[1]


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("binarise", [True, False])
@pytest.mark.parametrize(("resolution", "sizes"), [(2, ((4, 4), (4, 4))), (2, ((3, 5), (8, 6))), (3, ((2, 2), (4, 4)))])
def test_is_the_formula_in_loops(normalise, binarise, resolution, sizes):
    student, teacher = maps(sizes=sizes)
    value = class_attention_loss(student, teacher, resolution=resolution, normalise=normalise, binarise=binarise)
    assert value.item() == pytest.approx(loop(student, teacher, resolution, normalise, binarise), rel=1e-10)


def test_the_mean_over_places_is_a_factor():
    student, teacher = maps()
    classes, elements = (
        class_attention_loss(student, teacher, resolution=3, average=average) for average in ("classes", "elements")
    )
    assert classes.item() == pytest.approx(9 * elements.item(), rel=1e-12)


def test_a_normalised_map_ignores_its_scale_and_another_does_not():
    student, teacher = maps()
    for normalise in (True, False):
        once, twice = (class_attention_loss(x, teacher, normalise=normalise).item() for x in (student, 2 * student))
        assert (once == pytest.approx(twice, rel=1e-10)) is normalise


def test_binarising_ignores_the_size_of_the_teachers_values():
    student, teacher = maps()
    values = [class_attention_loss(student, scale * teacher, binarise=True).item() for scale in (1, 50)]
    assert values[0] == pytest.approx(values[1], rel=1e-12)


@pytest.mark.parametrize("options", [{}, {"normalise": False}, {"binarise": True}, {"average": "elements"}])
def test_the_gradient_is_that_of_the_value_and_none_is_the_teachers(options):
    student, teacher = (tensor.requires_grad_() for tensor in maps(sizes=((3, 4), (4, 3))))
    loss = partial(class_attention_loss, **options)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)
    loss(student, teacher).backward()
    assert teacher.grad is None


def test_is_zero_for_equal_inputs_and_of_one_sample():
    student, teacher = maps(1)
    assert class_attention_loss(student, student).item() == 0
    assert class_attention_loss(student, teacher).item() > 0


def test_maps_that_are_zero_or_huge_give_finite_gradients():
    student = torch.tensor([0.0, 1e3, -1e3]).repeat(2, 1)[:, :, None, None].expand(2, 3, 4, 4).clone().requires_grad_()
    value = class_attention_loss(student, torch.randn(2, 3, 4, 4))
    value.backward()
    assert value.isfinite()
    assert student.grad.abs().max() < 1


def test_the_mean_of_a_class_map_is_the_logit():
    """The maps that the loss is given, and with them which layers are read by default."""
    networks = pair()
    seen = []

    def watch(student, teacher):
        seen.extend((student, teacher))
        return student.sum()

    stage = planned(networks)
    probe = next(iter(training_batches(DATA, TRAINING, seed=0, engine=make_engine(device="cpu", precision="32"))(0)))
    reads = stage.terms["attention"].reads
    values = dry_run(networks, {*reads, Tap("student"), Tap("teacher")}, probe)
    heads = [network.get_submodule("head") for network in networks.values()]
    ClassMaps(*heads, watch)(*(values[tap] for tap in reads))
    for maps, head, role in zip(seen, heads, networks, strict=True):
        assert maps.dim() == 4
        torch.testing.assert_close(maps.mean(dim=(2, 3)) + head.bias, values[Tap(role)], rtol=1e-4, atol=1e-5)


def test_the_students_classifier_learns_through_it_and_the_teachers_does_not():
    networks = pair()
    stage = planned(networks, hard=0)
    heads = [network.get_submodule("head").weight for network in networks.values()]
    before = [head.detach().clone() for head in heads]
    engine = make_engine(device="cpu", precision="32")
    list(run([stage], networks, training_batches(DATA, TRAINING, seed=0, engine=engine), engine))
    assert [torch.equal(head, was) for head, was in zip(heads, before, strict=True)] == [False, True]


def test_has_the_published_terms_and_weights():
    stage = planned()
    assert stage.name == "cat_kd"
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 1.0, "attention": 100.0}
    assert [tap.source for tap in stage.terms["attention"].reads] == ["student", "teacher"]


def test_options_reach_the_loss():
    options = {"resolution": 3, "normalise": False, "binarise": True, "average": "elements"}
    stage = planned(hard=0, **options)
    assert list(stage.terms) == ["attention"]
    assert stage.terms["attention"].loss.loss.keywords == options


def test_a_named_map_of_the_right_channels_is_read():
    assert planned(student_layer="stage3").terms["attention"].reads[0] == Tap("student", "stage3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 0}, "resolution is 0: it must be at least 1"),
        ({"student_layer": "stage1"}, "needs a map of 64 channels, as many as the classifier of the student reads"),
        ({"teacher_layer": "head"}, r"needs a map of 64 channels.*but teacher.head gives \(4,\)"),
        ({"hard": 0, "attention": 0}, "are all 0"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_whose_classifier_reads_no_mean_of_a_map_is_refused(role):
    flat = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(LimbeckError, match=f"That of the {role} does not read the mean of that map"):
        planned(pair() | {role: flat})
