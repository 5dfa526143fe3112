import copy
import os
import pickle
import shutil
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core import LimbeckError, Tap
from limbeck.train.compile import GRAPHS, CannotCompile, check_alike, compiled_loss, compiled_reader, uncompiled
from limbeck.train.fuse import fuse

compiles = pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")), reason="no C++ compiler"
)
"""For the tests that compile for real, a few seconds each."""


def graphs():
    """The graphs compiled so far in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        return self.head(self.act(x - 0.1).mean(dim=(2, 3)))


class Choosing(Net):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Moving(nn.Module):
    """A loss with a parameter, a state that changes, and random numbers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, student, teacher):
        student = self.linear(student) * torch.rand(6)
        with torch.no_grad():
            self.mean.lerp_(student.mean(dim=0), 0.1)
        return (student - teacher).square().mean() + (student - self.mean).square().mean()


def by_class(student, targets):
    return torch.stack([student[targets == label].square().mean() for label in targets.unique().tolist()]).mean()


def distance(student, teacher, power):
    if len(student) != len(teacher):
        raise LimbeckError("not one to one")
    return (student - teacher).abs().pow(power).mean()


def step(loss, reads, seed):
    """The value, and the gradient by the first tensor."""
    torch.manual_seed(seed)
    student = reads[0].clone().requires_grad_()
    value = loss(student, *reads[1:])
    value.backward()
    return value.detach(), student.grad


# --- readers


@compiles
def test_a_compiled_reader_gives_the_tensors_that_taps_give():
    inputs = torch.randn(3, 3, 8, 8)
    taps = [Tap("teacher", "act", "output", 0), Tap("teacher", "norm"), Tap("teacher", "conv", "input")]
    network, _ = fuse(Net(), inputs, taps, precision="32", channels_last=False)
    before = torch._inductor.config.freezing
    reader = compiled_reader(network, inputs, taps)
    made, other = graphs(), torch.randn(3, 3, 8, 8)
    expected = uncompiled(network, other, tuple(taps))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        found = reader(other)
    assert list(found) == taps
    assert all(torch.allclose(found[tap], expected[tap], atol=1e-6) for tap in taps)
    assert not any(tensor.requires_grad for tensor in found.values())
    assert found[taps[0]].min() == 0 > found[taps[1]].min()
    assert found[taps[2]] is other or torch.equal(found[taps[2]], other)
    ran = {event.key for event in profiler.key_averages()}
    assert any("convolution" in name for name in ran), ran
    assert not [name for name in ran if "mm" in name or "linear" in name], "what is above the last tap ran too"
    for unlike in (other[:2], other[:1], other.contiguous(memory_format=torch.channels_last)):  # these run as they are
        assert torch.equal(reader(unlike)[taps[1]], uncompiled(network, unlike, tuple(taps))[taps[1]])
    with torch.autocast("cpu", torch.bfloat16):
        assert reader(other)[taps[1]].dtype == torch.bfloat16
    assert graphs() == made
    assert torch._inductor.config.freezing is before
    assert not [module for module in network.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert network.act.inplace is True


@compiles
def test_a_compiled_reader_keeps_to_the_callers_autocast():
    inputs, taps = torch.randn(3, 3, 8, 8), [Tap("teacher", "norm"), Tap("teacher")]
    network, _ = fuse(Net(), inputs, taps, precision="bf16", channels_last=True)
    with torch.autocast("cpu", torch.bfloat16):
        reader = compiled_reader(network, inputs, taps)
        made = graphs()
        found, expected = reader(inputs), uncompiled(network, inputs, tuple(taps))
    assert graphs() == made
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert all((found[tap] - expected[tap]).norm() < 0.02 * expected[tap].norm() for tap in taps)


def test_a_network_that_is_not_one_graph_is_refused_at_once():
    with pytest.raises(CannotCompile, match=r"the network cannot be compiled: \w+: .*data-dependent") as caught:
        compiled_reader(Choosing().eval(), torch.randn(2, 3, 8, 8), [Tap("teacher")])
    assert "\n" not in str(caught.value)


def test_a_tap_to_nowhere_is_refused_in_its_own_words():
    with pytest.raises(LimbeckError, match=r"no layer 'hed': did you mean head") as caught:
        compiled_reader(Net().eval(), torch.randn(2, 3, 8, 8), [Tap("teacher", "hed")])
    assert not isinstance(caught.value, CannotCompile)


@pytest.mark.parametrize(
    ("found", "low", "refused"),
    [
        (torch.tensor([3.0, 4.001]), False, False),
        (torch.tensor([3.0, 4.01]), False, True),
        (torch.tensor([3.0, 4.01]), True, False),
        (torch.tensor([3.0, 4.5]), True, True),
        (torch.tensor([3.0, torch.nan]), True, True),
        (torch.tensor([3.0, 4.0]).double(), True, True),
        (torch.tensor([[3.0], [4.0]]), True, True),
    ],
)
def test_other_tensors_than_the_networks_are_refused(found, low, refused):
    tap = Tap("teacher", "head")
    words = r"^compiled, teacher.head is not what the network gives$"
    with pytest.raises(CannotCompile, match=words) if refused else nullcontext():
        check_alike({tap: torch.tensor([3.0, 4.0])}, {tap: found}, low=low)


# --- losses


@compiles
def test_a_compiled_loss_is_the_loss_and_leaves_the_module_uncompiled():
    loss, before = Moving(), graphs()
    plain = copy.deepcopy(loss)
    fast = compiled_loss(loss)
    for seed, count in enumerate((8, 8, 3)):
        reads = torch.randn(count, 6), torch.randn(count, 6)
        (value, gradient), (expected, wanted) = step(fast, reads, seed), step(plain, reads, seed)
        assert torch.allclose(value, expected, rtol=1e-5)
        assert torch.allclose(gradient, wanted, rtol=1e-4, atol=1e-7)
    assert graphs() == before + 1
    assert list(loss.state_dict()) == ["mean", "linear.weight", "linear.bias"]
    assert all(torch.allclose(value, plain.state_dict()[name]) for name, value in loss.state_dict().items())
    assert torch.allclose(loss.linear.weight.grad, plain.linear.weight.grad, rtol=1e-4, atol=1e-7)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.allclose(step(other, reads, 0)[0], step(copy.deepcopy(plain), reads, 0)[0])


@compiles
def test_each_loss_of_a_kind_is_compiled_though_the_compiler_stops_at_a_number():
    reads, before = (torch.randn(4, 6), torch.randn(4, 6)), graphs()
    for power in (1, 3, 4):
        assert torch.allclose(compiled_loss(partial(distance, power=power))(*reads), distance(*reads, power=power))
    assert graphs() == before + 3 > before + GRAPHS


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, student, teacher):
        self.calls += 1
        return (student - teacher).square().mean() * self.calls


@compiles
def test_a_loss_that_needs_a_graph_for_each_call_is_soon_left_uncompiled():
    loss, before = Counting(), graphs()
    fast = compiled_loss(loss)
    found = [fast(torch.ones(3, 2), torch.zeros(3, 2)).item() for _ in range(5)]
    assert found == [1, 2, 3, 4, 5]
    assert loss.calls == 5
    assert graphs() == before + GRAPHS


def test_a_loss_that_is_not_one_graph_runs_uncompiled():
    reads, before = (torch.randn(9, 6), torch.arange(9) % 3), graphs()
    fast = compiled_loss(by_class)
    for seed in range(2):
        found, expected = step(fast, reads, seed), step(by_class, reads, seed)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert graphs() == before


def test_what_a_loss_raises_comes_through():
    with pytest.raises(LimbeckError, match=r"^not one to one$"):
        compiled_loss(partial(distance, power=2))(torch.ones(2), torch.ones(3))


def test_a_compiler_that_is_not_there_is_said():
    from torch._inductor import config

    def loss(student, teacher):
        return F.huber_loss(student.exp(), teacher.cos())

    with config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(CannotCompile, match=r"C\+\+ compiler"):
        compiled_loss(loss)(torch.randn(7, 5), torch.randn(7, 5))
