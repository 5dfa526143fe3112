import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from limbeck.core import LimbeckError
from limbeck.models import build
from limbeck.models.reuse import Projected, Reuse, apply_reuse, find_reuse, projected_classifier, projector

AFTER = Reuse(layer="stage3", side="output", channels=64, outside=96, classifier="head", classes=5)
BEFORE = Reuse(layer="head", side="input", channels=64, outside=96, classifier="head", classes=5, places=False)


def student():
    return build("resnet8", classes=5, shape=(3, 16, 16))


@pytest.mark.parametrize("reuse", [AFTER, BEFORE, replace(AFTER, size=[2, 2]), replace(AFTER, bias=False)])
def test_the_changed_student_maps_to_logits(reuse):
    network = student()
    held = apply_reuse(network, reuse)
    assert isinstance(held, Projected)
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 5)
    assert projected_classifier(network, reuse).in_features == 96


def test_runs_the_layer_then_the_pooling_then_the_projector():
    network = student().eval()
    whole, body = network.stage3, nn.Sequential(*list(network.children())[:3])
    apply_reuse(network, replace(AFTER, size=[2, 1]))
    inputs = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        pooled = nn.functional.adaptive_avg_pool2d(whole(body(inputs)), (2, 1))
        projected = network.stage3.projector(pooled)
        torch.testing.assert_close(network(inputs), network.head(projected.mean((2, 3))))


def test_projects_what_enters_a_layer():
    network = student().eval()
    inputs = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        feature = network[:-1](inputs)
        apply_reuse(network, BEFORE)
        expected = network.head.layer(network.head.projector(feature))
        torch.testing.assert_close(network(inputs), expected)


def test_the_options_are_plain_and_rebuild_the_student():
    network = student().eval()
    reuse = replace(AFTER, size=(2, 2), factor=3, final_relu=False)
    apply_reuse(network, reuse)
    options = json.loads(json.dumps(asdict(find_reuse(network))))
    other = student().eval()
    apply_reuse(other, Reuse(**options))
    other.load_state_dict(network.state_dict())
    inputs = torch.randn(2, 3, 16, 16)
    assert torch.equal(other(inputs), network(inputs))
    assert network.stage3.projector[0].out_channels == 32
    assert isinstance(network.stage3.projector[-1], nn.BatchNorm2d)


def test_an_unchanged_network_has_none():
    assert find_reuse(student()) is None


@pytest.mark.parametrize("training", [True, False])
def test_what_is_new_has_the_students_mode_and_dtype_and_learns(training):
    network = student().double().train(training)
    apply_reuse(network, AFTER)
    assert {module.training for module in network.modules()} == {training}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_all_other_layers_stay():
    network = student()
    before = dict(network.stage1.named_parameters())
    apply_reuse(network, AFTER)
    assert all(parameter is before[name] for name, parameter in network.stage1.named_parameters())


def test_a_layer_inside_a_sequence_can_be_changed():
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    network = nn.Sequential(nn.Sequential(*layers[:2]), *layers[2:])
    apply_reuse(network, Reuse(layer="0.1", side="output", channels=4, outside=8, classifier="3", classes=5))
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    assert [name for name, _ in network.named_children()] == ["0", "1", "2", "3"]


def test_a_narrow_projector_has_a_channel_at_least():
    assert projector(replace(AFTER, outside=2, factor=8))[0].out_channels == 1


@pytest.mark.parametrize("options", [{"layer": "stage9"}, {"classifier": "top"}, {"layer": ""}])
def test_a_layer_that_is_not_there_is_refused(options):
    network = student()
    with pytest.raises(LimbeckError, match=r"the student has no layer '(stage9|top|)' for the teacher's classifier"):
        apply_reuse(network, replace(AFTER, **options))
    assert find_reuse(network) is None
    assert network.head.in_features == 64


def test_a_student_is_changed_once():
    network = student()
    apply_reuse(network, AFTER)
    with pytest.raises(LimbeckError, match="already has a teacher's classifier"):
        apply_reuse(network, AFTER)


def test_a_classifier_that_is_no_linear_layer_is_refused():
    with pytest.raises(LimbeckError, match="the classifier stage1 is a Sequential, needed is a Linear"):
        projected_classifier(student(), replace(AFTER, classifier="stage1"))
