import pytest
import torch
from torch import nn

from limbeck.models import Layer, build, layers


class Pair(nn.Module):
    """Gives two tensors, and owns a layer that never runs."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(3, 1)

    def forward(self, inputs):
        return inputs, inputs


class First(nn.Module):
    def forward(self, inputs):
        return inputs[0]


class Breaks(nn.Module):
    def forward(self, inputs):
        raise RuntimeError("no")


def hooks(network):
    return sum(len(module._forward_hooks) for module in network.modules())


def test_lists_every_module_with_shape_and_parameters():
    found = layers(build("mlp", classes=3, shape=(2, 2), hidden=[5]), (2, 2))
    assert found == [
        Layer("flatten", "Flatten", (4,), 0),
        Layer("stage1", "Sequential", (5,), 25),
        Layer("stage1.linear", "Linear", (5,), 25),
        Layer("stage1.relu", "ReLU", (5,), 0),
        Layer("stage1.dropout", "Dropout", (5,), 0),
        Layer("head", "Linear", (3,), 18),
    ]


def test_shape_is_unknown_where_the_output_is_no_tensor_or_the_module_did_not_run():
    found = layers(nn.Sequential(Pair(), First()), (3,))
    assert [(layer.name, layer.shape) for layer in found] == [("0", None), ("0.unused", None), ("1", (3,))]


def test_leaves_the_network_as_it_was():
    network = build("resnet8", classes=3, shape=(3, 8, 8))
    network.stage1.eval()
    modes = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    layers(network, (3, 8, 8))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert hooks(network) == 0


def test_removes_its_hooks_after_an_error():
    network = nn.Sequential(nn.Linear(3, 3), Breaks())
    with pytest.raises(RuntimeError, match="no"):
        layers(network, (3,))
    assert hooks(network) == 0
    assert network.training


def test_dry_run_has_the_type_of_the_network():
    assert layers(nn.Sequential(nn.Linear(3, 2)).double(), (3,)) == [Layer("0", "Linear", (2,), 8)]
