"""Every network of the zoo: its exact size, and what the rest of limbeck relies on."""

import itertools

import pytest
import torch
from torch import nn

from limbeck.models import MODELS, build, layers

IMAGE = (3, 32, 32)
SMALL_IMAGE = (3, 8, 8)

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
    "wrn_16_1": (175_066, 180_916),
    "wrn_16_2": (691_674, 703_284),
    "wrn_16_4": (2_748_890, 2_772_020),
    "wrn_28_4": (5_849_050, 5_872_180),
    "wrn_28_10": (36_479_194, 36_536_884),
    "wrn_40_1": (563_930, 569_780),
    "wrn_40_2": (2_243_546, 2_255_156),
    "wrn_40_4": (8_949_210, 8_972_340),
    "convnet_small": (769_162, 769_162 + 90 * 257),
    "convnet_big": (3_841_610, 3_841_610 + 90 * 513),
}
STAGES = {name: ["stage1", "stage2", "stage3"] for name in COUNTS} | {"mlp": ["stage1", "stage2"]}
LIGHT = [name for name in MODELS if name not in ("wrn_28_10", "wrn_40_4", "wrn_28_4", "resnet32x4", "convnet_big")]


def options(name: str) -> dict[str, object]:
    return {"hidden": [6, 5]} if name == "mlp" else {}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def on_paper(name: str, **arguments: object) -> nn.Module:
    """The network without its memory."""
    with torch.device("meta"):
        return build(name, **arguments)


def test_table_of_counts_names_every_network_of_fixed_size():
    assert {*COUNTS, "mlp"} == set(MODELS)


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


@pytest.mark.parametrize(("depth", "k"), [(16, 1), (16, 2), (16, 4), (28, 4), (28, 10), (40, 1), (40, 2), (40, 4)])
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
    network = build(name, classes=3, shape=(1, 9, 12), **options(name)).eval()
    assert network(torch.randn(2, 1, 9, 12)).shape == (2, 3)


@pytest.mark.parametrize("name", LIGHT)
def test_gradients_reach_every_parameter(name):
    network = build(name, classes=5, shape=SMALL_IMAGE, **options(name))
    network(torch.randn(8, *SMALL_IMAGE)).square().sum().backward()
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None, label
        # a bias before a BatchNorm has no effect, so only weights can be asked for more
        assert parameter.grad.any() or parameter.dim() == 1, label


@pytest.mark.parametrize("name", MODELS)
def test_classifier_is_a_linear_head_whose_input_is_flat(name):
    network = on_paper(name, classes=10, shape=IMAGE, **options(name)).eval()
    head = network.get_submodule("head")
    assert type(head) is nn.Linear
    seen = []
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    network(torch.zeros(2, *IMAGE, device="meta"))
    assert seen == [(2, head.in_features)]


@pytest.mark.parametrize("name", MODELS)
def test_has_stages_that_can_be_tapped_in_order(name):
    network = on_paper(name, classes=10, shape=IMAGE, **options(name))
    assert [child for child, _ in network.named_children() if child.startswith("stage")] == STAGES[name]
    shapes = {layer.name: layer.shape for layer in layers(network, IMAGE)}
    assert all(shapes[stage] is not None for stage in STAGES[name])


@pytest.mark.parametrize("name", LIGHT)
def test_runs_each_module_once_and_overwrites_no_output(name):
    network = build(name, classes=5, shape=SMALL_IMAGE, **options(name))
    outputs, versions = {}, {}

    def keep(module, _, output):
        assert module not in outputs
        outputs[module], versions[module] = output, output._version

    for module in network.modules():
        module.register_forward_hook(keep)
    network(torch.randn(4, *SMALL_IMAGE))
    assert set(outputs) == set(network.modules())
    assert all(outputs[module]._version == versions[module] for module in outputs)


@pytest.mark.parametrize("name", LIGHT)
def test_same_seed_gives_same_weights(name):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build(name, classes=5, shape=SMALL_IMAGE, **options(name)).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
