from dataclasses import FrozenInstanceError

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core import TARGETS, Batch, LimbeckError, Stage, Term, from_student
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import Engine, can_compile, make_engine, pick_precision
from limbeck.train.loop import run

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.fixture
def machine(monkeypatch):
    """A machine as described; nothing runs on it."""

    def build(*, cuda=False, mps=False, amx=False, avx=False, gpu_bf16=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)

        def supported(including_emulation=True):
            return True if including_emulation else gpu_bf16

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)

    return build


@pytest.mark.parametrize(
    ("has", "picked"),
    [({}, "cpu"), ({"cuda": True}, "cuda"), ({"mps": True}, "mps"), ({"cuda": True, "mps": True}, "mps")],
)
def test_auto_takes_the_accelerator_that_is_there(machine, has, picked):
    machine(**has)
    assert make_engine(precision="32").device.type == picked


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_device_that_is_asked_for_is_taken(machine, device):
    machine(cuda=True, gpu_bf16=True)
    assert make_engine(device=device).device.type == device


@pytest.mark.parametrize(
    ("device", "has", "listed"),
    [
        ("cuda", {}, "auto, cpu"),
        ("gpu", {}, "auto, cpu"),
        ("", {}, "auto, cpu"),
        ("cuda:1", {"cuda": True}, "auto, cpu, cuda"),
        ("cuda", {"mps": True}, "auto, cpu, mps"),
    ],
)
def test_a_device_that_is_not_there_is_refused(machine, device, has, listed):
    machine(**has)
    with pytest.raises(LimbeckError) as caught:
        make_engine(device=device)
    assert str(caught.value) == f"device is {device!r}: this machine has {listed}"


@pytest.mark.parametrize("precision", ["16", "fp16", "bf16-mixed", "", 32, None])
def test_a_precision_that_does_not_exist_is_refused(precision):
    with pytest.raises(LimbeckError) as caught:
        make_engine(device="cpu", precision=precision)
    assert str(caught.value) == f"precision is {precision!r}: allowed are auto, 32, bf16"


@pytest.mark.parametrize("faster", [None, True, False])
@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("device", [CPU, CUDA, torch.device("mps")])
def test_a_precision_that_is_asked_for_is_taken(machine, precision, device, faster):
    machine()
    assert pick_precision(device, precision, faster) == (precision, "asked for")


@pytest.mark.parametrize(
    ("device", "has", "faster", "picked"),
    [
        (CPU, {}, True, ("32", "the CPU has no bf16 units")),
        (CPU, {"gpu_bf16": True}, True, ("32", "the CPU has no bf16 units")),
        (CPU, {"amx": True}, None, ("32", "the CPU has bf16 units, but their speed was not measured")),
        (CPU, {"amx": True}, True, ("bf16", "measured: faster than 32 bits")),
        (CPU, {"avx": True}, True, ("bf16", "measured: faster than 32 bits")),
        (CPU, {"avx": True}, False, ("32", "measured: bf16 is not faster")),
        (CUDA, {"amx": True}, True, ("32", "the GPU has no bf16 units")),
        (CUDA, {"gpu_bf16": True}, True, ("bf16", "measured: faster than 32 bits")),
        (CUDA, {"gpu_bf16": True}, False, ("32", "measured: bf16 is not faster")),
        (torch.device("mps"), {"amx": True}, True, ("32", "the MPS has no bf16 units")),
    ],
)
def test_auto_takes_bf16_where_it_pays_and_says_why(machine, device, has, faster, picked):
    machine(**has)
    assert pick_precision(device, "auto", faster) == picked


def test_the_engine_keeps_what_was_picked_and_why(machine):
    machine(amx=True)
    engine = make_engine(faster=True)
    assert (engine.precision, engine.reason) == ("bf16", "measured: faster than 32 bits")
    engine = make_engine(faster=False)
    assert (engine.precision, engine.reason) == ("32", "measured: bf16 is not faster")


@pytest.mark.parametrize(("tool", "found"), [("g++", True), ("clang++", True), ("tcc", False)])
def test_a_cpu_compiles_where_there_is_a_compiler(monkeypatch, tool, found):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: name if name == tool else None)
    assert can_compile(CPU) is found
    if not found:
        with pytest.raises(LimbeckError, match="compile is true, but the cpu has no compiler"):
            make_engine(device="cpu", precision="32", compile=True)


def test_a_gpu_compiles_where_triton_is_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "triton" else None)
    assert can_compile(CUDA)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not can_compile(CUDA)


def test_an_engine_is_a_value():
    engine = make_engine(device="cpu", precision="32")
    assert engine == Engine(CPU, "32", "asked for", compile=False) == make_engine(device="cpu", precision="32")
    with pytest.raises(FrozenInstanceError):
        engine.precision = "bf16"


def test_a_seed_sets_the_generator():
    engine = make_engine(device="cpu", precision="32")
    engine.seed(5)
    first = torch.rand(4)
    engine.seed(5)
    assert torch.equal(torch.rand(4), first)
    engine.seed(6)
    assert not torch.equal(torch.rand(4), first)
    engine.seed(5)
    assert torch.equal(torch.rand(4), torch.rand(4, generator=torch.Generator().manual_seed(5)))


def test_generators_go_on_where_they_were_saved():
    engine = make_engine(device="cpu", precision="32")
    torch.rand(3)
    saved = engine.generators()
    drawn = torch.rand(5)
    engine.seed(99)
    torch.rand(7)
    engine.restore_generators(saved)
    assert torch.equal(torch.rand(5), drawn)


def test_saved_generators_do_not_move_on():
    engine = make_engine(device="cpu", precision="32")
    saved = engine.generators()
    before = saved["cpu"].clone()
    torch.rand(100)
    assert torch.equal(saved["cpu"], before)
    assert set(saved) == {"cpu"}


def test_a_state_from_a_gpu_is_restored_on_a_cpu():
    engine = make_engine(device="cpu", precision="32")
    engine.seed(1)
    saved = engine.generators() | {"cuda": torch.zeros(16, dtype=torch.uint8)}
    drawn = torch.rand(2)
    engine.restore_generators(saved)
    assert torch.equal(torch.rand(2), drawn)


@pytest.mark.parametrize(("precision", "dtype"), [("32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_forward_runs_in_the_precision(precision, dtype):
    engine = make_engine(device="cpu", precision=precision)
    network = engine.place(nn.Linear(3, 2))
    with engine.autocast():
        output = network(torch.randn(4, 3))
    assert output.dtype == dtype
    assert network.weight.dtype == torch.float32
    assert network(torch.randn(4, 3)).dtype == torch.float32


def test_bf16_really_rounds_as_bf16_does():
    network = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(1.0)
    with make_engine(device="cpu", precision="bf16").autocast():
        assert network(torch.tensor([[1 + 2**-9]])).item() == 1.0
    with make_engine(device="cpu", precision="32").autocast():
        assert network(torch.tensor([[1 + 2**-9]])).item() == 1 + 2**-9


def test_a_gradient_in_bf16_reaches_weights_in_32_bits():
    engine = make_engine(device="cpu", precision="bf16")
    step = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(step.parameters(), lr=0.1)
    before = step.weight.detach().clone()
    with engine.autocast():
        output = step(torch.randn(4, 3))
    assert output.dtype == torch.bfloat16
    output.float().square().mean().backward()
    assert step.weight.grad.dtype == torch.float32
    optimizer.step()
    assert not torch.equal(step.weight, before)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_training_learns_and_is_the_same_twice(precision):
    inputs = torch.randn(32, 6)
    batch = Batch(inputs, (inputs[:, 0] > 0).long(), torch.arange(32), 0)

    class Source:
        def __len__(self):
            return 1

        def __call__(self, epoch):
            yield batch

        def example_inputs(self):
            return inputs[:2]

    def train():
        torch.manual_seed(2)
        network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
        stage = Stage("task", {"hard": Term(F.cross_entropy, (from_student(), TARGETS))}, 30, sgd(lr=0.3), constant())
        losses = [
            e.loss for e in run([stage], {"student": network}, Source(), make_engine(device="cpu", precision=precision))
        ]
        return losses, network

    (losses, network), (again, other) = train(), train()
    assert losses[-1] < 0.5 * losses[0]
    assert losses == again
    assert all(torch.equal(one, two) for one, two in zip(network.parameters(), other.parameters(), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestOnAGpu:
    def test_auto_takes_the_gpu(self):
        assert make_engine().device.type == "cuda"

    def test_generators_of_the_gpu_go_on_where_they_were_saved(self):
        engine = make_engine(device="cuda", precision="32")
        engine.seed(1)
        saved = engine.generators()
        drawn = torch.rand(5, device="cuda"), torch.rand(5)
        engine.restore_generators(saved)
        assert torch.equal(torch.rand(5, device="cuda"), drawn[0])
        assert torch.equal(torch.rand(5), drawn[1])

    def test_a_forward_on_the_gpu_runs_in_bf16(self):
        engine = make_engine(device="cuda", precision="bf16")
        network = engine.place(nn.Linear(3, 2))
        with engine.autocast():
            assert network(torch.randn(4, 3, device="cuda")).dtype == torch.bfloat16
