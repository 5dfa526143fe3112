"""The convolutional networks' wiring and initial weights, against their formulas."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.core import Batch, LimbeckError, Tap
from limbeck.models import build
from limbeck.models.cifar_resnet import BasicBlock, PaddedIdentity
from limbeck.models.mobilenet import InvertedResidual
from limbeck.models.resnet import Bottleneck
from limbeck.models.shufflenet import DownBlock, GroupedBlock, SplitBlock
from limbeck.models.wide_resnet import PreactivationBlock
from limbeck.train.engine import Engine
from limbeck.train.readers import network_reader


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


@pytest.mark.parametrize(
    ("inside", "outside", "stride", "side"), [(3, 5, 2, 6), (3, 5, 2, 7), (4, 4, 2, 5), (2, 3, 1, 4)]
)
def test_padded_identity_has_every_place_of_the_stride_and_zeros(inside, outside, stride, side):
    inputs = torch.randn(2, inside, side, side)
    output = PaddedIdentity(inside, outside, stride)(inputs)
    assert output.shape[1] == outside
    assert torch.equal(output[:, :inside], inputs[:, :, ::stride, ::stride])
    assert not output[:, inside:].any()


def test_basic_block_adds_the_padded_identity():
    block = with_random_norms(BasicBlock(3, 4, 2, PaddedIdentity))
    inputs = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    features = F.conv2d(inputs, block.conv1.weight, stride=2, padding=1)
    features = normalised(features, block.norm1).clamp(min=0)
    features = normalised(F.conv2d(features, block.conv2.weight, padding=1), block.norm2)
    features[:, :3] += inputs[:, :, ::2, ::2]
    torch.testing.assert_close(block(inputs), features.clamp(min=0))


@pytest.mark.parametrize(("inside", "outside", "stride"), [(8, 8, 1), (4, 8, 1), (4, 8, 2)])
def test_bottleneck_follows_its_formula(inside, outside, stride):
    block = with_random_norms(Bottleneck(inside, outside, stride))
    inputs = torch.randn(2, inside, 6, 6, dtype=torch.float64)
    features = normalised(F.conv2d(inputs, block.conv1.weight), block.norm1).clamp(min=0)
    features = normalised(F.conv2d(features, block.conv2.weight, stride=stride, padding=1), block.norm2).clamp(min=0)
    features = normalised(F.conv2d(features, block.conv3.weight), block.norm3)
    shortcut = inputs
    if inside != outside:
        shortcut = normalised(F.conv2d(inputs, block.shortcut.conv.weight, stride=stride), block.shortcut.norm)
    assert block.conv2.in_channels == outside // 4
    torch.testing.assert_close(block(inputs), (features + shortcut).clamp(min=0))


@pytest.mark.parametrize(("inside", "outside", "stride"), [(4, 4, 1), (4, 6, 1), (4, 4, 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_inverted_residual_follows_its_formula(inside, outside, stride, bias):
    block = InvertedResidual(inside, outside, stride=stride, expansion=3, bias=bias, activation=nn.ReLU6)
    block = with_random_norms(block)
    inputs = torch.randn(2, inside, 6, 6, dtype=torch.float64)
    features = normalised(F.conv2d(inputs, block.conv1.weight, block.conv1.bias), block.norm1).clamp(0, 6)
    features = F.conv2d(features, block.conv2.weight, block.conv2.bias, stride, padding=1, groups=3 * inside)
    features = normalised(features, block.norm2).clamp(0, 6)
    features = normalised(F.conv2d(features, block.conv3.weight, block.conv3.bias), block.norm3)
    expected = inputs + features if (inside, stride) == (outside, 1) else features
    torch.testing.assert_close(block(inputs), expected)


@pytest.mark.parametrize(("inside", "outside", "stride"), [(24, 48, 2), (36, 72, 2), (48, 48, 1)])
def test_grouped_block_follows_its_formula(inside, outside, stride):
    block = with_random_norms(GroupedBlock(inside, outside, stride=stride, groups=3))
    inputs = torch.randn(2, inside, 6, 6, dtype=torch.float64)
    groups = 1 if inside == 24 else 3  # behind the stem
    features = normalised(F.conv2d(inputs, block.conv1.weight, groups=groups), block.norm1).clamp(min=0)
    features = features.view(2, groups, -1, 6, 6).transpose(1, 2).reshape(features.shape)
    features = F.conv2d(features, block.conv2.weight, stride=stride, padding=1, groups=features.shape[1])
    features = normalised(features, block.norm2).clamp(min=0)
    features = normalised(F.conv2d(features, block.conv3.weight, groups=3), block.norm3)
    pooled = F.avg_pool2d(inputs, 3, 2, padding=1)
    expected = torch.cat([features, pooled], 1) if stride == 2 else features + inputs
    assert expected.shape[1] == outside
    torch.testing.assert_close(block(inputs), expected.clamp(min=0))


def convolved(inputs, branch, stride):
    features = normalised(F.conv2d(inputs, branch.conv1.weight), branch.norm1).clamp(min=0)
    features = F.conv2d(features, branch.conv2.weight, stride=stride, padding=1, groups=features.shape[1])
    features = F.conv2d(normalised(features, branch.norm2), branch.conv3.weight)
    return normalised(features, branch.norm3).clamp(min=0)


def interleaved(first, second):
    return torch.stack([first, second], 2).flatten(1, 2)


def test_split_block_convolves_the_second_half():
    block = with_random_norms(SplitBlock(8))
    inputs = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    expected = interleaved(inputs[:, :4], convolved(inputs[:, 4:], block.branch, 1))
    torch.testing.assert_close(block(inputs), expected)


def test_down_block_follows_its_formula():
    block = with_random_norms(DownBlock(4, 12))
    inputs = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    first = block.branch1
    left = normalised(F.conv2d(inputs, first.conv1.weight, stride=2, padding=1, groups=4), first.norm1)
    left = normalised(F.conv2d(left, first.conv2.weight), first.norm2).clamp(min=0)
    torch.testing.assert_close(block(inputs), interleaved(left, convolved(inputs, block.branch2, 2)))


def test_input_can_be_normalised_before_the_stem():
    network = build("fsp_resnet8", classes=10, shape=(3, 8, 8))
    assert [name for name, _ in network.named_children()][:2] == ["input_norm", "stem"]
    assert "input_norm" not in dict(build("fsp_resnet8", classes=2, shape=(3, 8, 8), input_norm=False).named_children())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fsp_resnet8", {"shortcut": "pad"}, "fsp_resnet8.shortcut: got 'pad': allowed are identity, projection"),
        ("imagenet_resnet20", {"shortcut": "pad"}, "shortcut: got 'pad': allowed are identity, projection"),
        ("fitnet_depth", {"layers": 6}, "fitnet_depth.layers: got 6: it must be 5, 7, 9 or 11"),
        ("fitnet_depth", {"layers": 5, "budget": "1M"}, "fitnet_depth.budget: got '1M'"),
        ("maxout_mnist", {"init": "small"}, "maxout_mnist.init: got 'small': allowed are modern, paper"),
    ],
)
def test_what_a_network_does_not_know_is_refused(name, options, message):
    with pytest.raises(LimbeckError, match=message):
        build(name, classes=2, shape=(3, 32, 32), **options)


@pytest.mark.parametrize("name", ["vgg8", "mobilenet_v2_half"])
def test_benchmarks_classifiers_start_small(name):
    head = build(name, classes=200, shape=(3, 32, 32)).head
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not head.bias.any()


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


@pytest.mark.parametrize("active", [False, True])
def test_dropout_of_the_demonstrations_teacher_can_stay_active(active):
    network = build("convnet_big", classes=10, shape=(3, 8, 8), dropout_in_eval=active).eval()
    inputs = torch.randn(4, 3, 8, 8)
    taps = (Tap("teacher"),)
    reader, note = network_reader(network, taps, inputs, Engine(torch.device("cpu"), "32", ""))
    assert note == ""
    batch = Batch(inputs, torch.zeros(4), torch.arange(4), 0)
    one, other = (reader(batch)[taps[0]] for _ in range(2))
    assert torch.equal(one, other) is not active


@pytest.mark.parametrize(
    "name", ["resnet8", "wrn_16_1", "convnet_small", "vgg8", "mobilenet_v1", "shufflenet_v2", "fitnet1"]
)
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
