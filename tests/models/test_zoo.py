"""Every network of the zoo: its exact size, and what the rest of limbeck relies on."""

import itertools

import pytest
import torch
from torch import nn

from limbeck.models import MODELS, build, layers
from limbeck.models.mlp import MaxNormLinear

IMAGE = (3, 32, 32)

# (10 classes, 100 classes) for images of 3x32x32
COUNTS = {
    "resnet8": (78_042, 83_892),
    "resnet14": (175_258, 181_108),
    "resnet20": (272_474, 278_324),
    "resnet26": (369_690, 375_540),
    "resnet32": (466_906, 472_756),
    "resnet44": (661_338, 667_188),
    "resnet56": (855_770, 861_620),
    "resnet110": (1_730_714, 1_736_564),
    "resnet8x4": (1_210_410, 1_233_540),
    "resnet32x4": (7_410_730, 7_433_860),
    "fsp_resnet8": (75_296, 81_146),
    "fsp_resnet14": (172_512, 178_362),
    "fsp_resnet26": (366_944, 372_794),
    "fsp_resnet32": (464_160, 470_010),
    "resnet10": (4_903_242, 4_949_412),
    "resnet18": (11_173_962, 11_220_132),
    "resnet34": (21_282_122, 21_328_292),
    "resnet50": (23_520_842, 23_705_252),
    "imagenet_resnet20": (12_362_314, 12_408_484),
    "imagenet_resnet34": (21_289_802, 21_335_972),
    "binary_resnet8": (78_170, 84_020),
    "binary_resnet20": (273_050, 278_900),
    "binary_resnet18": (11_176_906, 11_223_076),
    "wrn_10_10": (7_435_354, 7_493_044),
    "wrn_16_1": (175_066, 180_916),
    "wrn_16_2": (691_674, 703_284),
    "wrn_16_4": (2_748_890, 2_772_020),
    "wrn_16_10": (17_116_634, 17_174_324),
    "wrn_28_4": (5_849_050, 5_872_180),
    "wrn_28_10": (36_479_194, 36_536_884),
    "wrn_40_1": (563_930, 569_780),
    "wrn_40_2": (2_243_546, 2_255_156),
    "wrn_40_4": (8_949_210, 8_972_340),
    "vgg8": (3_918_858, 3_965_028),
    "vgg13": (9_416_010, 9_462_180),
    "mobilenet_v1": (3_217_226, 3_309_476),
    "mobilenet_v2": (2_254_090, 2_369_380),
    "mobilenet_v2_half": (697_546, 812_836),
    "shufflenet_v1": (862_768, 949_258),
    "shufflenet_v2": (1_263_278, 1_355_528),
    "maxout_cifar": (9_046_330, 9_046_330 + 90 * 501),
    "maxout_svhn": (4_930_250, 4_930_250 + 90 * 401),
    "maxout_mnist": (375_034, 375_034 + 90 * 385),
    "fitnet1": (251_194, 251_194 + 90 * 501),
    "fitnet2": (864_122, 864_122 + 90 * 501),
    "fitnet3": (1_506_138, 1_506_138 + 90 * 501),
    "fitnet4": (2_548_602, 2_548_602 + 90 * 501),
    "fitnet_mnist": (32_570, 32_570 + 90 * 193),
    "convnet_small": (769_162, 769_162 + 90 * 257),
    "convnet_big": (3_841_610, 3_841_610 + 90 * 513),
}
FREE = ["mlp", "fitnet_depth"]  # have options that decide their size
OPTIONS = {"mlp": {"hidden": [6, 5]}, "fitnet_depth": {"layers": 9}}
STAGES = {
    **dict.fromkeys(COUNTS, ("stage", 3)),
    **dict.fromkeys(("resnet10", "resnet18", "resnet34", "resnet50"), ("stage", 4)),
    "binary_resnet18": ("stage", 4),
    **dict.fromkeys(("imagenet_resnet20", "imagenet_resnet34"), ("stage", 4)),
    **dict.fromkeys(("vgg8", "vgg13", "mobilenet_v1"), ("stage", 5)),
    **dict.fromkeys(("mobilenet_v2", "mobilenet_v2_half"), ("stage", 7)),
    **dict.fromkeys(("maxout_cifar", "maxout_svhn", "maxout_mnist"), ("layer", 3)),
    "fitnet1": ("layer", 9),
    "fitnet2": ("layer", 9),
    "fitnet3": ("layer", 11),
    "fitnet4": ("layer", 17),
    "fitnet_mnist": ("layer", 6),
    "fitnet_depth": ("layer", 7),
    "mlp": ("stage", 2),
}
LIGHT = [name for name in MODELS if name in FREE or COUNTS[name][0] < 5_000_000]
LEAST = {"maxout_mnist": 16, "fitnet_mnist": 13}  # sides that their convolutions without padding need


def options(name: str) -> dict[str, object]:
    return OPTIONS.get(name, {})


def small_image(name: str) -> tuple[int, int, int]:
    side = LEAST.get(name, 8)
    return (3, side, side)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def on_paper(name: str, **arguments: object) -> nn.Module:
    """The network without its memory."""
    with torch.device("meta"):
        return build(name, **arguments)


def test_table_of_counts_names_every_network_of_fixed_size():
    assert {*COUNTS, *FREE} == set(MODELS)


@pytest.mark.parametrize("name", COUNTS)
def test_has_the_published_number_of_parameters(name):
    found = tuple(parameters(on_paper(name, classes=classes, shape=IMAGE)) for classes in (10, 100))
    assert found == COUNTS[name]


@pytest.mark.parametrize(
    ("hidden", "count"),
    [((1200, 1200), 2_395_210), ((800, 800), 1_276_810), ((300, 300), 328_810), ((30, 30), 24_790), ((), 7_850)],
)
def test_mlp_has_the_published_number_of_parameters(hidden, count):
    assert parameters(on_paper("mlp", classes=10, shape=(1, 28, 28), hidden=hidden)) == count
    widths = (784, *hidden, 10)
    assert count == sum(before * after + after for before, after in itertools.pairwise(widths))


@pytest.mark.parametrize("depth", [8, 14, 20, 26, 32, 44, 56, 110])
@pytest.mark.parametrize("classes", [10, 100])
def test_counts_of_cifar_resnets_follow_from_arithmetic(depth, classes):
    n = (depth - 2) // 6
    stem = 27 * 16
    # 3x3 convolutions over widths 16, 32, 64 in units of 9 * 16 * 16: 2n; 2 + 4(2n - 1); 8 + 16(2n - 1)
    convolutions = 9 * 256 * (42 * n - 10)
    projections = 16 * 32 + 32 * 64
    norms = 2 * (16 + 2 * n * (16 + 32 + 64) + 32 + 64)
    assert COUNTS[f"resnet{depth}"][classes == 100] == stem + convolutions + projections + norms + 65 * classes


@pytest.mark.parametrize("depth", [8, 32])
@pytest.mark.parametrize("classes", [10, 100])
def test_counts_of_wide_cifar_resnets_follow_from_arithmetic(depth, classes):
    n = (depth - 2) // 6
    projections = 32 * 64 + 64 * 128 + 128 * 256
    convolutions = 9 * (projections + (2 * n - 1) * (64**2 + 128**2 + 256**2))
    norms = 2 * (32 + (2 * n + 1) * (64 + 128 + 256))
    expected = 27 * 32 + convolutions + projections + norms + 257 * classes
    assert COUNTS[f"resnet{depth}x4"][classes == 100] == expected


@pytest.mark.parametrize(
    ("depth", "k"), [(10, 10), (16, 1), (16, 2), (16, 4), (16, 10), (28, 4), (28, 10), (40, 1), (40, 2), (40, 4)]
)
@pytest.mark.parametrize("classes", [10, 100])
def test_counts_of_wide_resnets_follow_from_arithmetic(depth, k, classes):
    n = (depth - 4) // 6
    stem = 27 * 16
    # 3x3 convolutions in units of 9 * 16 * 16: k + 2k^2 + 8k^2 where the width changes, (1 + 4 + 16)k^2 elsewhere
    convolutions = 9 * 256 * (k + 10 * k**2 + 21 * k**2 * (2 * n - 1))
    projections = 256 * ((k if k > 1 else 0) + 10 * k**2)
    norms = 32 + 448 * k * n
    expected = stem + convolutions + projections + norms + 64 * k * classes + classes
    assert COUNTS[f"wrn_{depth}_{k}"][classes == 100] == expected


@pytest.mark.parametrize("name", MODELS)
def test_gives_logits_for_its_usual_input(name):
    network = on_paper(name, classes=7, shape=IMAGE, **options(name)).eval()
    assert network(torch.zeros(2, *IMAGE, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", LIGHT)
def test_accepts_other_image_sizes_and_one_channel(name):
    side = LEAST.get(name, 8)
    shape = (1, side + 1, side + 4)
    network = build(name, classes=3, shape=shape, **options(name)).eval()
    assert network(torch.randn(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize("name", LIGHT)
def test_gradients_reach_every_parameter(name):
    network = build(name, classes=5, shape=small_image(name), **options(name))
    network(torch.randn(8, *small_image(name))).square().sum().backward()
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None, label
        # a bias before a BatchNorm has no effect, so only weights can be asked for more
        assert parameter.grad.any() or parameter.dim() == 1, label


@pytest.mark.parametrize("name", MODELS)
def test_classifier_is_a_linear_head_whose_input_is_flat(name):
    network = on_paper(name, classes=10, shape=IMAGE, **options(name)).eval()
    head = network.get_submodule("head")
    assert type(head) in (nn.Linear, MaxNormLinear)
    seen = []
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    network(torch.zeros(2, *IMAGE, device="meta"))
    assert seen == [(2, head.in_features)]


@pytest.mark.parametrize("name", MODELS)
def test_has_stages_that_can_be_tapped_in_order(name):
    network = on_paper(name, classes=10, shape=IMAGE, **options(name))
    kind, count = STAGES[name]
    expected = [f"{kind}{number}" for number in range(1, count + 1)]
    assert [child for child, _ in network.named_children() if child.startswith(("stage", "layer"))] == expected
    shapes = {layer.name: layer.shape for layer in layers(network, IMAGE)}
    assert all(shapes[stage] is not None for stage in expected)


@pytest.mark.parametrize("name", LIGHT)
def test_runs_each_module_once_and_overwrites_no_output(name):
    network = build(name, classes=5, shape=small_image(name), **options(name))
    outputs, versions = {}, {}

    def keep(module, _, output):
        assert module not in outputs
        outputs[module], versions[module] = output, output._version

    for module in network.modules():
        module.register_forward_hook(keep)
    network(torch.randn(4, *small_image(name)))
    assert set(outputs) == set(network.modules())
    assert all(outputs[module]._version == versions[module] for module in outputs)


@pytest.mark.parametrize("name", LIGHT)
def test_same_seed_gives_same_weights(name):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build(name, classes=5, shape=small_image(name), **options(name)).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
