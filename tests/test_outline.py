import pytest
import torch
from torch import nn

from limbeck.core import Batch, LimbeckError, Tap
from limbeck.models import Ensemble, build
from limbeck.outline import outline
from limbeck.taps import dry_run


def batch(shape):
    return Batch(torch.randn(2, *shape), torch.zeros(2, dtype=torch.int64), torch.arange(2), 0)


def of(name, shape=(3, 32, 32), **options):
    network = build(name, classes=7, shape=shape, **options)
    return network, outline("student", network, batch(shape))


@pytest.mark.parametrize(
    ("name", "shape", "lasts", "classifier", "pools"),
    [
        ("resnet8", (3, 32, 32), ["stage1", "stage2", "stage3"], "head", True),
        ("wrn_16_1", (3, 32, 32), ["stage1", "stage2", "relu"], "head", True),
        (
            "convnet_small",
            (3, 32, 32),
            ["stage1.activation1", "stage2.activation1", "stage3.activation2"],
            "head",
            False,
        ),
        ("timm:resnet18", (3, 64, 64), ["layer1", "layer2", "layer3", "layer4"], "fc", True),
        ("torchvision:resnet18", (3, 64, 64), ["layer1", "layer2", "layer3", "layer4"], "fc", True),
        (
            "timm:mobilenetv3_small_050",
            (3, 64, 64),
            ["blocks.0", "blocks.1", "blocks.3", "blocks.4"],
            "classifier",
            False,
        ),
    ],
)
def test_finds_the_sections_and_the_classifier(name, shape, lasts, classifier, pools):
    _, found = of(name, shape)
    assert [section.last.layer for section in found.sections] == lasts
    assert (found.classifier, found.feature, found.pools) == (classifier, Tap("student", classifier, "input"), pools)
    assert found.hidden == ()


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_every_tap_of_the_outline_can_be_read(name):
    network, found = of(name, (3, 64, 64))
    taps = [tap for section in found.sections for tap in (section.first, section.last, section.pre_activation)]
    values = dry_run({"student": network}, [*taps, found.stem, found.feature], batch((3, 64, 64)))
    for section in found.sections:
        assert torch.equal(values[section.pre_activation].relu(), values[section.last])
        assert values[section.first].shape == values[section.last].shape
        assert isinstance(network.get_submodule(section.norm), nn.BatchNorm2d)
        assert "downsample" not in section.norm


def test_a_relu_that_a_block_runs_twice_is_read_at_its_second_run():
    _, found = of("torchvision:resnet18", (3, 64, 64))
    assert found.sections[0].pre_activation == Tap("student", "layer1.1.relu", "input", 1)


def test_before_the_activation_of_a_network_that_begins_its_blocks_with_it():
    _, found = of("wrn_16_1")
    assert [section.pre_activation for section in found.sections] == [
        Tap("student", "stage2.0.norm1"),
        Tap("student", "stage3.0.norm1"),
        Tap("student", "relu", "input"),
    ]
    assert [section.norm for section in found.sections] == ["stage2.0.norm1", "stage3.0.norm1", "norm"]


def test_the_stem_is_what_enters_the_first_block():
    network, found = of("resnet14")
    values = dry_run({"student": network}, [found.stem, Tap("student", "stem")], batch((3, 32, 32)))
    assert found.stem == Tap("student", "stage1.0", "input")
    assert torch.equal(values[found.stem], values[Tap("student", "stem")])


def test_a_transformer_has_token_blocks_and_no_maps():
    _, found = of("timm:vit_tiny_patch16_224", (3, 224, 224))
    assert (found.sections, found.stem, found.pools) == ((), None, False)
    assert [tap.layer for tap in found.hidden] == [f"blocks.{index}" for index in range(12)]


def test_a_perceptron_has_hidden_layers_and_no_maps():
    _, found = of("mlp", (1, 4, 4), hidden=[5, 6])
    assert [tap.layer for tap in found.hidden] == ["stage1.relu", "stage2.relu"]


def test_the_network_is_as_it_was():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 7)
    )
    before = {key: value.clone() for key, value in network.state_dict().items()}
    outline("student", network.train(), batch((3, 4, 4)))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert network.training
    assert network[2].inplace is True
    assert all(not module._forward_hooks for module in network.modules())


def test_an_ensemble_has_no_one_classifier():
    members = [build("mlp", classes=7, shape=(1, 4, 4), hidden=[5]) for _ in range(2)]
    with pytest.raises(LimbeckError, match=r"the teacher has no linear layer whose output is its logits"):
        outline("teacher", Ensemble(members, "arithmetic"), batch((1, 4, 4)))


@pytest.mark.parametrize(
    ("name", "activated"), [("resnet8", [True] * 3), ("wrn_16_1", [False, False, True]), ("vgg8", None)]
)
def test_says_whether_a_map_comes_from_an_activation(name, activated):
    network, found = of(name)
    values = dry_run({"student": network}, [section.last for section in found.sections], batch((3, 32, 32)))
    said = [bool(section.activation) for section in found.sections]
    assert said == [bool((values[section.last] >= 0).all()) for section in found.sections]
    assert activated is None or said == activated


class Overwriting(nn.Module):
    """Its stem is overwritten by a function, which no hook can prevent."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 7)

    def forward(self, inputs):
        return self.head(self.pool(self.body(torch.relu_(self.stem(inputs)))).flatten(1))


def test_what_is_overwritten_is_not_chosen():
    network = Overwriting()
    found = outline("student", network, batch((3, 8, 8)))
    taps = [tap for section in found.sections for tap in (section.first, section.last)]
    values = dry_run({"student": network}, [*taps, found.stem, found.feature], batch((3, 8, 8)))
    assert len(values) >= 3
    assert "stem" not in {tap.layer for tap in values}
