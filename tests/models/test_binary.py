"""The binary ResNets, against their formulas, and what other parts of limbeck do with them."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.core import LimbeckError
from limbeck.exports.parity import LIMITS, limit_of
from limbeck.exports.sharing import layers_of
from limbeck.models import NetworkSpec, build, load_weights, save_network
from limbeck.models.binary import BinaryBlock, BinaryConv2d, Sign, sign
from limbeck.models.net2net import net2net

SHAPE = (3, 8, 8)


def network(kernels="binary"):
    torch.manual_seed(0)
    return build("binary_resnet8", classes=4, shape=SHAPE, kernels=kernels)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_sign_of_zero_is_one_and_the_gradient_passes_up_to_one(dtype):
    above = 1 + torch.finfo(dtype).eps
    inputs = torch.tensor([-above, -1.0, -0.2, -0.0, 0.0, 0.2, 1.0, above], dtype=dtype, requires_grad=True)
    outputs = sign(inputs)
    assert outputs.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    (gradient,) = torch.autograd.grad(outputs, inputs, torch.arange(1, 9).to(dtype))
    assert gradient.tolist() == [0, 2, 3, 4, 5, 6, 7, 0]


@pytest.fixture
def conv():
    made = BinaryConv2d(2, 3, 3, stride=2, padding=1, bias=False).double()
    nn.init.normal_(made.weight)  # some weights are above 1
    return made


def test_binary_convolution_is_alpha_times_the_sums_of_signs(conv):
    inputs = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    outputs, padded = conv(inputs), F.pad(inputs, (1, 1, 1, 1))
    for channel, weight in enumerate(conv.weight.detach()):
        alpha = sum(abs(value) for value in weight.flatten().tolist()) / 18
        for row in range(2):
            for column in range(2):
                patch = padded[0, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
                terms = zip(patch.flatten().tolist(), weight.flatten().tolist(), strict=True)
                total = sum(value if one >= 0 else -value for value, one in terms)
                assert outputs[0, channel, row, column].item() == pytest.approx(alpha * total)


def test_gradient_of_the_weight_is_that_of_sign_plus_that_of_alpha(conv):
    inputs = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    binary = conv.weight.abs().mean((1, 2, 3), keepdim=True) * sign(conv.weight)
    binary = binary.detach().requires_grad_()
    (of_binary,) = torch.autograd.grad(F.conv2d(inputs, binary, stride=2, padding=1).square().sum(), binary)
    (found,) = torch.autograd.grad(conv(inputs).square().sum(), conv.weight)
    for weight, gradient, result in zip(conv.weight.tolist(), of_binary.tolist(), found.tolist(), strict=True):
        weights, gradients = torch.tensor(weight).flatten().tolist(), torch.tensor(gradient).flatten().tolist()
        signs = [1 if one >= 0 else -1 for one in weights]
        alpha = sum(map(abs, weights)) / 18
        of_alpha = sum(one * other for one, other in zip(gradients, signs, strict=True))
        expected = [
            of_alpha * own / 18 + (alpha * one if abs(value) <= 1 else 0)
            for value, own, one in zip(weights, signs, gradients, strict=True)
        ]
        assert torch.tensor(result).flatten().tolist() == pytest.approx(expected)


def test_gradient_of_a_binary_convolution_with_respect_to_its_input(conv):
    assert torch.autograd.gradcheck(conv, torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("kernels", ["binary", "real"])
@pytest.mark.parametrize(("outside", "stride"), [(3, 1), (4, 2)])
def test_binary_block_follows_its_formula(outside, stride, kernels):
    block = BinaryBlock(3, outside, stride, kernels=kernels).double()
    inputs = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    features = inputs
    for number, step in ((1, stride), (2, 1)):
        conv, prelu = block.get_submodule(f"conv{number}"), block.get_submodule(f"prelu{number}")
        weight = conv.weight.detach()
        if kernels == "binary":
            weight = weight.abs().mean((1, 2, 3), keepdim=True) * weight.sign()
        mean, variance = features.mean((0, 2, 3), keepdim=True), features.var((0, 2, 3), correction=0, keepdim=True)
        signs = ((features - mean) / (variance + 1e-5).sqrt()).sign()
        convolved = F.conv2d(signs, weight, stride=step, padding=1)
        active = torch.where(convolved > 0, convolved, prelu.weight[:, None, None] * convolved)
        features = active + (block.shortcut(inputs) if number == 1 else features)
    torch.testing.assert_close(block(inputs), features)


def test_stem_shortcuts_and_head_are_real():
    binary = {name for name, module in network().named_modules() if isinstance(module, BinaryConv2d)}
    assert binary == {f"stage{stage}.0.conv{number}" for stage in (1, 2, 3) for number in (1, 2)}
    real = network("real")
    assert not any(isinstance(module, BinaryConv2d) for module in real.modules())
    assert sum(isinstance(module, Sign) for module in real.modules()) == 6


def test_weights_of_the_first_step_initialise_the_second(tmp_path):
    first, second = network("real"), build("binary_resnet8", classes=4, shape=SHAPE)
    spec = NetworkSpec("binary_resnet8", {"kernels": "real"}, 4, SHAPE)
    save_network(first, tmp_path / "first.safetensors", spec=spec)
    load_weights(second, tmp_path / "first.safetensors")
    assert all(torch.equal(one, second.state_dict()[name]) for name, one in first.state_dict().items())


def test_compressing_and_widening_refuse_signs():
    with pytest.raises(LimbeckError, match=r"stage1\.0\.conv1 is binary and cannot be compressed"):
        layers_of(network())
    assert "stage1.0.conv1" in layers_of(network("real"))
    with pytest.raises(LimbeckError, match=r"net2net does not support sign in stage1\.0\.sign1"):
        net2net(network(), build("binary_resnet20", classes=4, shape=SHAPE), torch.randn(4, *SHAPE))


def test_files_of_binary_networks_are_compared_by_their_decisions():
    limit = limit_of(network(), "fp32")
    assert (limit.difference, limit.agreement) == (math.inf, 0.99)
    assert limit_of(build("resnet8", classes=4, shape=SHAPE), "fp32") == LIMITS["fp32"]
