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

from limbeck.core import LimbeckError
from limbeck.train.copies import NotCopied, copy_of, deep_copy


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
