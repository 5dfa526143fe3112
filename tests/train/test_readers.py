"""Readers of frozen networks: fused, compiled, from a store."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core import TARGETS, Batch, Stage, Tap, Term, from_student, from_teacher
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train import readers
from limbeck.train.engine import can_compile, make_engine
from limbeck.train.loop import run
from limbeck.train.readers import Resident, frozen_readers, network_reader

ENGINE = make_engine(device="cpu", precision="32")
LOW = make_engine(device="cpu", precision="bf16")
LOGITS = from_teacher()


class Source:
    """12 images in batches of 4."""

    samples = 12

    def __init__(self):
        self.inputs = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return 3

    def __call__(self, epoch):
        for index in torch.arange(12).split(4):
            yield Batch(self.inputs[index], index % 5, index, epoch)

    def example_inputs(self):
        return self.inputs[:2]


def network():
    made = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    nn.init.uniform_(made[1].running_var, 0.5, 2.0)
    nn.init.normal_(made[1].running_mean, std=0.3)
    return made


class Locked(nn.Sequential):
    """A network that cannot be copied."""

    def __init__(self):
        super().__init__(*network())
        self.lock = threading.Lock()


def networks():
    torch.manual_seed(5)
    return {"student": network(), "teacher": network()}


def mimic(student, teacher):
    return F.mse_loss(student, teacher.detach())


HARD = Term(F.cross_entropy, (from_student(), TARGETS))
SOFT = Term(mimic, (from_student(), from_teacher()))
MAPS = Term(mimic, (from_student("1"), from_teacher("2")))


def stage(*terms, epochs=2):
    named = {str(position): term for position, term in enumerate(terms)}
    return Stage("one", named, epochs, sgd(lr=0.1), constant())


def made(nets, engine, *terms, store=None):
    return frozen_readers(stage(*terms), nets, Source().example_inputs(), engine, store)[0]


def batch():
    return next(iter(Source()(0)))


@pytest.fixture
def fused(monkeypatch):
    """What is fused, as (network, what is run in its place, channels_last)."""
    seen = []

    def fuse(given, inputs, taps, *, precision, channels_last):
        found, reason = real(given, inputs, taps, precision=precision, channels_last=channels_last)
        seen.append((given, found, channels_last))
        return found, reason

    real = readers.fuse
    monkeypatch.setattr(readers, "fuse", fuse)
    return seen


# --- what is run


@pytest.mark.parametrize(("engine", "dtype"), [(ENGINE, torch.float32), (LOW, torch.bfloat16)])
@pytest.mark.parametrize("fits", [True, False])
def test_a_frozen_network_is_read_from_a_fused_copy(monkeypatch, fused, engine, dtype, fits):
    monkeypatch.setattr(readers, "runs_channels_last", lambda *_: fits)
    nets = networks()
    reader = made(nets, engine, SOFT, MAPS)["teacher"]
    ((given, copy, channels_last),) = fused
    assert given is nets["teacher"]
    assert copy is not given
    assert type(copy[1]) is nn.Identity
    assert copy[0].weight.dtype == copy[6].weight.dtype == dtype
    assert channels_last is fits
    nets["teacher"].forward = lambda inputs: pytest.fail("the network itself ran")
    assert set(reader(batch())) == {from_teacher(), from_teacher("2")}


@pytest.mark.parametrize(("engine", "off"), [(ENGINE, 1e-5), (LOW, 2e-2)])
@pytest.mark.parametrize("kind", [network, Locked])
def test_a_reader_gives_the_networks_tensors_without_gradients(engine, off, kind):
    teacher, taps = kind().eval(), (Tap("teacher", "1"), Tap("teacher"))
    found = network_reader(teacher, taps, Source().example_inputs(), engine)[0](batch())
    with torch.no_grad():
        layers = nn.Sequential(*teacher)
        maps = layers[:2](batch().inputs)
        expected = {taps[0]: maps, taps[1]: layers[2:](maps.clone())}
    for tap in taps:
        assert (found[tap].float() - expected[tap]).norm() <= off * expected[tap].norm()
        assert found[tap].dtype == (torch.float32 if engine is ENGINE else torch.bfloat16)
        assert not found[tap].requires_grad


def test_a_network_that_cannot_be_copied_has_hooks_only_while_it_is_read():
    teacher, seen = Locked().eval(), []
    reader, _ = network_reader(teacher, [Tap("teacher", "1")], Source().example_inputs(), ENGINE)
    assert not teacher[1]._forward_hooks
    teacher[0].register_forward_hook(lambda *_: seen.append((len(teacher[1]._forward_hooks), teacher[2].inplace)))
    reader(batch())
    assert seen == [(1, False)]
    assert not teacher[1]._forward_hooks
    assert teacher[2].inplace


def test_a_forward_ends_at_the_last_tap():
    teacher, ran = Locked().eval(), []
    teacher[6].register_forward_hook(lambda *_: ran.append(1))
    reader, _ = network_reader(teacher, [Tap("teacher", "1")], Source().example_inputs(), ENGINE)
    ran.clear()
    reader(batch())
    assert ran == []


def test_a_norm_whose_input_is_read_is_not_folded(fused):
    made(networks(), ENGINE, Term(mimic, (from_student("0"), from_teacher("0"))))
    assert type(fused[0][1][1]) is nn.BatchNorm2d


def test_a_network_that_is_not_read_or_that_learns_has_no_reader(fused):
    nets = networks()
    assert made(nets, ENGINE, HARD) == {}
    learning = replace(stage(SOFT), learns=("student", "teacher.0"))
    assert frozen_readers(learning, nets, batch().inputs, ENGINE, None) == ({}, ())
    assert fused == []


def test_training_runs_the_fused_copy_once_a_batch(monkeypatch):
    nets, other, ran = networks(), network().eval(), []
    nets["teacher"].forward = lambda inputs: pytest.fail("the network itself ran")
    other.register_forward_pre_hook(lambda *_: ran.append(1))
    monkeypatch.setattr(readers, "fuse", lambda *_, **options: (other, ""))
    monkeypatch.setattr(readers, "runs_channels_last", lambda *_: False)
    list(run([stage(SOFT, MAPS)], nets, Source(), ENGINE))
    assert len(ran) == 6


# --- what cannot be fused


class SumOfBoth(nn.Module):
    """Uses the output of its convolution besides the norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)

    def forward(self, x):
        x = self.conv(x)
        return (self.norm(x) + x).mean(dim=(2, 3))


class NormReadByHand(SumOfBoth):
    def forward(self, x):
        return (self.norm(self.conv(x)) * self.norm.weight.mean()).mean(dim=(2, 3))


def notes(teacher, *terms, engine=ENGINE):
    nets = networks() | {"teacher": teacher.eval()}
    (epoch,) = run([stage(*terms, epochs=1)], nets, Source(), engine)
    assert epoch.notes == frozen_readers(stage(*terms), nets, batch().inputs, engine, None)[1]
    return epoch.notes


def test_a_network_that_cannot_be_fused_in_full_is_a_note_with_the_reason():
    why = "1 BatchNorm layer could not be folded: the folded network would give other tensors"
    assert notes(NormReadByHand(), SOFT) == (f"the teacher is not fused in full: {why}",)
    (note,) = notes(Locked(), SOFT)
    why = "1 BatchNorm layer could not be folded: the network cannot be copied, because its lock is a lock"
    assert note.startswith(f"the teacher is not fused in full: {why}")


def test_a_norm_that_does_not_follow_a_layer_alone_is_no_note():
    assert notes(SumOfBoth(), SOFT) == ()
    assert notes(network(), SOFT, MAPS) == notes(network(), SOFT, MAPS, engine=LOW) == ()


def test_a_network_that_is_not_run_has_no_note():
    assert notes(NormReadByHand(), HARD) == ()
    assert frozen_readers(stage(SOFT), networks() | {"teacher": Locked()}, batch().inputs, ENGINE, Known())[1] == ()


# --- compiled


def graphs():
    """The graphs compiled so far in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


# The warning is the compiler's own; as an error it would end the compilation, and the loss would run as it is.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler")
class TestCompiled:
    """For real, a few seconds each."""

    def losses(self, *terms, compiled=False):
        """The graphs that a training compiles, and its losses."""
        before, engine, nets = graphs(), make_engine(device="cpu", precision="32", compile=compiled), networks()
        torch.manual_seed(7)
        found = [epoch.loss for epoch in run([stage(*terms)], nets, Source(), engine)]
        return graphs() - before, found

    def test_the_teacher_has_a_reader_that_is_one_graph(self):
        nets, engine = networks(), make_engine(device="cpu", precision="32", compile=True)
        reader = made(nets, engine, SOFT, MAPS)["teacher"]
        before = graphs()
        found = reader(batch())
        assert graphs() == before + 1
        with torch.no_grad():
            torch.testing.assert_close(found[from_teacher()], nets["teacher"].eval()(batch().inputs))

    def test_training_reads_the_teacher_by_it_and_leaves_losses_on_logits(self):
        count, found = self.losses(HARD, SOFT, compiled=True)
        assert count == 1
        assert found == pytest.approx(self.losses(HARD, SOFT)[1], rel=1e-5)

    def test_a_loss_on_maps_is_a_graph(self):
        maps = Term(lambda first, second: (first - second).square().mean(), (from_student("0"), from_student("1")))
        count, found = self.losses(maps, compiled=True)
        assert count == 1
        assert found == pytest.approx(self.losses(maps)[1], rel=1e-5)

    def test_a_loss_on_logits_is_none(self):
        assert self.losses(HARD, compiled=True)[0] == 0


# --- from a store


class Recorder:
    """In `Resident`'s place."""

    def __init__(self, outputs, device):
        self.outputs, self.device = outputs, device

    def read(self, index, view):
        return {"device": self.device, **self.outputs.read(index, view)}


class Known:
    taps = frozenset({from_teacher(), from_teacher("2")})
    rows = 12

    def read(self, index, view):
        return {"index": index, "view": view}


@pytest.mark.parametrize(("device", "resident"), [("cpu", False), ("cuda", True), ("mps", True)])
def test_a_store_is_copied_to_a_device_that_is_no_cpu(monkeypatch, fused, device, resident):
    monkeypatch.setattr(readers, "Resident", Recorder)
    engine = SimpleNamespace(device=torch.device(device), compile=True)
    found = made(networks(), engine, SOFT, MAPS, store=Known())
    assert fused == []
    index = torch.arange(3)
    read = found["teacher"](Batch(torch.zeros(3), torch.zeros(3), index, 4))
    assert read == {"index": index, "view": 4} | ({"device": torch.device(device)} if resident else {})


def test_a_store_that_lacks_a_tap_is_not_read(fused):
    made(networks(), ENGINE, SOFT, Term(mimic, (from_student("1"), from_teacher("1"))), store=Known())
    assert len(fused) == 1


class Rows:
    """Row i of view v is (i, v)."""

    taps = frozenset({LOGITS})
    rows = 10

    def __init__(self):
        self.read_views = []

    def read(self, index, view):
        self.read_views.append(view)
        return {LOGITS: torch.stack([index.float(), torch.full((len(index),), float(view))], dim=1)}


def test_gives_the_rows_that_are_asked_for(monkeypatch):
    monkeypatch.setattr(readers, "CHUNK", 4)
    near = Resident(Rows(), torch.device("cpu"))
    assert (near.taps, near.rows) == (Rows.taps, 10)
    for view in (0, 2):
        found = near.read(torch.tensor([9, 0, 9, 4]), view)[LOGITS]
        assert found.tolist() == [[9.0, view], [0.0, view], [9.0, view], [4.0, view]]


def test_copies_a_view_once(monkeypatch):
    monkeypatch.setattr(readers, "CHUNK", 4)
    rows = Rows()
    near = Resident(rows, torch.device("cpu"))
    for view in (0, 0, 1, 1, 0):
        near.read(torch.tensor([1]), view)
    assert rows.read_views == [0] * 3 + [1] * 3 + [0] * 3
