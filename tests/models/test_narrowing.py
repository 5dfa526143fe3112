import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from limbeck.core import LimbeckError
from limbeck.models import NetworkSpec, build, load_network, save_network
from limbeck.models.narrowing import narrow


def layers(width, middle):
    """Every kind of layer that is narrowed, in a row."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.Conv2d(width, width, 3, groups=width),
        nn.Conv2d(width, 4 * middle, 1, groups=2),
        nn.Flatten(2),
        nn.Conv1d(4 * middle, middle, 1),
        nn.BatchNorm1d(middle, affine=False),
        nn.Flatten(),
        nn.LayerNorm(middle * 36),
        nn.Linear(middle * 36, 5),
    )


def test_every_kind_of_layer_becomes_the_smaller_layer():
    small, large, images = layers(6, 2).eval(), layers(8, 3).eval(), torch.randn(2, 3, 8, 8)
    narrow(large, small.state_dict())
    assert str(large) == str(small)
    large.load_state_dict(small.state_dict())
    assert torch.equal(large(images), small(images))


def test_the_first_channels_are_kept_and_equal_shapes_are_the_same_tensors():
    large = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    weight, last = large[0].weight.detach().clone(), large[1].bias
    narrow(large, nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).state_dict())
    assert torch.equal(large[0].weight, weight[:3])
    assert large[1].bias is last


def test_a_shared_parameter_stays_shared_and_a_frozen_one_frozen():
    large = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    large[1].weight = large[0].weight
    large[0].bias.requires_grad_(False)
    narrow(large, nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).state_dict())
    assert large[1].weight is large[0].weight
    assert not large[0].bias.requires_grad


@pytest.mark.parametrize("shape", [(7, 4), (0, 4), (3,), (3, 4, 1)])
def test_a_tensor_that_is_no_part_is_refused(shape):
    with pytest.raises(LimbeckError, match=r"0.weight has the shape .*, which cannot be cut from \(6, 4\)"):
        narrow(nn.Sequential(nn.Linear(4, 6)), {"0.weight": torch.empty(shape)})


def file_of(tmp_path, **changes):
    """A file of resnet8 without half of the channels inside its first block."""
    network = build("resnet8", classes=5, shape=(3, 8, 8)).eval()
    shapes = network.state_dict()
    block = "stage1.block1" if "stage1.block1.conv1.weight" in shapes else "stage1.0"
    halves = {f"{block}.conv1.weight": (0,), f"{block}.conv2.weight": (1,)}
    halves |= {name: (0,) for name in shapes if name.startswith(f"{block}.norm1.") and shapes[name].dim()}
    for name, (axis,) in halves.items():
        shapes[name] = shapes[name].narrow(axis, 0, 8)
    narrow(network, shapes)
    path = tmp_path / "small.safetensors"
    save_network(network, path, spec=NetworkSpec("resnet8", {}, 5, (3, 8, 8), pruned=True))
    return network, path


def test_a_file_gives_the_pruned_network_again_to_the_bit(tmp_path):
    network, path = file_of(tmp_path)
    again, spec = load_network(path)
    images = torch.randn(4, 3, 8, 8)
    assert spec.pruned
    assert torch.equal(again(images), network(images))
    built = build("resnet8", classes=5, shape=(3, 8, 8))
    assert torch.equal(load_network(path, network=built)[0](images), network(images))
    assert torch.equal(load_network(path, network=built)[0](images), network(images))  # it is narrow already


def altered(path, tensors=(), **spec):
    """The file with other tensors or another description."""
    with safe_open(path, "pt") as opened:
        metadata = json.loads(opened.metadata()["limbeck"])
    save_file({**load_file(path), **dict(tensors)}, path, {"limbeck": json.dumps({**metadata, **spec})})


@pytest.mark.parametrize(
    ("tensors", "spec", "message"),
    [
        ({}, {"pruned": False}, "does not fit the network: .* of another shape"),
        ({"head.weight": torch.zeros(5, 65)}, {}, r"head.weight has the shape \(5, 65\), which cannot be cut from"),
        ({"head.weight": torch.zeros(5, 0)}, {}, r"head.weight has the shape \(5, 0\), which cannot be cut from"),
        ({"more": torch.zeros(1)}, {}, "1 unexpected"),
        ({}, {"pruned": 1}, "pruned: Input should be a valid boolean"),
        ({}, {"name": "wrn_40_2"}, "does not fit"),
    ],
)
def test_a_file_that_is_no_part_of_its_network_is_refused(tmp_path, tensors, spec, message):
    _, path = file_of(tmp_path)
    altered(path, tensors, **spec)
    with pytest.raises(LimbeckError, match=message):
        load_network(path)


def test_a_small_file_does_not_build_a_network_of_any_size(tmp_path):
    path = tmp_path / "small.safetensors"
    spec = NetworkSpec("mlp", {"hidden": [65_000, 65_000]}, 5, (4,), pruned=True)
    save_network(nn.Linear(4, 5), path, spec=spec)
    with pytest.raises(LimbeckError, match="more memory or operations than its file justifies"):
        load_network(path)
