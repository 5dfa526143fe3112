"""Every way to run a workload's steps does the same work, and trains."""

import copy
import math
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from torch import nn

from benchmarks.speed import limbeck_loop, peer
from benchmarks.speed.floors import fastest, floor
from benchmarks.speed.limbeck_loop import LimbeckLoop, Window, pick_engine
from benchmarks.speed.peer import Unavailable, torchdistill
from benchmarks.speed.plain import PilImages, plain
from benchmarks.speed.variants import VARIANTS, make
from benchmarks.speed.workloads import WORKLOADS, prepare, upto
from limbeck.core import LimbeckError
from limbeck.data import Augment, normalise
from limbeck.train.engine import make_engine

TRAINING = ("plain", "plain_tuned", "torchdistill", "live", "store")
FP32 = make_engine(device="cpu", precision="32")
BF16 = make_engine(device="cpu", precision="bf16")


def state(network):
    return copy.deepcopy(network.state_dict())


def ends_unlike(before, network):
    return [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]


@pytest.mark.parametrize("variant", TRAINING)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_loop_trains_the_student(tiny_case, tmp_path, workload, variant):
    case = tiny_case(workload)
    if variant == "torchdistill":
        pytest.importorskip("torchdistill")
    if (workload, variant) == ("srrl", "torchdistill"):
        with pytest.raises(Unavailable, match="torchdistill has no srrl"):
            make(variant, case, FP32, tmp_path)
        return
    before, teacher = state(case.student), state(case.teacher)
    made = make(variant, case, FP32, tmp_path)
    assert math.isfinite(made.run(3))  # more than an epoch
    changed = ends_unlike(before, made.student)
    assert any("weight" in name for name in changed)
    if workload == "hint":  # what is above the guided layer does not learn
        assert not [name for name in changed if name.startswith("head")]
    assert not ends_unlike(before, case.student)
    assert not ends_unlike(teacher, case.teacher)


@pytest.mark.parametrize("workload", ["kd", "at", "mnist_mlp"])
def test_all_loops_have_the_same_losses(tiny, tmp_path, workload):
    """One batch is the whole epoch, so that its order does not count, and nothing is augmented."""
    pytest.importorskip("torchdistill")
    case = prepare(replace(tiny(workload), batch_size=8, batches=1, augment=Augment()))
    losses = {}
    for name in TRAINING:
        run = make(name, case, FP32, tmp_path).run
        losses[name] = torch.tensor([run(1) for _ in range(4)])
    assert not torch.equal(losses["plain"][:1], losses["plain"][1:2])
    for name in TRAINING:
        torch.testing.assert_close(losses[name], losses["plain"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", ["plain_tuned", "live", "store", "floor_live", "floor_store"])
def test_the_tuned_loops_and_the_floors_run_in_the_precision_that_was_picked(tiny_case, tmp_path, variant):
    made = make(variant, tiny_case("kd"), BF16, tmp_path)
    seen = []
    made.student.get_submodule("stage1").register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    assert math.isfinite(made.run(1))
    assert seen[-1] == torch.bfloat16  # before the step the networks are tried


def test_the_plain_loop_runs_in_32_bits_whatever_was_picked(tiny_case, tmp_path):
    made = make("plain", tiny_case("kd"), BF16, tmp_path)
    seen = []
    made.student.get_submodule("stage1").register_forward_hook(
        lambda module, args, output: seen.append((output.dtype, output.is_contiguous()))
    )
    made.run(1)
    assert seen[-1] == (torch.float32, True)


def test_only_the_tuned_loop_lays_images_out_as_channels_last(tiny_case):
    case = tiny_case("kd")
    for channels_last in (False, True):
        seen = []
        networks = case.networks()
        for network in networks.values():
            network.stem.register_forward_pre_hook(
                lambda module, args, seen=seen: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
            )
        next(plain(case, networks["student"], networks["teacher"], channels_last=channels_last))
        assert seen[-2:] == [channels_last] * 2
        weight = networks["student"].stage1[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last


@pytest.mark.parametrize("name", ["plain", "torchdistill"])
def test_a_loop_of_others_has_its_teacher_frozen_and_in_eval_mode(tiny_case, name):
    if name == "torchdistill":
        pytest.importorskip("torchdistill")
    case = tiny_case("kd")
    networks = case.networks()
    teacher = networks["teacher"].train()
    before = state(teacher)
    losses = {"plain": plain, "torchdistill": torchdistill}[name](case, networks["student"], teacher)
    next(losses)
    next(losses)
    assert not ends_unlike(before, teacher)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert networks["student"].training


def test_images_come_as_torchvision_gives_them(tiny_case):
    case = tiny_case("mnist_mlp")
    images = PilImages(case)
    assert len(images) == 8
    expected = normalise(case.images, case.data.mean, case.data.std)
    for index in (0, 5):
        image, target = images[index]
        torch.testing.assert_close(image, expected[index])
        assert target == case.data.train.targets[index]


def test_images_are_augmented_where_the_workload_says_so(tiny_case):
    images = PilImages(tiny_case("kd"))
    views = {tuple(images[0][0].flatten().tolist()) for _ in range(8)}
    assert len(views) > 1
    assert images[0][0].shape == (3, 8, 8)


def test_without_torchdistill_it_is_unavailable(tiny_case, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(peer, "import_module", missing)
    networks = tiny_case("kd").networks()
    with pytest.raises(Unavailable, match="torchdistill cannot be imported: No module named"):
        torchdistill(tiny_case("kd"), networks["student"], networks["teacher"])


def test_the_version_of_torchdistill_is_told(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(peer, "version", {"torchdistill": "1.2.3"}.__getitem__)
    assert peer.installed() == "1.2.3"
    monkeypatch.setattr(peer, "version", missing)
    assert peer.installed() is None


def test_torchdistills_loop_stops_where_the_loss_is_no_number(tiny_case):
    pytest.importorskip("torchdistill")
    networks = tiny_case("kd").networks()
    networks["teacher"].head.bias.data.fill_(math.nan)
    with pytest.raises(ValueError, match="loop was broken due to loss = nan"):
        next(torchdistill(tiny_case("kd"), networks["student"], networks["teacher"]))


@pytest.mark.parametrize("variant", ["floor_live", "floor_store"])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_floor_goes_forward_and_backward_and_changes_no_weight(tiny_case, tmp_path, workload, variant):
    case = tiny_case(workload)
    made = make(variant, case, FP32, tmp_path)
    before = {name: parameter.clone() for name, parameter in made.student.named_parameters()}
    assert math.isfinite(made.run(2))
    assert all(torch.equal(before[name], parameter) for name, parameter in made.student.named_parameters())
    reached = {name for name, parameter in made.student.named_parameters() if parameter.grad is not None}
    unused = ("stage3", "head") if workload == "hint" else ()
    assert reached == {name for name, _ in made.student.named_parameters() if not name.startswith(unused)}


@pytest.mark.parametrize(("workload", "runs"), [("kd", True), ("hint", False)])
def test_a_floor_runs_its_networks_only_as_far_as_the_stage_needs(tiny_case, workload, runs):
    case = tiny_case(workload)
    ran = []
    networks = case.networks()
    for name, network in networks.items():
        network.head.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
    losses = floor(case, networks["student"], networks["teacher"], bf16=False)
    next(losses)  # the networks are made ready with the first step
    ran.clear()
    next(losses)
    assert ran == (["teacher", "student"] if runs else [])


def test_the_floor_of_a_store_does_not_run_the_teacher(tiny_case, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.speed.floors.fastest", lambda *given: pytest.fail("a teacher was made ready"))
    make("floor_store", tiny_case("kd"), FP32, tmp_path).run(1)


def test_the_fastest_teacher_gives_the_same_without_its_norms(tiny_case):
    case = tiny_case("kd")
    inputs = normalise(case.images, case.data.mean, case.data.std)
    quick = fastest(case.teacher, inputs[:2], torch.float32)
    assert any(isinstance(module, nn.BatchNorm2d) for module in case.teacher.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in quick.modules())
    with torch.no_grad():
        torch.testing.assert_close(quick(inputs), case.teacher(inputs), rtol=1e-4, atol=1e-4)
    assert quick.stem.conv.weight.is_contiguous(memory_format=torch.channels_last)
    low = fastest(upto(case.teacher, "stage2"), inputs[:2], torch.bfloat16)
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}


class Counted:
    """Two batches an epoch, numbered on."""

    samples = 8

    def __len__(self):
        return 2

    def __call__(self, epoch):
        yield from (2 * epoch, 2 * epoch + 1)

    def sweep(self):
        return ["swept"]

    def example_inputs(self):
        return "few"


def test_a_window_goes_on_where_the_last_one_ended():
    window = Window(Counted())
    window.steps = 3
    assert len(window) == 3
    assert list(window(0)) == [0, 1, 2]
    window.steps = 1
    assert list(window(1)) == [3]
    window.steps = 4
    assert list(window(2)) == [4, 5, 6, 7]
    assert (window.samples, window.sweep(), window.example_inputs()) == (8, ["swept"], "few")


def test_limbecks_loop_runs_as_many_steps_as_it_is_told(tiny_case):
    case = tiny_case("kd")
    networks = case.networks()
    ran = []
    networks["student"].register_forward_hook(lambda module, args, output: ran.append(len(output)))
    own = LimbeckLoop(case, networks, FP32)
    for steps in (1, 3, 2):
        ran.clear()
        own(steps)
        assert [count for count in ran if count == 4] == [4] * steps  # besides the few that layouts are tried on


def test_the_store_takes_the_teachers_place(tiny_case, tmp_path):
    case = tiny_case("at")
    networks = case.networks()
    own = LimbeckLoop(case, networks, FP32, tmp_path / "store")
    networks["teacher"].forward = lambda inputs: pytest.fail("the teacher ran")
    assert math.isfinite(own(2))
    assert any((tmp_path / "store").iterdir())


def test_the_engine_is_what_a_run_with_auto_gets(tiny_case):
    engine = pick_engine(tiny_case("kd"))
    assert engine.device.type == "cpu"
    assert engine.precision in ("32", "bf16")
    assert engine.compile is False


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_the_compiled_variant_asks_for_compilation(tiny_case, tmp_path, monkeypatch, precision):
    asked = []

    def compiling(**options):
        asked.append(options)
        return make_engine(**{**options, "compile": False})

    monkeypatch.setattr(limbeck_loop, "make_engine", compiling)
    picked = {"32": FP32, "bf16": BF16}[precision]
    assert math.isfinite(make("live_compiled", tiny_case("mnist_mlp"), picked, tmp_path).run(1))
    assert asked == [{"device": "cpu", "precision": precision, "compile": True}]


def test_without_a_compiler_the_compiled_variant_is_unavailable(tiny_case, tmp_path, monkeypatch):
    def refusing(**options):
        raise LimbeckError("there is no compiler")

    monkeypatch.setattr(limbeck_loop, "make_engine", refusing)
    with pytest.raises(Unavailable, match="there is no compiler"):
        make("live_compiled", tiny_case("kd"), FP32, tmp_path)


def test_there_is_no_other_variant(tiny_case, tmp_path):
    with pytest.raises(ValueError, match="no variant 'fast'"):
        make("fast", tiny_case("kd"), FP32, tmp_path)
    assert len(set(VARIANTS)) == len(VARIANTS) == 8
