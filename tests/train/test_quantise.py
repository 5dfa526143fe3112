"""A last stage in which the student learns to be quantised."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import limbeck
from limbeck.core import LimbeckError, Stage, Tap, Term
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.quantise import STAGE, Quantise, Rounded, rounded, with_quantised, without_rounding


def slow(weight, bits):
    """The weight on the grid, number by number."""
    most = 2 ** (bits - 1) - 1
    found = weight.clone()
    for channel in range(len(weight)):
        scale = weight[channel].abs().max().item() / most
        flat = found[channel].view(-1)
        for place in range(len(flat)):
            flat[place] = round(flat[place].item() / scale) * scale if scale else 0.0
    return found


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(3, 5), (4, 2, 3, 3)])
def test_weights_are_rounded_as_in_a_slow_loop_and_pass_the_gradient(bits, shape):
    weight = torch.randn(*shape, requires_grad=True)
    found = rounded(weight, bits)
    torch.testing.assert_close(found, slow(weight.detach(), bits), rtol=1e-5, atol=1e-6)
    (found * 3).sum().backward()
    assert torch.equal(weight.grad, torch.full(shape, 3.0))


def test_a_channel_of_zeros_stays_zero():
    weight = torch.tensor([[0.0, 0.0], [1.0, -0.5]])
    assert torch.equal(rounded(weight, 8)[0], torch.zeros(2))
    assert torch.isfinite(rounded(weight, 8)).all()


def test_scaling_the_output_channels_keeps_the_grid():
    """So a BatchNorm can be folded into the weights."""
    weight = rounded(torch.randn(4, 9), 8)
    folded = weight * torch.tensor([0.3, 2.0, 11.0, 0.01])[:, None]
    torch.testing.assert_close(rounded(folded, 8), folded, rtol=1e-5, atol=1e-7)


class Sweep:
    epoch = 0

    def __init__(self, network, inputs):
        self.network, self.inputs = network, inputs

    def __call__(self, *taps):
        assert taps == (Tap("student"),)
        with torch.no_grad():
            for part in self.inputs.split(8):
                yield (self.network(part),)


def network():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).eval()


def stages(student, **values):
    term = Term(lambda outputs, targets: nn.functional.cross_entropy(outputs, targets), (Tap("student"), Tap("batch")))
    last = Stage("kd", {"hard": term}, 3, sgd(lr=1.0), constant(), **values)
    return with_quantised((last,), {"student": student}, Quantise(epochs=2, rate=0.25))


def test_weights_and_inputs_are_rounded_while_the_stage_lasts_and_the_weights_for_good():
    student, inputs = network(), torch.rand(16, 1, 4, 4) - 0.3
    before = deepcopy(student)
    stage = stages(student)[-1]
    stage.prepare(Sweep(student, inputs))
    found = student(inputs)
    names = [name for name, _ in student.named_parameters()]
    assert names == [name for name, _ in before.named_parameters()]
    assert all(torch.equal(one, two) for one, two in zip(student.parameters(), before.parameters(), strict=True))

    def quantised(layer, values, high, low):
        scale = (high - low) / 255
        zero = round(-low / scale)
        values = ((values / scale).round() + zero).clamp(0, 255).sub(zero) * scale
        other = deepcopy(layer)
        other.weight.data = rounded(layer.weight.data, 8)
        return other(values)

    maps = before[1:4](quantised(before[0], inputs, inputs.max().item(), inputs.min().item()))
    exact = before[1:4](nn.functional.conv2d(inputs, rounded(before[0].weight.data, 8), before[0].bias))
    expected = quantised(before[4], maps, exact.max().item(), 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    stage.finish()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in student.modules())
    for place in (0, 4):
        assert torch.equal(student[place].weight, rounded(before[place].weight, 8))
        assert not torch.equal(student[place].weight, before[place].weight)


def test_an_error_in_a_layer_leaves_its_weight():
    student = network()
    stages(student)[-1].prepare(Sweep(student, torch.rand(8, 1, 4, 4)))
    with pytest.raises(RuntimeError):
        student(torch.rand(8, 2, 4, 4))
    assert all("weight" not in module.__dict__ for module in student.modules())


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, inputs):
        return self.two(input=self.one(input=inputs.flatten(1)).relu())


def test_layers_that_are_called_by_keyword_are_rounded_too():
    student, inputs = ByKeyword(), torch.rand(16, 1, 4, 4)
    other = nn.Sequential(nn.Flatten(), deepcopy(student.one), nn.ReLU(), deepcopy(student.two))
    for network in (student, other):
        stages(network)[-1].prepare(Sweep(network, inputs))
    assert torch.equal(student(inputs), other(inputs))


def test_layers_with_computed_weights_are_left_out():
    student, inputs = network(), torch.rand(16, 1, 4, 4)
    prune.l1_unstructured(student[0], "weight", 0.5)
    stages(student)[-1].prepare(Sweep(student, inputs))
    student(inputs)
    assert not student[0]._forward_hooks
    assert student[4]._forward_hooks


def test_an_interrupted_stage_leaves_no_hooks():
    student = network()
    stages(student)[-1].prepare(Sweep(student, torch.rand(8, 1, 4, 4)))
    own = student[0].register_forward_hook(lambda *_: None)
    without_rounding(student)
    hooks = [hook for module in student.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]
    assert hooks == [own.id]
    assert not any(module._forward_pre_hooks_with_kwargs for module in student.modules())
    assert not any(module._forward_hooks_always_called for module in student.modules())


def test_the_stage_has_the_terms_of_the_last_one_at_its_end_and_does_what_that_does():
    done, student = [], network()
    term = Term(lambda outputs: outputs.sum(), (Tap("student"),), weight=lambda progress: 4 - 3 * progress)
    last = Stage(
        "kd",
        {"soft": term},
        3,
        sgd(lr=1.0),
        constant(),
        prepare=lambda sweep: done.append("prepare"),
        finish=lambda: done.append("finish"),
    )
    first, stage = with_quantised((last,), {"student": student}, Quantise(epochs=2, rate=0.25))
    assert first == replace(last, finish=None)
    assert (stage.name, stage.epochs) == (STAGE, 2)
    assert stage.terms["soft"].weight == pytest.approx(1)
    assert stage.optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 0.25
    stage.prepare(Sweep(student, torch.rand(8, 1, 4, 4)))
    stage.finish()
    assert done == ["prepare", "finish"]


@pytest.mark.parametrize(
    ("student", "learns", "message"),
    [(nn.ReLU(), ("student",), "no convolution and no linear layer"), (network(), ("teacher",), "does not train")],
)
def test_what_cannot_be_quantised_is_refused(student, learns, message):
    with pytest.raises(LimbeckError, match=message):
        stages(student, learns=learns)


def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(60, 1, 6, 6, generator=generator)
    return limbeck.arrays(inputs, (inputs.mean(dim=(1, 2, 3)) * 100).long() % 2)


OPTIONS = {"epochs": 2, "batch_size": 16, "precision": "32", "progress": False}


@pytest.mark.parametrize("method", ["kd", "fitnets", "srrl", "mimic", "at"])
def test_every_kind_of_method_ends_with_a_student_on_the_grid(method):
    teacher = build("resnet8", classes=2, shape=(1, 6, 6))
    student = build("resnet8", classes=2, shape=(1, 6, 6))
    training = {"quantise": {"bits": 6, "epochs": 1}}
    trained, result = limbeck.distill(
        teacher, student, data(), method=method, training=training, allow=("chance", "permuted"), **OPTIONS
    )
    assert not any(
        isinstance(getattr(hook, "__self__", None), Rounded)
        for module in trained.modules()
        for hook in module._forward_pre_hooks.values()
    )
    assert not any("weight" in module.__dict__ for module in trained.modules())
    convolutions = [module for module in trained.modules() if type(module) is nn.Conv2d]
    assert convolutions
    for layer in convolutions:
        torch.testing.assert_close(rounded(layer.weight, 6), layer.weight, rtol=1e-5, atol=1e-7)
    assert result.alone is not None


def test_a_run_that_is_resumed_in_the_stage_gives_the_same_bits(tmp_path):
    teacher, training = build("mlp", classes=2, shape=(1, 6, 6), hidden=(9,)), {"quantise": {"epochs": 3}}
    allow = ("chance", "permuted")

    def call(out, on_epoch=None):
        torch.manual_seed(4)
        student = build("mlp", classes=2, shape=(1, 6, 6), hidden=(7,))
        options = {"training": training, "allow": allow, "out": out, "on_epoch": on_epoch, "baseline": False, **OPTIONS}
        return limbeck.distill(teacher, student, data(), method="kd", **options)[0]

    whole = call(tmp_path / "whole")

    class Stopped(Exception):
        pass

    def stops(arm, epoch):
        if (epoch.stage, epoch.number) == (STAGE, 2):
            raise Stopped

    with pytest.raises(Stopped):
        call(tmp_path / "stopped", stops)
    again = call(tmp_path / "stopped")
    for one, two in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two)
