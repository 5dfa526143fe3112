import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.train.memory_format import runs_channels_last


def images(count=2):
    return torch.randn(count, 3, 8, 8)


class Net(nn.Module):
    """Two convolutions with norms, and a classifier; ``between`` is what a variant does with the first."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.act(self.norm2(self.conv2(self.act(self.between(x)))))
        return self.head(x.mean(dim=(2, 3)))

    def between(self, x):
        return self.norm1(self.conv1(x))


class Only32Bits(Net):
    def between(self, x):
        return super().between(x) @ torch.eye(8)


class Keeping(Net):
    """A hook keeps a tensor in the very network that made it: a copy's hook does so too."""

    def __init__(self):
        super().__init__()
        self.kept = {}
        self.act.register_forward_hook(lambda module, args, output: self.kept.update(x=output))

    def between(self, x):
        self.act(super().between(x))
        return self.kept["x"]


class NotToBeCopied(Net):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Flattened(Net):
    """``flat`` is how a map becomes a row."""

    def __init__(self):
        super().__init__()
        self.row = nn.Linear(4 * 8 * 8, 5)

    def forward(self, x):
        return self.row(self.flat(self.act(self.norm1(self.conv1(x)))))

    def flat(self, x):
        return x.flatten(1)


class Viewed(Flattened):
    def flat(self, x):
        return x.view(len(x), -1)


class ViewedInTraining(Flattened):
    def flat(self, x):
        return x.view(len(x), -1) if self.training else x.flatten(1)


class InMemoryOrder(Flattened):
    def flat(self, x):
        return x.as_strided((len(x), 4 * 8 * 8), (4 * 8 * 8, 1))


class ContiguousIn32Bits(Flattened):
    def flat(self, x):
        return x.view(len(x), -1) if x.dtype == torch.float32 else x.flatten(1)


class GradientInMemoryOrder(Flattened):
    class Flat(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            context.strides = x.shape, x.stride()
            return x.flatten(1)

        @staticmethod
        def backward(context, gradient):
            return gradient.as_strided(*context.strides)

    def flat(self, x):
        return self.Flat.apply(x)


class Dropping(Flattened):
    def flat(self, x):
        return F.dropout(x.flatten(1), training=self.training)


@pytest.mark.parametrize(
    ("kind", "runs", "learns"),
    [
        (Net, True, True),
        (Flattened, True, True),
        (Dropping, True, True),
        (Viewed, False, False),
        (InMemoryOrder, False, False),
        (ContiguousIn32Bits, False, False),
        (ViewedInTraining, True, False),
        (GradientInMemoryOrder, True, False),
        (Only32Bits, False, False),
        (NotToBeCopied, False, False),
    ],
)
def test_channels_last_is_for_networks_that_give_the_same_in_it(kind, runs, learns):
    network, inputs = kind(), images()
    assert runs_channels_last(network, inputs) is runs
    assert runs_channels_last(network, inputs, learns=True) is learns


def test_channels_last_is_for_images_and_convolutions_alone():
    dense = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    assert runs_channels_last(dense, images()) is False
    assert runs_channels_last(nn.Sequential(nn.Conv1d(3, 4, 3)), torch.randn(2, 3, 8)) is False
    assert runs_channels_last(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(3, 8, 8)) is False


def test_channels_last_can_be_asked_of_a_network_with_nothing_to_learn():
    assert runs_channels_last(Net().requires_grad_(False), images(), learns=True)


class ViewedInEvalMode(Flattened):
    """In eval mode it needs the one layout, and its own `train` keeps it from that mode."""

    def train(self, mode=True):
        super().train()

    def flat(self, x):
        return x.flatten(1) if self.training else x.view(len(x), -1)


def test_channels_last_is_checked_in_eval_mode_for_frozen_networks():
    assert runs_channels_last(ViewedInEvalMode(), images()) is False


def test_channels_last_is_checked_in_the_mode_that_the_network_learns_in():
    class NeverLearns(ViewedInTraining):
        def train(self, mode=True):
            super().train(False)

    assert runs_channels_last(NeverLearns(), images(), learns=True) is True


def test_checking_channels_last_leaves_no_trace():
    network, inputs = Dropping(), images()
    network.norm1.eval()
    state, drawn = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    assert runs_channels_last(network, inputs, learns=True)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(parameter.is_contiguous() and parameter.grad is None for parameter in network.parameters())
    assert network.training
    assert not network.norm1.training
    assert inputs.is_contiguous()


@pytest.mark.parametrize("ran", [True, False])
def test_a_network_whose_copy_is_not_like_it_does_not_run_in_channels_last(ran):
    network, inputs = Keeping().eval(), images()
    if ran:
        network(inputs)
    assert runs_channels_last(network, inputs) is False
