import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core import LimbeckError, Tap
from limbeck.models import build
from limbeck.train.copies import NotCopied, close, copied, keep, read
from limbeck.train.fuse import fold, lean, low_precision, runs_channels_last

NORM_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def trained(network):
    """The network with statistics and factors that are not those of a fresh one."""
    for module in network.modules():
        if isinstance(module, NORM_KINDS) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        if isinstance(module, NORM_KINDS) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias, std=0.3)
    return network


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
        trained(self)

    def forward(self, x):
        x = self.act(self.norm2(self.conv2(self.act(self.between(x)))))
        return self.head(x.mean(dim=(2, 3)))

    def between(self, x):
        return self.norm1(self.conv1(x))


class RawOutputUsedToo(Net):
    def between(self, x):
        x = self.conv1(x)
        return self.norm1(x) + x


class ChangedInPlaceBetween(Net):
    def between(self, x):
        return self.norm1(self.conv1(x).clamp_(-1e6, 1e6))  # which the few samples do not reach


class SumEntersTheNorm(Net):
    def between(self, x):
        return self.norm1(self.conv1(x) + x[:, :1])


class ConvolutionRunsTwice(Net):
    def between(self, x):
        return self.norm1(self.conv1(x)) + self.conv1(x)


class NormRunsTwice(Net):
    def between(self, x):
        return self.norm1(self.norm1(self.conv1(x)))


class NormInAList(Net):
    def __init__(self):
        super().__init__()
        self.layers = [self.conv1, self.norm1]

    def between(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class NormReadByHand(Net):
    def between(self, x):
        return self.norm1(self.conv1(x)) * self.norm1.weight.mean()


class NormGivenByKeyword(Net):
    def between(self, x):
        return self.norm1(input=self.conv1(x))


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


class OtherNorm(Net):
    def __init__(self):
        super().__init__()
        self.norm1 = trained(OwnNorm(4))


class OwnConvolution(nn.Conv2d):
    pass


class OtherConvolution(Net):
    def __init__(self):
        super().__init__()
        self.conv1 = OwnConvolution(3, 4, 3, padding=1)


class NoStatistics(Net):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(4, track_running_stats=False)


class Hooked(Net):
    def __init__(self):
        super().__init__()
        self.conv1.register_forward_hook(lambda module, args, output: None)


class ForwardReplaced(Net):
    def __init__(self):
        super().__init__()
        self.conv1.forward = lambda x: x[:, :1].expand(-1, 4, -1, -1)


class Only32Bits(Net):
    def between(self, x):
        return super().between(x) @ torch.eye(8)


class Random(Net):
    def between(self, x):
        return F.dropout(super().between(x))  # in eval mode too


class DeadUse(Net):
    """What the few samples do not reach, others would."""

    def between(self, x):
        x = self.conv1(x)
        return self.norm1(x) + F.relu(x - 80)


class DeadMask(Net):
    def between(self, x):
        x = self.conv1(x)
        return self.norm1(x).masked_fill(x > 80, 0)


class Keeping(Net):
    """A hook keeps a tensor in the very network that made it: a copy's hook does so too."""

    def __init__(self):
        super().__init__()
        self.kept = {}
        self.act.register_forward_hook(lambda module, args, output: self.kept.update(x=output))

    def between(self, x):
        self.act(super().between(x))
        return self.kept["x"]


class Stubborn(Net):
    """Dropout stays on, whatever mode is asked for."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def train(self, mode=True):
        super().train(mode)
        self.dropout.train()

    def between(self, x):
        return self.dropout(super().between(x))


class NotToBeCopied(Net):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def values(network, inputs, taps=()):
    return read(network, inputs, taps)


def same(before, after, share=1e-5):
    return all(close(before[tap], after[tap], share) for tap in before)


# --- fold


def test_folds_every_norm_and_changes_no_tensor_that_is_read():
    network = trained(build("resnet8", classes=4, shape=(3, 8, 8)))
    inputs, before = images(), copy.deepcopy(network.state_dict())
    names = [name for name, _ in network.named_modules()]
    norms = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    taps = [Tap("teacher", "stage1"), Tap("teacher", norms[0]), Tap("teacher", "stage2", "input")]
    folded, found = fold(network, inputs, taps)
    assert list(found) == norms
    assert len(norms) == 9
    assert [name for name, _ in folded.named_modules()] == names
    assert {type(folded.get_submodule(name)) for name in norms} == {nn.Identity}
    assert same(values(network, inputs, taps), values(folded, inputs, taps))
    assert not any(module.training for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not [module for module in network.modules() if module._forward_hooks or module._forward_pre_hooks]


@pytest.mark.parametrize(
    ("first", "norm", "shape"),
    [
        (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (3, 7)),
        (nn.Conv2d(4, 6, 3, groups=2, stride=2, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), (4, 7, 7)),
        (nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4, affine=False, eps=0.1), (3, 5, 5)),
        (nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), (2, 4, 4, 4)),
        (nn.Linear(3, 4), nn.BatchNorm1d(4), (3,)),
        (nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, affine=False), (3,)),
    ],
)
def test_folds_whatever_the_dimensions_the_bias_and_the_factors(first, norm, shape):
    network = trained(nn.Sequential(first, norm, nn.ReLU()))
    inputs = torch.randn(3, *shape)
    folded, found = fold(network, inputs, [])
    assert found == ("1",)
    assert same(values(network, inputs), values(folded, inputs), 1e-6)
    assert folded[0].weight.dtype == torch.float32
    assert folded[0].bias.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Net, ("norm1", "norm2")),
        (Random, ("norm1", "norm2")),
        (NormGivenByKeyword, ("norm2",)),
        (RawOutputUsedToo, ("norm2",)),
        (DeadUse, ("norm2",)),
        (DeadMask, ("norm2",)),
        (ChangedInPlaceBetween, ("norm2",)),
        (SumEntersTheNorm, ("norm2",)),
        (ConvolutionRunsTwice, ("norm2",)),
        (NormRunsTwice, ("norm2",)),
        (NormInAList, ("norm2",)),
        (NormReadByHand, ("norm2",)),
        (OtherNorm, ("norm2",)),
        (OtherConvolution, ("norm2",)),
        (NoStatistics, ("norm2",)),
        (Hooked, ("norm2",)),
        (ForwardReplaced, ("norm2",)),
        (Only32Bits, ()),
    ],
)
def test_folds_only_where_it_is_exact(kind, expected):
    network, inputs = kind(), images()
    folded, found = fold(network, inputs, [])
    assert found == expected
    assert same(values(network, inputs), values(folded, inputs))


@pytest.mark.parametrize(
    ("tap", "expected"),
    [
        (Tap("teacher", "conv1"), ("norm2",)),
        (Tap("teacher", "norm1", "input"), ("norm2",)),
        (Tap("teacher", "norm1"), ("norm1", "norm2")),
        (Tap("teacher", "conv2", "input"), ("norm1", "norm2")),
        (Tap("teacher", "act", "input", 0), ("norm1", "norm2")),
    ],
)
def test_a_tensor_between_convolution_and_norm_that_is_read_is_kept(tap, expected):
    network, inputs = Net(), images()
    folded, found = fold(network, inputs, [tap])
    assert found == expected
    assert same(values(network, inputs, [tap]), values(folded, inputs, [tap]))


def test_a_tap_between_them_costs_no_search(monkeypatch):
    runs, forward = [], Net.forward
    monkeypatch.setattr(Net, "forward", lambda self, x: (runs.append(x.dtype), forward(self, x))[1])
    assert fold(Net(), images(), [Tap("teacher", "conv1")])[1] == ("norm2",)
    # The network and its copy, on two lots; then as it was, what follows what, as it is.
    assert runs == [*[torch.float32] * 4, *[torch.float64] * 3]


def test_a_tap_on_a_group_that_ends_in_the_convolution_keeps_its_norm():
    network = trained(nn.Sequential(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)))
    assert fold(network, images(), [Tap("teacher", "0")])[1] == ()
    assert fold(network, images(), [])[1] == ("1",)


def test_a_weight_that_two_layers_share_is_folded_in_one_alone():
    network = Net()
    network.conv2.weight = nn.Parameter(network.conv1.weight[:, :1].repeat(1, 4, 1, 1))
    network.other = nn.Conv2d(4, 4, 3, bias=False)
    network.other.weight = network.conv2.weight
    folded, found = fold(network, images(), [])
    assert found == ("norm1", "norm2")
    assert torch.equal(folded.other.weight, network.other.weight)


def test_folding_draws_no_random_number():
    network, inputs = Random(), images()
    before = torch.get_rng_state()
    fold(network, inputs, [])
    assert torch.equal(torch.get_rng_state(), before)


def test_folding_a_network_that_cannot_be_copied_is_refused():
    with pytest.raises(NotCopied, match=r"cannot be copied, because its lock is a lock: TypeError: cannot pickle"):
        fold(NotToBeCopied(), images(), [])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("ran", [True, False])
def test_a_copy_that_is_not_like_the_network_is_refused(count, ran):
    network, inputs = Keeping().eval(), images(count)
    if ran:
        read(network, inputs, [])  # what the copy then has is right for these samples
    with pytest.raises(NotCopied, match="gives something else than the network" if ran else "does not run: KeyError"):
        fold(network, inputs, [])
    assert lean(network, inputs, [], precision="32", channels_last=False).network is network
    assert runs_channels_last(network, inputs) is False


def test_a_copy_is_compared_by_what_is_tapped_too():
    class Beside(Keeping):
        def __init__(self):
            super().__init__()
            self.side = nn.Identity()

        def forward(self, x):
            self.side(self.between(x))
            return self.head(x[:, :1].mean(dim=(2, 3)).expand(-1, 4))

    network, inputs = Beside().eval(), images()
    read(network, inputs, [])
    assert copied(network, inputs)
    with pytest.raises(NotCopied):
        copied(network, inputs, [Tap("teacher", "side")])


def test_a_copy_rests_though_the_networks_own_train_would_not_let_it():
    network, inputs = Stubborn(), images()
    network.train()
    folded, _ = fold(network, inputs, [])
    assert not any(module.training for module in folded.modules())
    assert same(values(network, inputs), values(folded, inputs))
    assert network.training


def test_no_generator_of_another_device_is_seeded(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.mps, "manual_seed", seeded.append)
    fold(Random(), images(), [])
    runs_channels_last(Dropping(), images(), learns=True)
    assert seeded == []


def test_folding_for_a_tap_to_nowhere_is_refused():
    with pytest.raises(LimbeckError, match=r"no layer 'norm3': did you mean norm2"):
        fold(Net(), images(), [Tap("teacher", "norm3")])


# --- channels_last


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


class ViewedAtRest(Flattened):
    """In eval mode it needs the one layout, and its own `train` keeps it from that mode."""

    def train(self, mode=True):
        super().train()

    def flat(self, x):
        return x.flatten(1) if self.training else x.view(len(x), -1)


def test_channels_last_is_tried_in_the_mode_in_which_networks_rest():
    assert runs_channels_last(ViewedAtRest(), images()) is False


def test_channels_last_is_tried_in_the_mode_that_the_network_learns_in():
    class NeverLearns(ViewedInTraining):
        def train(self, mode=True):
            super().train(False)

    assert runs_channels_last(NeverLearns(), images(), learns=True) is True


def test_trying_channels_last_leaves_no_trace():
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


# --- low precision


def under_autocast(network, inputs, taps=()):
    with torch.autocast("cpu", torch.bfloat16):
        return read(network, inputs, taps)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x):
        return self.head(self.words(x.flatten(1).long().clamp(0, 6)).mean(dim=1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x.flatten(1, 2)).mean(dim=1))


class WeightByHand(Net):
    def forward(self, x):
        x = self.between(x).mean(dim=(2, 3))
        with torch.autocast("cpu", enabled=False):
            return F.linear(x.float(), self.head.weight, self.head.bias)


class WeightBeside(Net):
    """The classifier's weights have a use that the output does not show."""

    def __init__(self):
        super().__init__()
        self.side = nn.Identity()

    def forward(self, x):
        self.side(self.head.weight.float().sum() * x)
        return super().forward(x)


@pytest.mark.parametrize(
    ("network", "cast"),
    [
        (lambda: build("resnet8", classes=4, shape=(3, 8, 8)), 10),
        (lambda: build("shufflenet_v2", classes=4, shape=(3, 8, 8)), 57),
        (Attention, 3),
        (Net, 3),
        (Tied, 1),
    ],
)
def test_weights_cast_once_give_the_very_tensors_of_weights_cast_at_each_step(network, cast):
    made = trained(network()).eval().requires_grad_(False)
    inputs = images()
    kinds = {name: module for name, module in made.named_modules() if type(module) in (nn.Conv2d, nn.Linear)}
    before = under_autocast(made, inputs, [Tap("teacher", name) for name in kinds])
    names = low_precision(made, inputs, [])
    after = under_autocast(made, inputs, [Tap("teacher", name) for name in kinds])
    assert list(names) == list(kinds)
    assert len(names) == cast
    assert all(torch.equal(before[tap], after[tap]) and before[tap].dtype == after[tap].dtype for tap in before)
    low = {f"{name}.{part}" for name, module in kinds.items() for part, _ in module.named_parameters()}
    assert {name for name, value in made.named_parameters() if value.dtype == torch.bfloat16} == low


def test_a_layer_whose_weights_the_network_uses_by_hand_stays_in_32_bits():
    network = WeightByHand().eval().requires_grad_(False)
    inputs = images()
    before = under_autocast(network, inputs)
    assert low_precision(network, inputs, []) == ("conv1", "conv2")
    assert network.head.weight.dtype == torch.float32
    assert same(before, under_autocast(network, inputs), 0)


def test_a_layer_stays_in_32_bits_for_the_sake_of_a_tap():
    network, inputs = WeightBeside().eval().requires_grad_(False), images()
    assert low_precision(copy.deepcopy(network), inputs, []) == ("conv1", "conv2", "head")
    assert low_precision(network, inputs, [Tap("teacher", "side")]) == ("conv1", "conv2")


# --- all together


def test_the_lean_form_gives_the_networks_tensors_in_32_bits():
    network, inputs = Net(), images()
    taps = [Tap("teacher", "norm1"), Tap("teacher", "conv2"), Tap("teacher", "head", "input")]
    made = lean(network, inputs, taps, precision="32", channels_last=True)
    assert (made.folded, made.low, made.reason) == (("norm1",), (), "")
    assert made.network.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert same(values(network, inputs, taps), values(made.network, inputs, taps))
    assert lean(network, inputs, taps, precision="32", channels_last=False).network.conv1.weight.is_contiguous()


def test_the_lean_form_gives_the_networks_tensors_in_bf16():
    network, inputs = Net(), images()
    taps = [Tap("teacher", "norm1"), Tap("teacher", "head", "input")]
    made = lean(network, inputs, taps, precision="bf16", channels_last=True)
    assert made.folded == ("norm1", "norm2")
    assert made.low == ("conv1", "conv2", "head")
    assert made.network.conv1.weight.dtype == torch.bfloat16
    assert made.network.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    exact, rounded = values(network, inputs, taps), under_autocast(made.network, inputs, taps)
    assert all((exact[tap] - rounded[tap].float()).norm() < 0.01 * exact[tap].norm() for tap in exact)


def test_a_network_that_cannot_be_copied_is_given_back_as_it_is():
    network = NotToBeCopied()
    made = lean(network, images(), [], precision="bf16", channels_last=True)
    assert made.network is network
    assert made.reason.startswith("the network cannot be copied")
    assert network.conv1.weight.dtype == torch.float32
    assert network.conv1.weight.is_contiguous()


# --- the comparisons


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.1, 2.0]), True),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.3, 2.0]), False),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.nan]), False),
        (torch.tensor([torch.nan]), torch.tensor([torch.nan]), False),
        (torch.tensor([0.0]), torch.tensor([0.0]), True),
        (torch.tensor([0.0]), torch.tensor([1e-9]), False),
        (torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0]]), False),
        (torch.tensor([1.0]), torch.tensor([1.0]).double(), False),
        (torch.tensor([True]), torch.tensor([False]), False),
        (torch.zeros(0, 3), torch.zeros(0, 3), True),
    ],
)
def test_close_tensors_differ_by_a_share_of_the_greatest_value(one, other, alike):
    assert close(one, other, 0.1) is alike


def test_tensors_of_a_device_without_64_bits_are_compared_elsewhere():
    class Narrow(torch.Tensor):
        def double(self):
            raise TypeError("no float64")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    one, other = (torch.tensor([1.0, value]).as_subclass(Narrow) for value in (2.0, 2.1))
    assert close(one, other, 0.1) is True


@pytest.mark.parametrize("limit", [0, 1, 3, 6, 100])
def test_the_changes_that_are_kept_are_those_that_hold_together(limit):
    chosen: list[int] = []

    def change(number):
        def make():
            chosen.append(number)
            return lambda: chosen.remove(number)

        return make

    def holds():
        if 5 in chosen and limit < 6:
            raise RuntimeError("five")
        return sum(chosen) <= limit

    kept = keep({str(number): change(number) for number in (5, 1, 2, 3)}, holds)
    assert kept == {0: (), 1: ("1",), 3: ("1", "2"), 6: ("5", "1"), 100: ("5", "1", "2", "3")}[limit]
    assert [str(number) for number in chosen] == list(kept)
