"""Into which parts a network is divided. That the divided network gives the same is in `test_processes.py`."""

import torch
from torch import nn

from limbeck.models import build
from limbeck.train.shard import division


class Tied(nn.Module):
    """Two layers of one weight, a layer that only lends its weight, and one that does not run."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.second.weight = self.first.weight
        self.lent, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, inputs):
        return self.third(self.second(self.first(inputs))) @ self.lent.weight


def names(network, divided):
    return [name for name, module in network.named_modules() if module in divided]


def test_a_part_has_at_most_an_eighth_of_the_weights_or_is_a_layer():
    network = build("resnet14", classes=3, shape=(3, 8, 8))
    divided = division(network, torch.rand(2, 3, 8, 8), list(network.head.parameters()))
    small, large = ["stem", "stage1", "stage2.0", "stage2.1"], [f"stage3.{one}" for one in ("0.conv1", "0.conv2")]
    assert names(network, divided) == [*small, *large, "stage3.0.shortcut", "stage3.1.conv1", "stage3.1.conv2"]
    matrices = {weight for weight in network.parameters() if weight.dim() > 1} - {network.head.weight}
    assert set().union(*divided.values()) == matrices


def test_weights_that_are_used_elsewhere_stay_whole():
    network = Tied()
    assert names(network, division(network, torch.rand(2, 4))) == ["third"]
