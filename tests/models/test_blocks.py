"""The convolutional networks' wiring and initial weights, against their formulas."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.core import LimbeckError
from limbeck.models import build
from limbeck.models.cifar_resnet import BasicBlock
from limbeck.models.wide_resnet import PreactivationBlock


def normalised(values, norm):
    mean = values.mean((0, 2, 3), keepdim=True)
    variance = values.var((0, 2, 3), correction=0, keepdim=True)
    scaled = (values - mean) / (variance + norm.eps).sqrt()
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


def with_random_norms(block):
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return block.double()


@pytest.mark.parametrize(("inside", "outside", "stride"), [(3, 3, 1), (3, 4, 1), (3, 4, 2)])
def test_basic_block_follows_its_formula(inside, outside, stride):
    block = with_random_norms(BasicBlock(inside, outside, stride))
    inputs = torch.randn(2, inside, 6, 6, dtype=torch.float64)
    features = F.conv2d(inputs, block.conv1.weight, stride=stride, padding=1)
    features = normalised(features, block.norm1).clamp(min=0)
    features = normalised(F.conv2d(features, block.conv2.weight, padding=1), block.norm2)
    shortcut = inputs
    if inside != outside:
        convolved = F.conv2d(inputs, block.shortcut.conv.weight, stride=stride)
        shortcut = normalised(convolved, block.shortcut.norm)
    torch.testing.assert_close(block(inputs), (features + shortcut).clamp(min=0))


@pytest.mark.parametrize(("inside", "outside", "stride"), [(3, 3, 1), (3, 4, 1), (3, 4, 2)])
def test_preactivation_block_follows_its_formula(inside, outside, stride):
    block = with_random_norms(PreactivationBlock(inside, outside, stride=stride, dropout=0.0))
    inputs = torch.randn(2, inside, 6, 6, dtype=torch.float64)
    active = normalised(inputs, block.norm1).clamp(min=0)
    features = F.conv2d(active, block.conv1.weight, stride=stride, padding=1)
    features = normalised(features, block.norm2).clamp(min=0)
    features = F.conv2d(features, block.conv2.weight, padding=1)
    shortcut = inputs if inside == outside else F.conv2d(active, block.shortcut.weight, stride=stride)
    torch.testing.assert_close(block(inputs), features + shortcut)


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2"])
def test_convolutions_start_with_the_variance_of_he(name):
    network = build(name, classes=10, shape=(3, 32, 32))
    weight = network.stage3[0].conv1.weight
    outside, inside = weight.shape[:2]
    assert outside != inside
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * outside)), rel=0.02)


def test_wide_resnet_normalises_and_activates_before_it_pools():
    network = build("wrn_16_1", classes=10, shape=(3, 8, 8))
    assert [name for name, _ in network.named_children()][-4:] == ["norm", "relu", "pool", "head"]
    assert not network.head.bias.any()


def test_wide_resnet_drops_out_inside_its_blocks():
    network = build("wrn_16_1", classes=10, shape=(3, 8, 8), dropout=0.3)
    rates = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.3] * 6


def test_depth_of_a_cifar_resnet_is_its_layers_on_the_longest_path():
    network = build("resnet20", classes=10, shape=(3, 32, 32))
    convolutions = [m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in n]
    assert len(convolutions) + 1 == 20


@pytest.mark.parametrize(("name", "total"), [("convnet_small", 770_378), ("convnet_big", 3_844_938)])
def test_convnets_have_the_count_of_keras_with_running_statistics(name, total):
    network = build(name, classes=10, shape=(3, 32, 32))
    kept = [value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")]
    assert sum(value.numel() for value in kept) == total


def test_convnets_start_with_the_defaults_of_keras():
    network = build("convnet_small", classes=10, shape=(3, 32, 32))
    weight = network.stage2.conv1.weight
    bound = math.sqrt(6 / (9 * 32 + 9 * 64))
    assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert weight.abs().max().item() <= bound
    assert not network.stage2.conv1.bias.any()
    assert not network.head.bias.any()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.01, 1e-3)}
    assert {m.negative_slope for m in network.modules() if isinstance(m, nn.LeakyReLU)} == {0.1}


def test_convnet_stages_are_as_the_demonstration_has_them():
    network = build("convnet_big", classes=10, shape=(3, 32, 32))
    widths = [
        [module.out_channels for module in network.get_submodule(stage) if isinstance(module, nn.Conv2d)]
        for stage in ("stage1", "stage2", "stage3")
    ]
    assert widths == [[64, 64], [128, 128], [256, 256, 256]]
    assert [name for name, _ in network.stage1.named_children()][-2:] == ["pool", "dropout"]
    assert network.stage1.dropout.p == 0.3


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "convnet_small"])
def test_refuses_samples_that_are_not_images(name):
    with pytest.raises(LimbeckError, match=r"shape \(64,\).*needs \(C, H, W\)"):
        build(name, classes=10, shape=(64,))


def test_convnet_refuses_images_that_pool_to_nothing():
    with pytest.raises(LimbeckError, match=r"7x9 pixels.*at least 8x8"):
        build("convnet_small", classes=10, shape=(3, 7, 9))


@pytest.mark.parametrize("name", ["wrn_16_1", "convnet_small"])
def test_refuses_to_drop_everything(name):
    with pytest.raises(LimbeckError, match=r"got dropout 1\.0, allowed is 0 <= dropout < 1"):
        build(name, classes=10, shape=(3, 8, 8), dropout=1.0)
