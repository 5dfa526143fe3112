"""The counts and sizes that the papers give for their networks, and where a network of ours has another."""

import math

import pytest
import torch
from torch import nn

from limbeck.models import build, layers

CIFAR = (3, 32, 32)
MNIST = (1, 28, 28)


def on_paper(name, *, classes=10, shape=CIFAR, **options):
    """The network without its memory."""
    with torch.device("meta"):
        return build(name, classes=classes, shape=shape, **options)


def parameters(network, *, biases=True):
    return sum(p.numel() for p in network.parameters() if biases or p.dim() > 1)


def outputs(network, shape):
    return {layer.name: layer.shape for layer in layers(network, shape)}


def multiplications(network, shape):
    """Of every weight, as often as it is used: the count of FitNets' scripts."""
    shapes = outputs(network, shape)
    return sum(
        module.weight.numel() * math.prod(shapes[name][1:])
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    )


@pytest.mark.parametrize(
    ("name", "weights", "whole"),
    [
        ("maxout_cifar", 9_044_360, 16_247_830),
        ("maxout_svhn", 4_928_800, 10_461_050),
        ("fitnet1", 249_576, 348_694),
        ("fitnet2", 861_928, 1_057_622),
        ("fitnet3", 1_503_304, 1_699_638),  # the paper's table 5 has ~1.6M, its table 3 ~1.5M
        ("fitnet4", 2_544_712, 2_742_102),
    ],
)
def test_fitnets_count_weights_with_two_pieces_and_their_files_have_five(name, weights, whole):
    assert parameters(on_paper(name), biases=False) == weights
    assert parameters(on_paper(name, fc_pieces=5)) == whole


@pytest.mark.parametrize(
    ("name", "paper", "file"), [("maxout_mnist", 361_066, 418_714), ("fitnet_mnist", 30_130, 36_226)]
)
def test_mnist_fitnets_have_two_pieces_and_their_files_four(name, paper, file):
    assert parameters(on_paper(name, shape=MNIST)) == paper
    assert parameters(on_paper(name, shape=MNIST, last_pieces=4)) == file


@pytest.mark.parametrize(
    ("name", "millions", "digits"),
    [
        ("maxout_cifar", 725.1, 1),
        ("fitnet1", 30, 0),
        ("fitnet2", 108, 0),
        ("fitnet3", 324, 0),  # the paper's table 5 has 392M
        ("fitnet4", 382, 0),
    ],
)
def test_fitnets_have_the_multiplications_of_table_5(name, millions, digits):
    assert round(multiplications(on_paper(name), CIFAR) / 1e6, digits) == millions


@pytest.mark.parametrize(
    ("budget", "depth", "millions", "guided"),
    [
        ("30M", 5, 27.3, (64, 8, 8)),
        ("30M", 7, 29.4, (64, 8, 8)),
        ("30M", 9, 30.0, (32, 8, 8)),
        ("30M", 11, 30.2, (48, 8, 8)),
        ("107M", 5, 101.8, (128, 8, 8)),
        ("107M", 7, 104.7, (80, 8, 8)),
        ("107M", 9, 106.5, (80, 8, 8)),
        ("107M", 11, 108.0, (96, 8, 8)),
    ],
)
def test_study_of_depth_has_the_multiplications_of_table_6(budget, depth, millions, guided):
    network = on_paper("fitnet_depth", layers=depth, budget=budget, fc_pieces=5)
    assert round(multiplications(network, CIFAR) / 1e6, 1) == millions
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == depth
    layer = {5: "layer2", 7: "layer4", 9: "layer5", 11: "layer7"}[depth]
    assert outputs(network, CIFAR)[layer] == guided


@pytest.mark.parametrize(("name", "budget"), [("fitnet1", "30M"), ("fitnet2", "107M")])
def test_study_of_depth_ends_in_fitnet_1_and_2(name, budget):
    longest = on_paper("fitnet_depth", layers=11, budget=budget)
    assert str(longest) == str(on_paper(name))


@pytest.mark.parametrize(
    ("name", "depth", "guided"),
    [
        ("fitnet1", 11, ("layer6", (32, 8, 8))),
        ("fitnet2", 11, ("layer6", (80, 8, 8))),
        ("fitnet3", 13, ("layer8", (80, 8, 8))),
        ("fitnet4", 19, ("layer11", (80, 8, 8))),
    ],
)
def test_fitnets_have_the_layers_and_the_guided_map_of_table_7(name, depth, guided):
    network = on_paper(name)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == depth
    layer, size = guided
    assert outputs(network, CIFAR)[layer] == size


@pytest.mark.parametrize(
    ("name", "shape", "sides", "last"),
    [
        ("maxout_cifar", CIFAR, [33, 16, 15, 7, 9, 5], 192 * 25),
        ("maxout_svhn", CIFAR, [36, 18, 20, 10, 12, 6], 128 * 36),
        ("maxout_mnist", MNIST, [21, 10, 9, 4, 6, 3], 24 * 9),
        ("fitnet_mnist", MNIST, [24, 22, 10, 12, 10, 4, 8, 6, 3], 12 * 9),
    ],
)
def test_maps_of_maxout_networks_have_the_sizes_of_pooling_rounded_up(name, shape, sides, last):
    shapes = outputs(on_paper(name, shape=shape), shape)
    found = [size for layer, size in shapes.items() if layer.endswith((".maxout", ".pool")) and len(size) == 3]
    assert [size[1] for size in found] == sides
    assert all(height == width for _, height, width in found)
    assert shapes["flatten"] == (last,)


@pytest.mark.parametrize(
    ("name", "shape", "hint"),
    [
        ("maxout_cifar", CIFAR, (192, 7, 7)),
        ("maxout_svhn", CIFAR, (128, 10, 10)),
        ("maxout_mnist", MNIST, (48, 4, 4)),
    ],
)
def test_hint_is_the_teachers_second_layer(name, shape, hint):
    assert outputs(on_paper(name, shape=shape), shape)["layer2"] == hint


def test_guided_layer_of_mnist_has_the_size_of_its_hint():
    assert outputs(on_paper("fitnet_mnist", shape=MNIST), MNIST)["layer4"] == (16, 4, 4)


@pytest.mark.parametrize(
    ("name", "identity", "projected"),
    [
        ("fsp_resnet8", 75_290, 78_042),
        ("fsp_resnet14", 172_506, 175_258),
        ("fsp_resnet26", 366_938, 369_690),
        ("fsp_resnet32", 464_154, 466_906),
    ],
)
def test_fsps_networks_have_the_counts_of_both_shortcuts(name, identity, projected):
    assert parameters(on_paper(name, input_norm=False)) == identity
    assert parameters(on_paper(name, input_norm=False, shortcut="projection")) == projected
    assert parameters(on_paper(name)) == identity + 6


@pytest.mark.parametrize(("name", "count"), [("fsp_resnet14", 2_759_076), ("fsp_resnet32", 7_409_316)])
def test_fsps_networks_for_cifar100_have_four_times_the_channels(name, count):
    network = on_paper(name, classes=100, width=4, input_norm=False)
    assert parameters(network) == count
    shapes = outputs(network, CIFAR)
    assert [shapes[f"stage{number}"] for number in (1, 2, 3)] == [(64, 32, 32), (128, 16, 16), (256, 8, 8)]


@pytest.mark.parametrize(("name", "blocks"), [("imagenet_resnet20", [2, 2, 3, 2]), ("imagenet_resnet34", [3, 4, 6, 3])])
def test_fsps_networks_for_cub_have_the_modules_of_the_paper(name, blocks):
    network = on_paper(name, classes=200, shape=(3, 224, 224))
    assert [len(network.get_submodule(f"stage{number}")) for number in (1, 2, 3, 4)] == blocks
    convolutions = [m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in n]
    assert len(convolutions) + 1 == int(name[-2:])
    shapes = outputs(network, (3, 224, 224))
    assert [shapes[f"stage{number}"] for number in (1, 2, 3, 4)] == [
        (64, 56, 56),
        (128, 28, 28),
        (256, 14, 14),
        (512, 7, 7),
    ]


@pytest.mark.parametrize(("name", "count"), [("imagenet_resnet20", 12_459_784), ("imagenet_resnet34", 21_387_272)])
def test_fsps_networks_for_cub_have_the_counts_of_the_docstring(name, count):
    assert parameters(on_paper(name, classes=200)) == count


def test_fsps_teacher_for_cub_has_the_tensors_of_torchvisions_network():
    def shapes(name):
        return [tuple(value.shape) for value in on_paper(name, classes=1000).state_dict().values()]

    assert shapes("imagenet_resnet34") == shapes("torchvision:resnet34")


@pytest.mark.parametrize(
    ("name", "classes", "options", "count"),
    [
        ("resnet18", 10, {"width": 16}, 701_466),  # the paper 0.7M
        ("resnet34", 10, {"width": 16}, 1_334_618),  # the paper 1.4M
        ("resnet10", 100, {}, 4_949_412),
        ("resnet34", 100, {}, 21_328_292),
        ("wrn_10_10", 100, {}, 7_493_044),
        ("wrn_16_10", 100, {}, 17_174_324),
        ("wrn_40_2", 10, {}, 2_243_546),
        ("wrn_40_4", 100, {}, 8_972_340),
        ("mobilenet_v2", 100, {}, 2_369_380),  # the paper 2.37M
        ("mobilenet_v1", 1000, {"shape": (3, 224, 224)}, 4_231_976),
    ],
)
def test_srrls_networks_have_the_counts_of_the_paper(name, classes, options, count):
    assert parameters(on_paper(name, classes=classes, **options)) == count


@pytest.mark.parametrize(
    ("name", "count", "paper"),
    [
        ("resnet10", 320_436, 0.34),
        ("resnet18", 713_076, 0.75),
        ("resnet34", 1_346_228, 1.39),
        ("resnet50", 1_530_356, 1.99),
    ],
)
def test_srrls_thin_resnets_for_cifar100_are_larger_than_ours_of_width_16(name, count, paper):
    assert parameters(on_paper(name, classes=100, width=16)) == count < paper * 1e6


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("resnet18", ("stage4", (512, 4, 4))),
        ("resnet50", ("stage4", (2048, 4, 4))),
        ("vgg8", ("stage5", (512, 4, 4))),
        ("vgg13", ("stage5", (512, 4, 4))),
        ("shufflenet_v1", ("stage3", (960, 4, 4))),
        ("shufflenet_v2", ("last", (1024, 4, 4))),
        ("mobilenet_v2", ("last", (1280, 5, 5))),
        ("mobilenet_v2_half", ("last", (1280, 2, 2))),
        ("fsp_resnet8", ("stage3", (64, 8, 8))),
        ("wrn_10_10", ("relu", (640, 8, 8))),
    ],
)
def test_last_map_before_the_pooling_is_an_activation(name, last):
    layer, size = last
    network = build(name, classes=10, shape=CIFAR).eval()
    seen = []
    network.pool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.get_submodule(layer).register_forward_hook(lambda *given: seen.append(given[-1]))
    network(torch.randn(1, *CIFAR))
    assert seen[0] is seen[1]
    assert seen[0].shape[1:] == size
    assert seen[0].min() >= 0


def test_mobilenet_v1_ends_in_a_map_of_seven_places_each_way():
    shape = (3, 224, 224)
    shapes = outputs(on_paper("mobilenet_v1", classes=1000, shape=shape), shape)
    assert [shapes[f"stage{number}"] for number in range(1, 6)] == [
        (64, 112, 112),
        (128, 56, 56),
        (256, 28, 28),
        (512, 14, 14),
        (1024, 7, 7),
    ]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vgg8", [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)]),
        ("shufflenet_v1", [(240, 16, 16), (480, 8, 8), (960, 4, 4)]),
        ("shufflenet_v2", [(116, 16, 16), (232, 8, 8), (464, 4, 4)]),
        (
            "mobilenet_v2_half",
            [(8, 16, 16), (12, 16, 16), (16, 8, 8), (32, 4, 4), (48, 4, 4), (80, 2, 2), (160, 2, 2)],
        ),
        (
            "mobilenet_v2",
            [(16, 34, 34), (24, 17, 17), (32, 9, 9), (64, 5, 5), (96, 5, 5), (160, 5, 5), (320, 5, 5)],
        ),
    ],
)
def test_stages_have_the_sizes_of_the_authors_networks(name, sizes):
    shapes = outputs(on_paper(name), CIFAR)
    assert [shapes[f"stage{number}"] for number in range(1, len(sizes) + 1)] == sizes


@pytest.mark.parametrize(
    "name", ["vgg13", "resnet50", "mobilenet_v1", "mobilenet_v2_half", "shufflenet_v1", "shufflenet_v2", "fsp_resnet8"]
)
def test_activations_are_modules_that_keep_their_input(name):
    network = on_paper(name)
    activations = [module for module in network.modules() if isinstance(module, nn.ReLU)]
    assert activations
    assert not any(module.inplace for module in activations)
