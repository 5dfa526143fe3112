import builtins

import pytest
import torch
from torch import nn

from limbeck.core import LimbeckError
from limbeck.evaluate import macs, parameters
from limbeck.models import build
from limbeck.models.pruning import pruned

pytest.importorskip("torch_pruning")

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def plain(width=40):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten(), nn.Linear(4 * width, 5)
    )


def count(network):
    return macs(network, (3, 6, 6))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("cost", [count, parameters])
def test_the_network_costs_nearly_its_share_and_no_more(share, cost):
    network = plain()
    reached = cost(pruned(network, IMAGES, "4", cost, share)) / cost(network)
    assert share - 0.04 < reached <= share


def test_the_network_is_not_changed_and_gives_the_same_copy_again():
    network = plain()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(5)
    random = torch.get_rng_state()
    one, other = (pruned(network, IMAGES, "4", parameters, 0.5).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(torch.equal(one[name], other[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), random)


def test_the_channels_with_the_smallest_weights_are_removed_and_the_outputs_kept():
    network = plain()
    with torch.no_grad():
        last = network[4].weight.unflatten(1, (-1, 4))
        for part in (network[0].weight[::2], network[2].weight[::2], network[2].weight[:, ::2], last[:, ::2]):
            part *= 1e-3
    made = pruned(network, IMAGES, "4", parameters, 0.25)
    assert made(IMAGES).shape == (2, 5)
    kept = {tuple(row.flatten().tolist()) for row in made[0].weight}
    assert kept <= {tuple(row.flatten().tolist()) for row in network[0].weight[1::2]}


def test_the_importance_is_the_mean_of_the_squared_norms_of_the_layers_relative_to_the_group():
    network = plain(width=6)
    first, second, last = (network[place].weight.detach() for place in (0, 2, 4))
    groups = [[], []]
    for channel in range(6):
        groups[0].append((sum(first[channel].flatten() ** 2) + sum(second[:, channel].flatten() ** 2)) / 2)
        columns = last[:, 4 * channel : 4 * channel + 4]  # flattened 2 x 2 maps
        groups[1].append((sum(second[channel].flatten() ** 2) + sum(columns.flatten() ** 2)) / 2)
    scores = [[float(score) / float(sum(group) / 6) for score in group] for group in groups]
    made = pruned(network, IMAGES, "4", parameters, 0.5)
    kept, removed = [], []
    for place, group in zip((0, 2), scores, strict=True):
        for bias, score in zip(network[place].bias.tolist(), group, strict=True):
            (kept if bias in made[place].bias.tolist() else removed).append(score)
    assert len(kept) > 2
    assert min(kept) > max(removed)


def test_a_layer_keeps_a_tenth_of_its_channels():
    network = plain()
    with torch.no_grad():
        network[2].weight[0] *= 1000  # beside which the others of this layer do not count
    made = pruned(network, IMAGES, "4", parameters, 0.15)
    assert len(made[2].weight) == 4


def test_a_frozen_layer_is_pruned_too():
    network = plain().requires_grad_(False)
    assert parameters(pruned(network, IMAGES, "4", parameters, 0.5)) <= parameters(network) / 2


def test_what_cannot_be_pruned_is_told():
    with pytest.raises(LimbeckError, match=r"got the share 0.0001, the smallest possible is 0\.\d+"):
        pruned(plain(), IMAGES, "4", parameters, 0.0001)
    with pytest.raises(LimbeckError, match="it has no channels that can be removed"):
        pruned(nn.Sequential(nn.Flatten(), nn.Linear(108, 5)), IMAGES, "1", parameters, 0.5)
    shuffled = build("shufflenet_v2", classes=5, shape=(3, 32, 32))
    with pytest.raises(LimbeckError, match=r"torch-pruning does not support it \(.*Error: .*\)"):
        pruned(shuffled, torch.randn(2, 3, 32, 32), "head", parameters, 0.5)


def test_without_torch_pruning_the_extra_is_named(monkeypatch):
    known = builtins.__import__

    def without(name, *arguments, **options):
        if name == "torch_pruning":
            raise ImportError(name)
        return known(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LimbeckError, match=r"torch-pruning is not installed: .* pip install 'limbeck\[prune\]'"):
        pruned(plain(), IMAGES, "4", parameters, 0.5)
