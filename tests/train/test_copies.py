"""Copies of networks that `copy.deepcopy` refuses, and of others that it copies wrongly."""

import threading
import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune, spectral_norm
from torch.nn.utils.parametrizations import weight_norm as parametrised

from limbeck.core import LimbeckError, Tap
from limbeck.train.copies import NotCopied, close, copy_of, deep_copy, numeric_check


def mlp():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def pruned():
    network = mlp()
    prune.l1_unstructured(network[0], "weight", 0.5)
    return network


def normed():
    network = mlp()
    with warnings.catch_warnings(action="ignore"):
        nn.utils.weight_norm(network[0])
    return network


def changed(change):
    network = mlp()
    change(network[0])
    return network


class Keeps(nn.Module):
    """Keeps what an earlier forward gave, in several places."""

    def __init__(self):
        super().__init__()
        self.network, self.kept = mlp(), {"features": []}
        self(torch.randn(2, 6))

    def forward(self, inputs):
        features = self.network[:2](inputs)
        self.kept["features"].append(features)
        self.last = features
        return self.network[2](features)


class Hook:
    def __call__(self, module, args, output):
        self.output = output


def watched():
    network = mlp()
    network[0].register_forward_hook(Hook())
    network(torch.randn(2, 6))
    return network


KINDS = {
    "pruned": pruned,
    "old weight_norm": normed,
    "new weight_norm": lambda: changed(parametrised),
    "spectral_norm": lambda: changed(spectral_norm),
    "keeps a feature": Keeps,
    "a hook that keeps one": watched,
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_copy_gives_the_same_learns_alike_and_is_its_own(make):
    network, inputs = make(), torch.randn(4, 6)
    made = copy_of(network, inputs)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert made.training
    first, second = (list(one.parameters()) for one in (network, made))
    for one in (network, made):
        F.cross_entropy(one(inputs), torch.arange(4) % 3).backward()
    for one, other in zip(first, second, strict=True):
        assert one is not other
        assert torch.allclose(one.grad, other.grad)
    torch.optim.SGD(second, lr=1.0).step()
    assert not torch.equal(made(inputs), network(inputs))
    weights = {name: value for name, value in before.items() if not name.endswith(("_u", "_v"))}  # of spectral_norm
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in weights.items())


@dataclass
class Output:
    loss: None
    logits: torch.Tensor


class Several(nn.Sequential):
    """Gives its logits inside something else."""

    def __init__(self, kind):
        super().__init__(*mlp())
        self.kind = kind

    def forward(self, inputs):
        return self.kind(super().forward(inputs))


OUTPUTS = [lambda rows: (rows, rows), lambda rows: {"logits": rows}, lambda rows: Output(None, rows)]


@pytest.mark.parametrize("kind", OUTPUTS, ids=["tuple", "dict", "dataclass"])
def test_a_network_that_gives_no_tensor_is_copied_and_its_tensors_are_compared(kind, monkeypatch):
    network = Several(kind)
    assert copy_of(network, torch.randn(2, 6)) is not network
    other = Several(kind)
    monkeypatch.setattr("limbeck.train.copies.deep_copy", lambda *args, **options: other)
    with pytest.raises(NotCopied, match="gives something else"):
        copy_of(network, torch.randn(2, 6))


def test_a_pruned_copy_keeps_its_zeros():
    network = pruned()
    made = copy_of(network, torch.randn(2, 6))
    made(torch.randn(2, 6))
    assert torch.equal(made[0].weight == 0, network[0].weight == 0)


class Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = mlp()
        self.block.lock = threading.Lock()

    def forward(self, inputs):
        return self.block(inputs)


def test_what_cannot_be_copied_is_named_with_the_way_out():
    with pytest.raises(
        NotCopied, match=r"the student cannot be copied, because its block\.lock is a lock: TypeError.*; or"
    ):
        copy_of(Locked(), torch.randn(2, 6), name="student", otherwise="; or baseline=False")
    with pytest.raises(LimbeckError, match=r"the peer cannot be copied, because its block\.lock"):
        deep_copy([Locked()], {"teacher": mlp(), "peer": Locked()})


class Outside(nn.Module):
    """A hook of a copy keeps its tensor in the network that was copied."""

    def __init__(self, ran):
        super().__init__()
        self.network = mlp()
        self.network[0].register_forward_hook(lambda module, args, output: setattr(self, "feature", output))
        if ran:
            self(torch.randn(2, 6))

    def forward(self, inputs):
        self.network(inputs)
        return self.network[2](self.feature)


@pytest.mark.parametrize(("ran", "message"), [(True, "gives something else than the student"), (False, "does not run")])
def test_a_copy_that_is_not_like_the_network_is_refused(ran, message):
    with pytest.raises(NotCopied, match=f"a copy of the student {message}"):
        copy_of(Outside(ran), torch.randn(2, 6), name="student")


def test_a_network_that_does_not_run_is_named():
    with pytest.raises(LimbeckError, match=r"the student does not run on samples of shape \(5,\): RuntimeError"):
        copy_of(mlp(), torch.randn(2, 5), name="student")


class Same(nn.Linear):
    def __deepcopy__(self, memo):
        return self


def test_a_copy_that_is_the_network_is_refused():
    with pytest.raises(NotCopied, match="shares parameters"):
        copy_of(Same(6, 3), torch.randn(2, 6))


@pytest.mark.filterwarnings("ignore")
def test_a_copy_of_torchscript_learns():
    network = torch.jit.script(mlp())
    made = copy_of(network, torch.randn(2, 6))
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    made(torch.randn(2, 6)).sum().backward()
    optimizer.step()
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in made.parameters())
    assert all(parameter.grad is None for parameter in network.parameters())


# --- the numeric check


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


def shifted(by):
    network = mlp().eval()
    network.load_state_dict({name: value + by for name, value in MLP.state_dict().items()})
    return network


MLP = mlp().eval()


@pytest.mark.parametrize(("by", "tolerance", "same"), [(0, 0.0, True), (1e-6, 0.0, False), (1e-6, 1e-3, True)])
def test_two_networks_are_the_same_up_to_the_tolerance(by, tolerance, same):
    assert numeric_check(MLP, torch.randn(2, 6), [], tolerance)(shifted(by)) is same


def test_the_tapped_tensors_are_compared_too():
    other = shifted(0)
    with torch.no_grad():
        other[0].weight[0].neg_()
        other[0].bias[0] = -99  # the ReLU hides it from the output, but not from the tap
        MLP[0].weight[0].zero_()
        MLP[0].bias[0] = -9
    inputs = torch.rand(2, 6)
    assert numeric_check(MLP, inputs, [], 1e-6)(other)
    assert not numeric_check(MLP, inputs, [Tap("network", "0")], 1e-6)(other)


class Above(nn.Linear):
    """Differs from a linear layer where the second sample is the first one of a batch."""

    def forward(self, inputs):
        rows = super().forward(inputs)
        return rows + (inputs[0, 0] > 0) if len(inputs) > 1 else rows


def test_other_samples_than_the_given_ones_are_compared():
    network, plain = Above(6, 3), nn.Linear(6, 3)
    plain.load_state_dict(network.state_dict())
    inputs = torch.tensor([[-1.0] * 6, [1.0] * 6])
    assert torch.equal(network(inputs), plain(inputs))
    assert not numeric_check(plain, inputs, [], 0.0)(network)


def test_a_network_that_does_not_run_is_not_the_same():
    assert numeric_check(MLP, torch.randn(2, 6), [], 1.0)(nn.Linear(5, 3)) is False
