import importlib.util
import sys

import pytest
import torch
from torch import nn

from limbeck.core import LimbeckError, Tap
from limbeck.train.compile import CannotCompile, as_it_is
from limbeck.train.fuse import fold
from limbeck.train.openvino_reader import openvino_reader

installed = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.act(self.norm(self.conv(x))).mean(dim=(2, 3)))


class Choosing(Net):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


TAPS = (
    Tap("teacher", "act", "input"),
    Tap("teacher"),
    Tap("teacher", "norm"),  # the very tensor that enters the activation
    Tap("teacher", "conv", "input"),
    Tap("teacher", "head"),
)


@installed
@pytest.mark.parametrize(("precision", "off"), [("32", 1e-6), ("bf16", 0.02)])
def test_gives_the_tensors_that_taps_give(precision, off):
    inputs, others = torch.randn(3, 3, 8, 8), torch.randn(2, 3, 3, 8, 8)
    network, _ = fold(Net(), inputs, TAPS)
    reader = openvino_reader(network, inputs, TAPS, precision=precision)
    both = [reader(others[0]), reader(others[1].contiguous(memory_format=torch.channels_last))]
    for found, given in zip([*both, reader(others[0, :1])], [*others, others[0, :1]], strict=True):
        expected = as_it_is(network, given, TAPS)
        assert list(found) == list(TAPS)
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}
        assert all((found[tap] - expected[tap]).norm() <= off * expected[tap].norm() for tap in TAPS)
    assert "openvino_telemetry.main" not in sys.modules


@installed
def test_a_network_that_is_not_one_graph_is_refused():
    with pytest.raises(CannotCompile, match=r"cannot be run by OpenVINO: \w+: .*data-dependent"):
        openvino_reader(Choosing().eval(), torch.randn(2, 3, 8, 8), [Tap("teacher")])


def test_a_missing_library_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(LimbeckError, match=r"OpenVINO is not installed: pip install limbeck\[openvino\]"):
        openvino_reader(Net().eval(), torch.randn(2, 3, 8, 8), [Tap("teacher")])


def test_inputs_on_another_device_are_refused():
    with pytest.raises(LimbeckError, match=r"runs on the CPU here, but the device is meta"):
        openvino_reader(Net().eval(), torch.randn(2, 3, 8, 8, device="meta"), [Tap("teacher")])
