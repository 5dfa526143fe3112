"""Maxout layers and their networks' starts, bounds and refusals."""

import math

import pytest
import torch
from torch import nn

from limbeck.connectors import Maxout
from limbeck.core import LimbeckError
from limbeck.models import build
from limbeck.models.maxout import MaxNormConv2d
from limbeck.models.mlp import MaxNormLinear

CIFAR = (3, 32, 32)
MNIST = (1, 28, 28)


@pytest.mark.parametrize("pieces", [1, 2, 5])
@pytest.mark.parametrize("places", [(), (2, 3)])
def test_maxout_is_the_largest_of_a_channels_pieces(pieces, places):
    inputs = torch.randn(4, 3 * pieces, *places)
    expected = torch.stack(
        [torch.stack([inputs[:, c * pieces + p] for p in range(pieces)]).max(0).values for c in range(3)], 1
    )
    assert torch.equal(Maxout(pieces)(inputs), expected)
    assert str(Maxout(pieces)) == f"Maxout(pieces={pieces})"


def test_maxout_passes_the_gradient_to_the_largest_piece_alone():
    inputs = torch.tensor([[1.0, 3.0, 2.0, -1.0]], requires_grad=True)
    Maxout(2)(inputs).sum().backward()
    assert inputs.grad.tolist() == [[0.0, 1.0, 1.0, 0.0]]


def test_kernels_are_projected_at_the_start_of_a_training_forward():
    layer = MaxNormConv2d(2, 3, 4, padding=1, max_norm=0.9)
    with torch.no_grad():
        layer.weight[0].mul_(100)
        layer.weight[1].mul_(0.01)
    before = layer.weight.detach().clone()
    layer.eval()(torch.zeros(1, 2, 4, 4))
    assert torch.equal(layer.weight, before)
    layer.train()(torch.zeros(1, 2, 4, 4))
    assert layer.weight[0].norm().item() == pytest.approx(0.9, rel=1e-5)
    torch.testing.assert_close(layer.weight[0] / 0.9, before[0] / before[0].norm())
    assert torch.equal(layer.weight[1], before[1])
    assert "max_norm=0.9" in str(layer)


def bounds(network):
    kinds = MaxNormConv2d | MaxNormLinear
    return [module.max_norm for module in network.modules() if isinstance(module, kinds)]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("maxout_cifar", CIFAR, [0.9, 1.9365, 1.9365, 1.9, 1.9365]),
        ("maxout_svhn", CIFAR, [0.9, 1.9365, 1.9365, 1.9, 1.9365]),
        ("maxout_mnist", MNIST, [0.9, 1.9365, 1.9365, 1.9365]),
        ("fitnet1", CIFAR, [0.9] * 9 + [1.9, 1.9365]),
        ("fitnet4", CIFAR, [0.9] * 17 + [1.9, 1.9365]),
        ("fitnet_mnist", MNIST, [0.9] * 2 + [1.9365] * 5),
    ],
)
def test_norms_are_bounded_as_in_the_authors_files_unless_told_not_to(name, shape, expected):
    assert bounds(build(name, classes=10, shape=shape)) == expected
    assert bounds(build(name, classes=10, shape=shape, max_norm=False)) == []


@pytest.mark.parametrize("name", ["fitnet1", "fitnet4"])
def test_all_parameters_of_a_student_start_small_and_uniform(name):
    network = build(name, classes=10, shape=CIFAR)
    for parameter in network.parameters():
        assert 0 < parameter.abs().max() <= 0.005
    weight = network.fc.linear.weight
    assert weight.std().item() == pytest.approx(0.005 / math.sqrt(3), rel=0.02)


def test_biases_of_a_teacher_start_at_zero():
    network = build("maxout_mnist", classes=10, shape=MNIST)
    assert all(parameter.any() == (parameter.dim() > 1) for parameter in network.parameters())
    assert network.layer2.conv.weight.abs().max() <= 0.005


def test_modern_start_keeps_the_second_moment_through_a_maxout():
    network = build("fitnet4", classes=10, shape=CIFAR, init="modern")
    weight = network.layer10.conv.weight
    assert weight.std().item() == pytest.approx(1 / math.sqrt(9 * 80), rel=0.02)
    assert not network.layer10.conv.bias.any()
    linear = nn.Linear(4000, 2000, bias=False)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="linear")
    outputs = Maxout(2)(linear(torch.randn(50, 4000)))
    assert outputs.square().mean().item() == pytest.approx(1, rel=0.05)


def test_teachers_drop_a_fifth_of_the_inputs_and_half_of_every_layer():
    network = build("maxout_cifar", classes=10, shape=(3, 8, 8))
    rates = {name: module.p for name, module in network.named_modules() if isinstance(module, nn.Dropout)}
    layers = ["layer1", "layer2", "layer3", "fc"]
    assert rates == {"input_dropout": 0.2} | {f"{layer}.dropout": 0.5 for layer in layers}
    kept = build("maxout_cifar", classes=10, shape=(3, 8, 8), dropout=0.0, input_dropout=0.0)
    assert not any(isinstance(module, nn.Dropout) for module in kept.modules())


def test_students_do_not_drop():
    network = build("fitnet1", classes=10, shape=(3, 8, 8))
    assert not any(isinstance(module, nn.Dropout) for module in network.modules())


def test_last_pooling_of_a_fitnet_is_the_largest_of_all_places():
    network = build("fitnet1", classes=10, shape=CIFAR).eval()
    seen = {}
    for name in ("layer9", "pool"):
        network.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    network(torch.randn(2, *CIFAR))
    assert torch.equal(seen["pool"], nn.functional.max_pool2d(seen["layer9"], 8).flatten(1))


@pytest.mark.parametrize("name", ["maxout_cifar", "maxout_mnist", "fitnet1", "fitnet_mnist"])
def test_trains_with_bounded_norms(name):
    shape = MNIST if "mnist" in name else (3, 12, 12)
    network = build(name, classes=3, shape=shape, init="modern")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.randn(4, *shape)).square().sum().backward()
        optimizer.step()
    assert all(parameter.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "side", "least"),
    [("maxout_cifar", 7, 8), ("maxout_mnist", 15, 16), ("fitnet_mnist", 12, 13), ("vgg8", 7, 8)],
)
def test_refuses_images_that_leave_no_place(name, side, least):
    with pytest.raises(LimbeckError, match=rf"{side}x20 pixels.*at least {least}x{least}"):
        build(name, classes=3, shape=(1, side, 20))
    network = build(name, classes=3, shape=(1, least, least)).eval()
    assert network(torch.zeros(1, 1, least, least)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("fitnet1", {"fc_pieces": 0}, "got fc_pieces 0, allowed are 1 and more"),
        ("maxout_cifar", {"fc_pieces": 0}, "got fc_pieces 0"),
        ("maxout_svhn", {"fc_pieces": -1}, "got fc_pieces -1"),
        ("maxout_mnist", {"last_pieces": 0}, "got last_pieces 0"),
        ("fitnet_mnist", {"last_pieces": 0}, "got last_pieces 0"),
        ("maxout_cifar", {"dropout": 1.0}, r"got dropout 1\.0"),
        ("maxout_cifar", {"input_dropout": -0.1}, r"got input_dropout -0\.1"),
        ("fitnet1", {"init": "small"}, r"fitnet1\.init: got 'small'.*modern, paper"),
        ("fitnet_depth", {"layers": 6}, r"fitnet_depth\.layers: got 6.*5, 7, 9 or 11"),
        ("fitnet_depth", {"layers": 5, "budget": "60M"}, r"budget: got '60M'.*107M, 30M"),
        ("fitnet_depth", {}, "the key 'layers' is missing"),
        ("resnet18", {"width": 0}, "got width 0, allowed are 1 and more"),
        ("imagenet_resnet34", {"width": 0}, "got width 0"),
        ("fsp_resnet8", {"width": 0}, "got width 0"),
        ("fsp_resnet8", {"shortcut": "pad"}, r"shortcut: got 'pad'.*identity, projection"),
    ],
)
def test_refuses_options_and_names_what_is_allowed(name, given, message):
    with pytest.raises(LimbeckError, match=message):
        build(name, classes=3, shape=CIFAR, **given)
