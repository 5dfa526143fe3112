import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from limbeck.core import LimbeckError, Tap
from limbeck.models import build
from limbeck.train.copies import NotCopied, close, copied, read
from limbeck.train.fuse import cast, fold, fuse

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


class InactiveBranch(Net):
    def between(self, x):
        x = self.conv1(x)
        return self.norm1(x) + (x - 50).relu()


class InactiveBranchOnAView(Net):
    def between(self, x):
        x = self.conv1(x)
        return self.norm1(x) + (x[:, 1:2] - 50).relu()


class ChangedInPlaceAfter(Net):
    def between(self, x):
        x = self.conv1(x)
        return self.norm1(x) + x.sub_(50).relu_()


class UsedByTheOtherBranchAlone(Net):
    def between(self, x):
        x = self.conv1(x)
        self.norm1(x)
        return x


class UseThatReachesNoOutput(Net):
    def between(self, x):
        x = self.conv1(x)
        self.kept = (x - 50).relu()
        return self.norm1(x)


class InactiveBranchWithoutGradient(Net):
    def between(self, x):
        x = self.conv1(x)
        return self.norm1(x) + (x.detach() - 50).relu()


class InactiveComparison(Net):
    def between(self, x):
        x = self.conv1(x)
        return self.norm1(x).masked_fill(x > 50, 0)


class ChangedThroughData(Net):
    def between(self, x):
        x = self.conv1(x)
        x.data.clamp_(-1e6, 1e6)
        return self.norm1(x)


class TwoNormsAfterOneLayer(Net):
    def __init__(self):
        super().__init__()
        self.norm3 = trained(nn.BatchNorm2d(4))

    def between(self, x):
        x = self.conv1(x)
        return self.norm1(x) + self.norm3(x)


class NoGradients(Net):
    @torch.no_grad()
    def between(self, x):
        return super().between(x)


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


class Parametrised(Net):
    def __init__(self):
        super().__init__()
        weight_norm(self.conv1)


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


class SecondForwardReplaced(Net):
    def __init__(self):
        super().__init__()
        self.conv2.forward = lambda x: x * 2


class Only32Bits(Net):
    def between(self, x):
        return super().between(x) @ torch.eye(8)


class Random(Net):
    def between(self, x):
        return F.dropout(super().between(x))  # in eval mode too


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

REFUSED = "2 BatchNorm layers could not be folded: the folded network would give other tensors"


def norms(network):
    """The BatchNorm layers that a network has."""
    return [name for name, module in network.named_modules() if isinstance(module, NORM_KINDS)]


def test_folds_every_norm_and_changes_no_tensor_that_is_read():
    network = trained(build("resnet8", classes=4, shape=(3, 8, 8)))
    inputs, before = images(), copy.deepcopy(network.state_dict())
    names, found = [name for name, _ in network.named_modules()], norms(network)
    taps = [Tap("teacher", "stage1"), Tap("teacher", found[0]), Tap("teacher", "stage2", "input")]
    folded, reason = fold(network, inputs, taps)
    assert reason == ""
    assert norms(folded) == []
    assert len(found) == 9
    assert [name for name, _ in folded.named_modules()] == names
    assert {type(folded.get_submodule(name)) for name in found} == {nn.Identity}
    assert same(values(network, inputs, taps), values(folded, inputs, taps))
    assert not any(module.training for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not [module for module in network.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert not [module for module in folded.modules() if module._forward_hooks or module._forward_pre_hooks]


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
    folded, reason = fold(network, inputs, [])
    assert (norms(folded), reason) == ([], "")
    assert same(values(network, inputs), values(folded, inputs), 1e-6)
    assert folded[0].weight.dtype == torch.float32
    assert folded[0].bias.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        (Net, []),
        (Random, []),
        (NormGivenByKeyword, []),
        (UseThatReachesNoOutput, []),
        (RawOutputUsedToo, ["norm1"]),
        (InactiveBranch, ["norm1"]),
        (InactiveBranchOnAView, ["norm1"]),
        (ChangedInPlaceAfter, ["norm1"]),
        (UsedByTheOtherBranchAlone, ["norm1"]),
        (TwoNormsAfterOneLayer, ["norm1", "norm3"]),
        (NoGradients, ["norm1"]),
        (ForwardReplaced, ["norm1"]),
        (ChangedInPlaceBetween, ["norm1"]),
        (SumEntersTheNorm, ["norm1"]),
        (ConvolutionRunsTwice, ["norm1"]),
        (NormRunsTwice, ["norm1"]),
        (OtherNorm, ["norm1"]),
        (OtherConvolution, ["norm1"]),
        (NoStatistics, ["norm1"]),
        (Hooked, ["norm1"]),
        (Parametrised, ["norm1"]),
    ],
)
def test_folds_where_a_norm_alone_uses_the_output_of_a_layer(kind, left):
    network, inputs = kind(), images()
    folded, reason = fold(network, inputs, [])
    assert (norms(folded), reason) == (left, "")
    for samples in (inputs, 1000 * inputs):  # which also reach the branches that are inactive on the few samples
        assert same(values(network, samples), values(folded, samples))


@pytest.mark.parametrize(("name", "count", "left"), [("wrn_16_1", 13, 7), ("wrn_40_1", 37, 19), ("resnet32x4", 34, 0)])
def test_folds_every_norm_of_a_network_that_follows_a_convolution_alone(name, count, left):
    network, inputs = trained(build(name, classes=4, shape=(3, 8, 8))), images()
    folded, reason = fold(network, inputs, [])
    assert (len(norms(network)), len(norms(folded)), reason) == (count, left, "")
    assert same(values(network, inputs), values(folded, inputs), 1e-5)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_folds_the_same_whatever_gradient_mode_is_around_the_call(around):
    with around():
        network, inputs = Net(), images()
        assert norms(fold(network, inputs, [])[0]) == []
    assert norms(fold(network, inputs, [])[0]) == []


@pytest.mark.parametrize(
    "kind",
    [
        NormInAList,
        NormReadByHand,
        SecondForwardReplaced,
        InactiveBranchWithoutGradient,
        InactiveComparison,
        ChangedThroughData,
    ],
)
def test_folds_nothing_where_the_tensors_would_be_others_and_says_so(kind):
    network, inputs = kind(), images()
    folded, reason = fold(network, inputs, [])
    assert (norms(folded), reason) == (["norm1", "norm2"], REFUSED)
    assert folded is not network
    assert torch.equal(values(network, inputs)[Tap("network")], values(folded, inputs)[Tap("network")])


def test_folds_nothing_in_a_network_that_does_not_run_in_64_bits_and_says_so():
    network, inputs = Only32Bits(), images()
    folded, reason = fold(network, inputs, [])
    assert norms(folded) == ["norm1", "norm2"]
    assert reason.startswith("2 BatchNorm layers could not be folded: the network does not run in 64 bits: expected")
    assert same(values(network, inputs), values(folded, inputs))


@pytest.mark.parametrize(
    ("tap", "left"),
    [
        (Tap("teacher", "conv1"), ["norm1"]),
        (Tap("teacher", "norm1", "input"), ["norm1"]),
        (Tap("teacher", "norm1"), []),
        (Tap("teacher", "conv2", "input"), []),
        (Tap("teacher", "act", "input", 0), []),
    ],
)
def test_a_tensor_between_convolution_and_norm_that_is_read_is_kept(tap, left):
    network, inputs = Net(), images()
    folded, reason = fold(network, inputs, [tap])
    assert (norms(folded), reason) == (left, "")
    assert same(values(network, inputs, [tap]), values(folded, inputs, [tap]))


def test_a_tap_on_a_group_that_ends_in_the_convolution_keeps_its_norm():
    network = trained(nn.Sequential(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)))
    folded, reason = fold(network, images(), [Tap("teacher", "0")])
    assert (norms(folded), reason) == (["1"], "")
    assert norms(fold(network, images(), [])[0]) == []


def test_a_weight_that_two_layers_share_is_folded_in_one_alone():
    network = Net()
    network.conv2.weight = nn.Parameter(network.conv1.weight[:, :1].repeat(1, 4, 1, 1))
    network.other = nn.Conv2d(4, 4, 3, bias=False)
    network.other.weight = network.conv2.weight
    folded, _ = fold(network, images(), [])
    assert norms(folded) == []
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
    unfused, reason = fuse(network, inputs, [], precision="32", channels_last=False)
    assert unfused is network
    assert reason.startswith("2 BatchNorm layers could not be folded: a copy of the network ")


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


def test_a_copy_is_in_eval_mode_though_the_networks_own_train_would_not_let_it():
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
    assert seeded == []


def test_folding_for_a_tap_to_nowhere_is_refused():
    with pytest.raises(LimbeckError, match=r"no layer 'norm3': did you mean norm1 or norm2"):
        fold(Net(), images(), [Tap("teacher", "norm3")])


# --- cast


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
    ("network", "count"),
    [
        (lambda: build("resnet8", classes=4, shape=(3, 8, 8)), 10),
        (lambda: build("shufflenet_v2", classes=4, shape=(3, 8, 8)), 57),
        (Attention, 3),
        (Net, 3),
        (Tied, 1),
    ],
)
def test_weights_cast_once_give_the_very_tensors_of_weights_cast_at_each_step(network, count):
    made = trained(network()).eval().requires_grad_(False)
    inputs = images()
    kinds = {name: module for name, module in made.named_modules() if type(module) in (nn.Conv2d, nn.Linear)}
    before = under_autocast(made, inputs, [Tap("teacher", name) for name in kinds])
    assert cast(made, inputs, []) == ""
    after = under_autocast(made, inputs, [Tap("teacher", name) for name in kinds])
    assert len(kinds) == count
    assert all(torch.equal(before[tap], after[tap]) and before[tap].dtype == after[tap].dtype for tap in before)
    low = {f"{name}.{part}" for name, module in kinds.items() for part, _ in module.named_parameters()}
    assert {name for name, value in made.named_parameters() if value.dtype == torch.bfloat16} == low


NOT_CAST = "weights cannot be cast to bfloat16 once, because the network would give other tensors"


def dtypes(network):
    return {parameter.dtype for parameter in network.parameters()}


def test_weights_that_the_network_uses_by_hand_keep_all_in_32_bits_and_it_is_said():
    network, inputs = WeightByHand().eval().requires_grad_(False), images()
    before = under_autocast(network, inputs)
    assert cast(network, inputs, []) == NOT_CAST
    assert dtypes(network) == {torch.float32}
    assert same(before, under_autocast(network, inputs), 0)


def test_weights_stay_in_32_bits_for_the_sake_of_a_tap():
    network, inputs = WeightBeside().eval().requires_grad_(False), images()
    assert cast(copy.deepcopy(network), inputs, []) == ""
    assert cast(network, inputs, [Tap("teacher", "side")]) == NOT_CAST
    assert dtypes(network) == {torch.float32}


# --- fuse


def test_a_fused_network_gives_the_networks_tensors_in_32_bits():
    network, inputs = Net(), images()
    taps = [Tap("teacher", "norm1"), Tap("teacher", "conv2"), Tap("teacher", "head", "input")]
    made, reason = fuse(network, inputs, taps, precision="32", channels_last=True)
    assert (norms(made), reason) == (["norm2"], "")
    assert dtypes(made) == {torch.float32}
    assert made.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert same(values(network, inputs, taps), values(made, inputs, taps))
    assert fuse(network, inputs, taps, precision="32", channels_last=False)[0].conv1.weight.is_contiguous()


def test_a_fused_network_gives_the_networks_tensors_in_bf16():
    network, inputs = Net(), images()
    taps = [Tap("teacher", "norm1"), Tap("teacher", "head", "input")]
    made, reason = fuse(network, inputs, taps, precision="bf16", channels_last=True)
    assert (norms(made), reason) == ([], "")
    assert dtypes(made) == {torch.bfloat16}
    assert made.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    exact, rounded = values(network, inputs, taps), under_autocast(made, inputs, taps)
    assert all((exact[tap] - rounded[tap].float()).norm() < 0.01 * exact[tap].norm() for tap in exact)


def test_both_reasons_are_given_where_neither_change_can_be_made():
    made, reason = fuse(WeightByHand(), images(), [], precision="bf16", channels_last=False)
    assert reason.startswith("2 BatchNorm layers could not be folded: the network does not run in 64 bits: ")
    assert reason.endswith(f"; {NOT_CAST}")
    assert (norms(made), dtypes(made)) == (["norm1", "norm2"], {torch.float32})


def test_a_network_that_cannot_be_copied_is_given_back_as_it_is():
    network = NotToBeCopied()
    made, reason = fuse(network, images(), [], precision="bf16", channels_last=True)
    assert made is network
    why = "the network cannot be copied, because its lock is a lock"
    assert reason.startswith(f"2 BatchNorm layers could not be folded: {why}")
    network.norm1 = network.norm2 = nn.Identity()
    assert fuse(network, images(), [], precision="32", channels_last=False)[1].startswith(why)
    assert dtypes(network) == {torch.float32}
    assert network.conv1.weight.is_contiguous()
