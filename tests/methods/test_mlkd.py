import math
from functools import partial

import pytest
import torch

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training
from limbeck.methods.kd import soft_loss
from limbeck.methods.mlkd import batch_loss, category_loss, instance_loss, mlkd
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant

LEVELS = [instance_loss, batch_loss, category_loss]
MASKS = ["select", "scale", "none"]


def logits(n=4, k=5, scale=3.0):
    return [scale * torch.randn(n, k, dtype=torch.float64) for _ in range(2)]


def planned(**options):
    data = arrays(torch.rand(40, 3, 16, 16), torch.arange(40) % 4)
    networks = {"student": "resnet8", "teacher": "resnet14"}
    built = {role: build(name, classes=4, shape=(3, 16, 16)) for role, name in networks.items()}
    training = Training(epochs=3, batch_size=8, optimizer=sgd(lr=0.1), schedule=constant())
    (stage,) = plan(partial(mlkd, **options), built, data, training)
    return stage


def softened(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def median(values):
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def counted(values, confidence, masks):
    """The mean of the values under the mask of those whose confidence is above the median."""
    kept = [value <= median(confidence) for value in confidence]
    if masks == "select":
        return sum(value for value, keep in zip(values, kept, strict=True) if keep) / len(values)
    return sum(values) / len(values) * (sum(kept) / len(kept) if masks == "scale" else 1)


def related(rows):
    return [[sum(a * b for a, b in zip(one, other, strict=True)) for other in rows] for one in rows]


def squares(ours, theirs):
    """Row by row."""
    return [sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) for pair in zip(ours, theirs, strict=True)]


def loop(level, student, teacher, temperatures, masks):
    sure = [softened(row, 1.0) for row in teacher.tolist()]
    confidence = (
        [max(row) for row in sure] if level is not category_loss else [sum(one) for one in zip(*sure, strict=True)]
    )
    total = 0.0
    for temperature in temperatures:
        q, p = ([softened(row, temperature) for row in one.tolist()] for one in (student, teacher))
        if level is instance_loss:
            pairs = list(zip(q, p, strict=True))
            values = [sum(b * math.log(b / a) for a, b in zip(*pair, strict=True)) for pair in pairs]
            values = [temperature**2 * value for value in values]
        elif level is batch_loss:
            values = squares(related(q), related(p))
        else:
            values = squares(related(list(zip(*q, strict=True))), related(list(zip(*p, strict=True))))
        total += counted(values, confidence, masks)
    return total


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize(("n", "k"), [(4, 5), (5, 4), (1, 3)])
def test_is_the_formula_in_loops(level, masks, n, k):
    student, teacher = logits(n, k)
    value = level(student, teacher, temperatures=(2.0, 4.0, 2.0), masks=masks).item()
    assert value == pytest.approx(loop(level, student, teacher, (2.0, 4.0, 2.0), masks), rel=1e-9)


@pytest.mark.parametrize("level", LEVELS)
def test_selecting_and_scaling_differ_and_agree_where_the_values_are_alike(level):
    student, teacher = logits()
    select, scale = (level(student, teacher, masks=masks).item() for masks in ("select", "scale"))
    assert select != pytest.approx(scale, rel=1e-3)
    row, wanted = student[:1].expand(4, 5), teacher[:1].expand(4, 5)
    if level is not category_loss:
        values = [level(row, wanted, masks=masks).item() for masks in MASKS]
        assert values == pytest.approx(values[:1] * 3, rel=1e-10)


def test_the_surest_samples_have_no_gradient():
    student, teacher = logits(4, 3)
    teacher[1] = torch.tensor([50.0, 0.0, 0.0])
    teacher[3] = torch.tensor([60.0, 0.0, 0.0])
    leaf = student.clone().requires_grad_()
    instance_loss(leaf, teacher).backward()
    assert leaf.grad[[1, 3]].abs().max() == 0
    assert leaf.grad[[0, 2]].abs().max() > 0


def test_one_temperature_without_masks_is_soft_targets():
    student, teacher = logits()
    value = instance_loss(student, teacher, temperatures=(3.0,), masks="none")
    assert value.item() == pytest.approx(soft_loss(student, teacher, temperature=3.0).item(), rel=1e-12)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("masks", MASKS)
def test_the_gradient_is_that_of_the_value_and_none_is_the_teachers(level, masks):
    student, teacher = (tensor.requires_grad_() for tensor in logits(3, 4))
    loss = partial(level, temperatures=(2.0, 3.0), masks=masks)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)
    loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("level", LEVELS)
def test_ignores_the_order_of_classes_and_samples(level):
    student, teacher = logits()
    classes, samples = torch.randperm(5), torch.randperm(4)
    moved = level(student[samples][:, classes], teacher[samples][:, classes])
    assert moved.item() == pytest.approx(level(student, teacher).item(), rel=1e-10)


def test_the_relations_ignore_more_than_the_distributions_do():
    student, _ = logits()
    swapped = student[:, [1, 0, 2, 3, 4]]
    assert batch_loss(swapped, student).item() == pytest.approx(0, abs=1e-20)
    assert instance_loss(swapped, student).item() > 1e-3
    assert category_loss(student[[1, 0, 2, 3]], student).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("level", LEVELS)
def test_is_zero_for_equal_inputs(level):
    student, _ = logits()
    assert level(student, student).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_stays_finite_for_huge_logits(level):
    student = torch.tensor([[1e3, -1e3, 0.0]], requires_grad=True)
    value = level(student, torch.tensor([[-1e3, 1e3, 0.0]]))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_has_the_authors_terms_and_weights():
    stage = planned()
    assert stage.name == "mlkd"
    weights = {name: term.weight for name, term in stage.terms.items()}
    assert weights == {"hard": 0.1, "instance": 0.9, "batch": 0.9, "category": 0.9}
    assert all(stage.terms[name].reads == (Tap("student"), Tap("teacher")) for name in list(weights)[1:])


def test_options_reach_every_level():
    stage = planned(temperatures=(2.0,), masks="scale", hard=0)
    student, teacher = logits()
    for name, level in zip(("instance", "batch", "category"), LEVELS, strict=True):
        wanted = level(student, teacher, temperatures=(2.0,), masks="scale")
        assert stage.terms[name].loss(student, teacher).item() == wanted.item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperatures": ()}, r"temperatures is \(\): at least one is needed"),
        ({"temperatures": (4.0, 0.0)}, r"temperatures is \(4.0, 0.0\)"),
        ({"hard": 0, "instance": 0, "batch": 0, "category": 0}, "are all 0"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)
