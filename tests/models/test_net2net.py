from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn

from limbeck.connectors import Maxout
from limbeck.core import LimbeckError
from limbeck.models import build
from limbeck.models.cifar_resnet import BasicBlock, cifar_resnet
from limbeck.models.net2net import deepened, net2net, replicated, widened
from limbeck.models.parts import named
from limbeck.models.wide_resnet import wide_resnet

SHAPE = (3, 16, 16)


def make(name, **options):
    return partial(build, name, classes=4, shape=SHAPE, **options)


def mlp(*hidden, **options):
    return make("mlp", hidden=list(hidden), **options)


def resnet(depth, *widths, **options):
    return partial(cifar_resnet, depth=depth, widths=widths, classes=4, shape=SHAPE, **options)


def wrn(depth, factor):
    return partial(wide_resnet, depth=depth, factor=factor, classes=4, shape=SHAPE)


def images(count=8, seed=5):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def trained(factory, seed=1):
    """A network after a few steps, with statistics and biases that are not as they were made; in eval mode."""
    torch.manual_seed(seed)
    network = factory()
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    for step in range(4):
        loss = nn.functional.cross_entropy(network(images(seed=step) * 2 + 0.5), torch.arange(8) % 4)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return network.eval()


def fresh(factory, seed=2):
    torch.manual_seed(seed)
    return factory().eval()


def apart(one, other, inputs):
    with torch.no_grad():
        return (one(inputs) - other(inputs)).abs().max().item()


def copy(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


PAIRS = {
    "mlp, wider": (mlp(8, 6), mlp(11, 20)),
    "mlp, deeper": (mlp(8), mlp(8, 8, 8)),
    "mlp, both": (mlp(8), mlp(12, 9, 17)),
    "resnet, wider": (make("resnet8"), resnet(8, 24, 24, 40, 100)),
    "resnet, to a stage that projects": (make("resnet8"), make("resnet8x4")),
    "resnet, deeper": (make("resnet8"), make("resnet14")),
    "resnet, both": (resnet(8, 4, 4, 8, 16), resnet(20, 6, 6, 9, 16)),
    "fsp_resnet, both": (make("fsp_resnet8"), make("fsp_resnet14", width=2)),
    "fsp_resnet, to normalised input": (make("fsp_resnet8", input_norm=False), make("fsp_resnet8")),
    "wrn, wider": (wrn(10, 2), wrn(10, 3)),
    "wrn, deeper": (wrn(10, 1), wrn(22, 1)),
    "wrn, both": (wrn(10, 2), wrn(16, 3)),
    "vgg, deeper": (make("vgg8"), make("vgg13")),
    "resnet10 of four stages, both": (make("resnet10", width=8), make("resnet18", width=12)),
    "maxout, wider": (
        make("fitnet_depth", layers=5, init="modern"),
        make("fitnet_depth", layers=5, budget="107M", init="modern"),
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_large_network_gives_what_the_small_one_gives(pair):
    small, large = trained(PAIRS[pair][0]), fresh(PAIRS[pair][1])
    held = images(seed=77)  # not those that it was made on
    before = copy(small)
    assert apart(small, large, held) > 1e-2
    net2net(small, large, images())
    assert apart(small, large, held) < 1e-5
    assert same(copy(small), before)


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if "maxout" not in pair])
def test_so_it_does_in_training_mode_on_the_batch_it_was_made_on(pair):
    small, large = trained(PAIRS[pair][0]), fresh(PAIRS[pair][1])
    net2net(small, large, images())
    assert apart(small.train(), large.train(), images()) < 1e-5


def test_every_network_learns_at_once():
    small, large = trained(make("resnet8")), fresh(resnet(14, 20, 20, 36, 70))
    net2net(small, large, images())
    large.train()
    optimizer = torch.optim.SGD(large.parameters(), 0.05)
    before = copy(large)
    for step in range(2):  # in the first, gradients reach an inserted branch's last norm alone
        optimizer.zero_grad()
        nn.functional.cross_entropy(large(images(seed=step)), torch.arange(8) % 4).backward()
        optimizer.step()
    after = copy(large)
    assert [name for name, _ in large.named_parameters() if torch.equal(before[name], after[name])] == []


def test_modes_are_as_they_were():
    small, large = trained(mlp(4)), fresh(mlp(4, 4, dropout=0.5))
    large.train()
    large.stage1.eval()
    net2net(small, large, images())
    assert not small.training
    assert large.training
    assert large.stage2.dropout.training
    assert not large.stage1.dropout.training


def test_widened_layers_are_those_of_the_paper_in_loops():
    weight = torch.randn(3, 2, 1, 2)
    inside, outside = [0, 1, 1, 0, 1], [0, 1, 2, 2]
    found = widened(weight, torch.tensor(inside), torch.tensor(outside))
    assert found.shape == (4, 5, 1, 2)
    for j, g in enumerate(outside):
        for i, h in enumerate(inside):
            for k in range(2):
                expected = weight[g, h, 0, k].item() / sum(other == h for other in inside)
                assert found[j, i, 0, k].item() == pytest.approx(expected)


def test_mlp_is_widened_by_copies_of_units():
    small, large = trained(mlp(3)), fresh(mlp(5))
    net2net(small, large, images(), seed=3)
    rows = [row.tolist() for row in small.stage1.linear.weight]
    origin = [rows.index(row.tolist()) for row in large.stage1.linear.weight]
    assert origin[:3] == [0, 1, 2]
    for unit, other in enumerate(origin):
        expected = small.head.weight[:, other] / origin.count(other)
        assert torch.allclose(large.head.weight[:, unit], expected)
        assert large.stage1.linear.bias[unit] == small.stage1.linear.bias[other]
    assert torch.equal(large.head.bias, small.head.bias)


def test_replicated_keeps_the_first_and_draws_the_rest_from_all():
    drawn = replicated(4, 400, torch.Generator().manual_seed(0)).tolist()
    assert drawn[:4] == [0, 1, 2, 3]
    assert all(drawn[4:].count(channel) > 60 for channel in range(4))
    assert replicated(4, 4, torch.Generator()).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 3)])
def test_deepened_convolution_is_an_identity(kernel):
    inputs = torch.randn(2, 4, 6, 7)
    padding = [side // 2 for side in kernel]
    assert torch.equal(nn.functional.conv2d(inputs, deepened(4, kernel), padding=padding), inputs)


def test_deepened_linear_layer_is_an_identity_and_repeats_pieces():
    assert deepened(3).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert deepened(2, pieces=2).tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]


def test_inserted_maxout_layer_passes_on_what_it_gets():
    def network(*widths):
        before, children = 768, {"flatten": nn.Flatten()}
        for number, width in enumerate(widths):
            children[f"layer{number}"] = named(linear=nn.Linear(before, 3 * width), maxout=Maxout(3))
            before = width
        return named(**children, head=nn.Linear(before, 4))

    small = fresh(partial(network, 6), 1)
    for widths in [(6, 6), (8, 7)]:
        large = fresh(partial(network, *widths))
        net2net(small, large, images())
        assert apart(small, large, images(seed=77)) < 1e-5


def test_inserted_norm_has_the_statistics_of_its_input_and_undoes_them():
    small, large = trained(make("vgg8")), fresh(make("vgg13"))
    net2net(small, large, images(16))
    seen = []
    large.stage1.norm2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    large.train()(images(16))
    norm, (entered,) = large.stage1.norm2, seen
    for channel in range(3):
        values = entered[:, channel].flatten().tolist()
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        assert norm.bias[channel].item() == pytest.approx(mean, rel=1e-3, abs=1e-5)
        assert norm.weight[channel].item() == pytest.approx((variance + norm.eps) ** 0.5, rel=1e-3)


def test_only_the_last_norm_of_an_inserted_block_is_zero():
    small, large = trained(make("resnet8")), fresh(make("resnet14"))
    fresh_weight = large.stage2[1].conv1.weight.detach().clone()
    net2net(small, large, images())
    block = large.stage2[1]
    assert block.norm2.weight.abs().max() == block.norm2.bias.abs().max() == 0
    assert torch.equal(block.conv1.weight, fresh_weight)
    assert block.norm1.running_mean.abs().max() > 0
    assert torch.equal(large.stage2[0].conv1.weight, small.stage2[0].conv1.weight)


def test_statistics_of_the_small_network_are_taken_over():
    small, large = trained(resnet(8, 4, 4, 8, 16)), fresh(resnet(8, 6, 6, 8, 16))
    net2net(small, large, images())
    assert torch.equal(large.stem.norm.running_mean[:4], small.stem.norm.running_mean)
    assert torch.equal(large.stem.norm.running_var[:4], small.stem.norm.running_var)
    assert large.stem.norm.num_batches_tracked == small.stem.norm.num_batches_tracked == 4


@pytest.mark.parametrize("noise", [0.01, 0.1])
@pytest.mark.parametrize("pair", ["mlp, both", "resnet, both", "wrn, wider"])
def test_noise_stays_near(pair, noise):
    small, large = trained(PAIRS[pair][0]), fresh(PAIRS[pair][1])
    net2net(small, large, images(), noise=noise)
    scale = small(images()).abs().max().item()
    assert 1e-5 * scale < apart(small, large, images()) < 10 * noise * scale


def test_noise_is_as_wide_as_asked_and_leaves_the_first_copies():
    small, plain, noisy = trained(mlp(50, 40)), fresh(mlp(90, 40)), fresh(mlp(90, 40))
    net2net(small, plain, images())
    net2net(small, noisy, images(), noise=0.25)
    weight, added = plain.stage1.linear.weight, noisy.stage1.linear.weight - plain.stage1.linear.weight
    assert added[:50].abs().max() == 0
    assert (added[50:].std() / weight.std()).item() == pytest.approx(0.25, rel=0.05)
    assert torch.equal(noisy.stage1.linear.bias, plain.stage1.linear.bias)
    assert torch.equal(noisy.head.weight, plain.head.weight)


def gradients_of_copies(noise):
    """The gradients of the weights that read two units of which one is a copy of the other."""
    small, large = trained(mlp(3)), fresh(mlp(4))
    net2net(small, large, images(), noise=noise, seed=3)
    copied = replicated(3, 4, torch.Generator().manual_seed(3))[3]
    nn.functional.cross_entropy(large(images()), torch.arange(8) % 4).backward()
    gradient = large.head.weight.grad
    return gradient[:, copied], gradient[:, 3]


def test_noise_gives_copies_gradients_of_their_own():
    first, second = gradients_of_copies(0.0)
    assert first.abs().max() > 0
    assert torch.allclose(first, second, rtol=1e-4, atol=1e-8)
    first, second = gradients_of_copies(0.1)
    assert (first - second).abs().max() > 1e-3 * first.abs().max()


def test_seed_decides():
    small = trained(mlp(5))
    states = []
    for seed in (0, 0, 1):
        large = fresh(mlp(40))
        net2net(small, large, images(), noise=0.1, seed=seed)
        states.append(copy(large))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_global_random_state_is_left_alone():
    small, large = trained(mlp(5)), fresh(mlp(9))
    before = torch.get_rng_state()
    net2net(small, large, images(), noise=0.1)
    assert torch.equal(before, torch.get_rng_state())


class Odd(nn.Module):
    """One operation between two layers."""

    def __init__(self, between, width=4):
        super().__init__()
        self.flatten = nn.Flatten()
        self.first = nn.Linear(768, width)
        self.head = nn.Linear(width, 4)
        self.between = between

    def forward(self, inputs):
        return self.head(self.between(self.first(self.flatten(inputs))))


class Separable(nn.Module):
    """Convolutions of each channel alone, and operations that are no modules."""

    def __init__(self, width, *, deeper=False):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, groups=width, padding=1)
        self.more = nn.Conv2d(width, width, 3, groups=width, padding=1) if deeper else nn.Identity()
        self.head = nn.Linear(width * 49, 4)

    def forward(self, inputs):
        features = nn.functional.relu(self.norm(self.conv(inputs)))
        features = features + torch.relu(self.depthwise(features))
        features += 1
        features = nn.functional.max_pool2d(self.more(features), 2)
        return self.head(torch.flatten(features, 1))


def test_depthwise_convolutions_functions_and_flattened_places_are_known():
    small, large = trained(partial(Separable, 4)), fresh(partial(Separable, 7, deeper=True))
    net2net(small, large, images())
    assert apart(small, large, images(seed=77)) < 1e-5


def branching(inputs):
    return inputs if inputs.sum() > 0 else -inputs


def chain(**more):
    """A convolution to four channels, and what follows it."""
    return partial(deepcopy, named(conv=nn.Conv2d(3, 4, 1), **more))


def shared():
    layer = nn.Linear(4, 4)
    return Odd(nn.Sequential(layer, nn.ReLU(), layer))


@pytest.mark.parametrize(
    ("small", "large", "said"),
    [
        (mlp(8), mlp(7), r"stage1\.linear has 7 channels, fewer than the 8"),
        (mlp(8, 8), mlp(8), r"has no layer stage2\.linear, but the small one has"),
        (mlp(8), partial(build, "mlp", classes=5, shape=SHAPE, hidden=[8]), "head is 5 wide.*must be the same"),
        (mlp(8), partial(build, "mlp", classes=4, shape=(1, 28, 28), hidden=[8]), r"stage1\.linear is 784 wide"),
        (make("resnet14"), make("resnet8"), r"has no layer stage1\.1\.conv1"),
        (make("resnet8x4"), make("resnet8"), r"has no layer stage1\.0\.shortcut\.conv, but"),
        (make("resnet10", width=8), make("resnet50", width=8), "kernels"),
        (make("convnet_small"), make("convnet_big"), "activation2 is not in the small network, and a LeakyReLU"),
        (make("shufflenet_v2"), make("shufflenet_v2"), r"does not support cat in stage1\.0 of the large network"),
        (make("resnet8"), make("fsp_resnet8", input_norm=False), "appends 16 channels of zeros"),
        (wrn(10, 1), wrn(10, 2), r"outputs differ by.*inserted layers may be the cause: stage1\.0\.shortcut"),
        (make("fitnet_depth", layers=5), make("fitnet_depth", layers=7), r"layer\d\.pool is not in the small"),
        (partial(Odd, nn.ReLU()), partial(Odd, nn.BatchNorm1d(4, affine=False)), "without weights"),
        (partial(Odd, nn.ReLU()), partial(Odd, nn.LayerNorm(4)), "does not support between, a LayerNorm,"),
        (partial(Odd, branching), partial(Odd, branching), "large network cannot be traced"),
        (partial(Odd, nn.ReLU()), partial(Odd, nn.Tanh()), "outputs differ by .* the largest output"),
        (partial(Odd, torch.sum), partial(Odd, torch.sum), "does not support sum in its forward"),
        (chain(relu=nn.PReLU(4)), chain(relu=nn.PReLU(4)), "does not support relu, a PReLU,"),
        (
            chain(),
            chain(more=nn.Conv2d(4, 4, 2)),
            "more is not in the small network and cannot be an identity: it resizes the map",
        ),
        (
            chain(),
            chain(more=nn.Conv2d(4, 4, 1, stride=2)),
            "more is not in the small network and cannot be an identity: it resizes",
        ),
        (
            chain(),
            chain(more=nn.Conv2d(4, 4, 3)),
            "more is not in the small network and cannot be an identity: it resizes",
        ),
        (chain(), chain(more=BasicBlock(4, 4, 2)), "the block more is not in the small network"),
        (chain(), chain(more=nn.Conv2d(4, 4, 1, groups=2)), "more is a convolution with 2 groups"),
        (chain(more=nn.Conv2d(4, 4, 1, groups=4)), chain(more=nn.Conv2d(4, 4, 1)), "more has 1 groups, in the .* 4"),
        (
            chain(more=nn.Conv2d(4, 4, 1)),
            chain(more=nn.Conv2d(4, 4, 1, bias=False)),
            "more has no bias in the large network, but",
        ),
        (
            chain(more=nn.AvgPool2d(1)),
            chain(more=nn.AvgPool2d(2)),
            r"returns \(8, 4, 8, 8\), the small one \(8, 4, 16, 16\)",
        ),
        (
            chain(pool=nn.AvgPool2d(1), flatten=nn.Flatten(), head=nn.Linear(1024, 4)),
            chain(pool=nn.AvgPool2d(2), flatten=nn.Flatten(), head=nn.Linear(256, 4)),
            "head is 256 wide for 4 channels, in the small network 1024 for 4|conv is 4 wide for 4 channels",
        ),
        (
            chain(flatten=nn.Flatten()),
            chain(flatten=nn.Flatten(), more=nn.Linear(1024, 4)),
            "more is not in the small network: no identity maps 1024 features to 4",
        ),
        (
            make("fsp_resnet8"),
            make("fsp_resnet8", shortcut="projection"),
            r"shortcut\.conv .* cannot be an identity: it has 16 input channels, but 32 output channels",
        ),
        (shared, shared, r"between\.0 runs more than once"),
        (
            partial(Odd, nn.Conv2d(4, 4, 1)),
            partial(Odd, nn.Linear(4, 4)),
            "between is a Conv2d in the small network, not a Linear",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_and_leaves_the_large_network_as_it_was(small, large, said):
    small, large = fresh(small, 1), fresh(large)
    before = copy(large)
    with pytest.raises(LimbeckError, match=said):
        net2net(small, large, images())
    assert same(copy(large), before)


def test_inserted_layer_must_hold_the_bound_on_its_norms():
    small, large = fresh(mlp(6, max_norm=0.5)), fresh(mlp(6, 6, max_norm=0.5))
    with pytest.raises(LimbeckError, match=r"stage2\.linear .* an identity needs a max_norm above 0\.5"):
        net2net(small, large, images())
    net2net(small, fresh(mlp(6, 6, max_norm=1.0)), images())


def test_inserted_norm_needs_two_samples():
    small = trained(make("vgg8"))
    with pytest.raises(LimbeckError, match=r"stage1\.norm2 .* need at least 2 samples"):
        net2net(small, fresh(make("vgg13")), images(1))
    net2net(trained(mlp(4)), fresh(mlp(4, 4)), images(1))
