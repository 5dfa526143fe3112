from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.mimic import mimic, mimic_loss
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

ENGINE = make_engine(device="cpu", precision="32")
DATA = arrays(torch.randn(24, 6, generator=torch.Generator().manual_seed(5)), torch.arange(24) % 4)
TRAINING = Training(2, 8, sgd(lr=0.02), constant())


def network(width, *, seed, bias=True):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4, bias=bias))


def networks(width=8, teacher_width=8, *, bias=True, teacher_bias=True):
    return {
        "student": network(width, seed=1, bias=bias),
        "teacher": network(teacher_width, seed=2, bias=teacher_bias),
    }


def planned(nets=None, **options):
    (stage,) = plan(partial(mimic, **options), nets or networks(), DATA, TRAINING)
    return stage


def trained(stage, nets):
    return list(run([stage], nets, training_batches(DATA, TRAINING, seed=0, engine=ENGINE), ENGINE))


def features(n=3, d=5):
    return [torch.randn(n, d, dtype=torch.float64) for _ in range(2)]


def test_is_the_formula_in_loops():
    student, teacher = features()
    wanted = sum((teacher[n, d].item() - student[n, d].item()) ** 2 for n in range(3) for d in range(5)) / 3
    assert mimic_loss(student, teacher).item() == pytest.approx(wanted, rel=1e-12)


def test_ignores_a_common_rotation_and_shift():
    student, teacher = features()
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    value = mimic_loss(student @ rotation + 2, teacher @ rotation + 2).item()
    assert value == pytest.approx(mimic_loss(student, teacher).item(), rel=1e-10)


def test_the_gradient_is_that_of_the_value():
    student, teacher = features()
    assert torch.autograd.gradcheck(lambda s: mimic_loss(s, teacher), student.requires_grad_())


def test_no_gradient_reaches_the_teacher():
    student, teacher = (one.requires_grad_() for one in features())
    mimic_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.any()


def test_is_zero_for_equal_features_and_finite_for_large_ones_of_one_sample():
    student = torch.randn(1, 5, requires_grad=True)
    assert mimic_loss(student, student).item() == 0
    mimic_loss(1e3 * student, -1e3 * student.detach()).backward()
    assert student.grad.isfinite().all()


def test_reads_what_enters_the_classifiers_and_no_label():
    stage = planned()
    assert (stage.name, stage.epochs, stage.learns) == ("mimic", 2, ("student",))
    assert {name: (term.reads, term.weight) for name, term in stage.terms.items()} == {
        "mimic": ((Tap("student", "3", "input"), Tap("teacher", "3", "input")), 1.0)
    }
    assert stage.terms["mimic"].loss is mimic_loss


def test_the_student_takes_exactly_the_teachers_classifier():
    nets = networks()
    stage = planned(nets)
    assert not torch.equal(nets["student"][3].weight, nets["teacher"][3].weight)
    trained(stage, nets)
    assert torch.equal(nets["student"][3].weight, nets["teacher"][3].weight)
    assert torch.equal(nets["student"][3].bias, nets["teacher"][3].bias)


def test_the_classifier_is_there_from_the_first_epoch_on():
    nets = networks()
    stage = planned(nets)
    for _ in run([stage], nets, training_batches(DATA, TRAINING, seed=0, engine=ENGINE), ENGINE):
        assert torch.equal(nets["student"][3].weight, nets["teacher"][3].weight)


def test_with_an_adapter_the_student_gives_the_logits_of_the_adapted_feature():
    """W (A g + a) + b, in one layer."""
    nets = networks(width=5)
    stage = planned(nets, adapter="linear")
    trained(stage, nets)
    inputs = torch.randn(7, 6)
    adapter = stage.terms["mimic"].loss.connector
    student = nets["student"].eval()
    wanted = nets["teacher"][3](adapter(student[:3](inputs)))
    torch.testing.assert_close(student(inputs), wanted, rtol=1e-5, atol=1e-5)
    assert [name for name, _ in student.named_children()] == ["0", "1", "2", "3"]


def test_an_adapter_is_folded_also_where_the_widths_are_equal():
    nets = networks()
    stage = planned(nets, adapter="linear")
    trained(stage, nets)
    adapter = stage.terms["mimic"].loss.connector
    torch.testing.assert_close(nets["student"][3].weight, nets["teacher"][3].weight @ adapter.weight)


def test_the_adapter_learns_with_the_student_and_the_classifier_by_nothing():
    nets = networks(width=5)
    stage = planned(nets, adapter="linear")
    before = stage.terms["mimic"].loss.connector.weight.clone()
    trained(stage, nets)
    assert not torch.equal(before, stage.terms["mimic"].loss.connector.weight)
    assert nets["student"][3].weight.grad is None


def test_a_student_that_equals_the_teachers_feature_ends_with_its_logits():
    nets = networks()
    nets["student"][:3].load_state_dict(nets["teacher"][:3].state_dict())
    planned(nets).finish()
    inputs = torch.randn(5, 6)
    assert torch.equal(nets["student"].eval()(inputs), nets["teacher"].eval()(inputs))


@pytest.mark.parametrize(
    ("bias", "teacher_bias", "adapter"), [(True, False, "none"), (True, False, "linear"), (False, False, "none")]
)
def test_classifiers_without_bias(bias, teacher_bias, adapter):
    nets = networks(bias=bias, teacher_bias=teacher_bias)
    stage = planned(nets, adapter=adapter)
    stage.prepare(SimpleNamespace(epoch=0))
    inputs = torch.randn(7, 6)
    feature = nets["student"].eval()[:3](inputs)
    connector = stage.terms["mimic"].loss.connector if adapter == "linear" else nn.Identity()
    wanted = nets["teacher"][3](connector(feature))
    torch.testing.assert_close(nets["student"](inputs), wanted)


@pytest.mark.parametrize(("teacher_bias", "adapter"), [(True, "none"), (False, "linear")])
def test_a_student_without_a_bias_to_take_over_is_refused(teacher_bias, adapter):
    with pytest.raises(LimbeckError, match="the student's classifier 3 has no bias, but that of the teacher needs one"):
        planned(networks(bias=False, teacher_bias=teacher_bias), adapter=adapter)


def test_unequal_widths_are_refused_and_the_adapter_is_named():
    with pytest.raises(LimbeckError, match=r"has \(5,\), the teacher's .* has \(8,\): .* set adapter: linear"):
        planned(networks(width=5))


def test_reads_the_pooled_vector_of_networks_with_maps():
    data = arrays(torch.rand(12, 3, 16, 16), torch.arange(12) % 4)
    nets = {
        "student": build("resnet8", classes=4, shape=(3, 16, 16)),
        "teacher": build("resnet14", classes=4, shape=(3, 16, 16)),
    }
    (stage,) = plan(mimic, nets, data, TRAINING)
    assert stage.terms["mimic"].reads == (Tap("student", "head", "input"), Tap("teacher", "head", "input"))
