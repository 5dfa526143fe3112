"""Every variant does the work that it is said to do: the same images, the same optimizer, the same operations."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import floors, limbeck_loop, variants
from benchmarks.speed.floors import fastest, floor
from benchmarks.speed.limbeck_loop import training_of
from benchmarks.speed.peer import Unavailable
from benchmarks.speed.variants import make
from benchmarks.speed.workloads import MOMENTUM, RATE, WEIGHT_DECAY, WORKLOADS, prepare, upto
from limbeck.data import Augment, normalise
from limbeck.train.engine import make_engine

FP32 = make_engine(device="cpu", precision="32")
TRAINING = ("plain", "plain_tuned", "torchdistill", "live", "store")


@pytest.fixture
def ready(tmp_path):
    """A variant of a case, or a test that is skipped because torchdistill is not there or has no such method."""

    def build(name, case):
        if name == "torchdistill":
            pytest.importorskip("torchdistill")
        return make(name, case, FP32, tmp_path)

    return build


def given(network, seen):
    """Note what the network is given: samples, type, layout, whether it is in training mode, types of its weights."""

    def note(module, args):
        (inputs,) = args
        weights = [weight for weight in module.parameters() if weight.dim() == 4]
        laid_out = all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
        layout = inputs.is_contiguous(memory_format=torch.channels_last)
        modes = {part.training for part in module.modules()}
        seen.append((len(inputs), inputs.dtype, layout, laid_out, modes, {one.dtype for one in module.parameters()}))

    network.register_forward_pre_hook(note)


@pytest.mark.parametrize(("bf16", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_a_floor_runs_whole_batches_in_its_fastest_form(tiny_case, monkeypatch, bf16, dtype):
    case = tiny_case("kd")
    networks, taught, learnt = case.networks(), [], []

    def watched(*asked):
        quick = fastest(*asked)
        given(quick, taught)
        return quick

    monkeypatch.setattr(floors, "fastest", watched)
    given(networks["student"], learnt)
    next(floor(case, networks["student"], networks["teacher"], bf16=bf16))
    assert taught == [(4, dtype, True, True, {False}, {dtype})]
    assert learnt == [(4, torch.float32, True, True, {True}, {torch.float32})]  # autocast casts


@pytest.mark.parametrize(("precision", "bf16"), [("32", False), ("bf16", True)])
@pytest.mark.parametrize(("variant", "teacher"), [("floor_live", True), ("floor_store", False)])
def test_a_floor_has_the_precision_that_was_picked(tiny_case, tmp_path, monkeypatch, variant, teacher, precision, bf16):
    asked = []

    def recorded(case, student, teacher, *, bf16):
        asked.append((teacher is not None, bf16))
        yield 0.0

    monkeypatch.setattr(variants, "floor", recorded)
    make(variant, tiny_case("mnist_mlp"), make_engine(device="cpu", precision=precision), tmp_path).run(1)
    assert asked == [(teacher, bf16)]


def test_a_teacher_that_keeps_a_norm_is_no_floor():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)).eval()
    with pytest.raises(RuntimeError, match="keeps BatchNorms that should be folded: 0"):
        fastest(network, torch.randn(2, 3, 4, 4), torch.float32)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_limbeck_trains_as_the_workload_says(tiny_case, workload):
    training = training_of(tiny_case(workload))
    assert training.augment == WORKLOADS[workload].augment
    assert training.batch_size == 4


@pytest.mark.parametrize("variant", TRAINING)
def test_every_loop_shuffles_crops_and_mirrors(tiny, ready, variant):
    """Of the images with a black edge of one pixel, all nine cuts, as they are and mirrored, and nothing else."""
    case = prepare(replace(tiny("kd"), augment=Augment(crop=1, flip=True), batch_size=64))
    padded = F.pad(case.images, (1, 1, 1, 1))
    cuts = [padded[:, :, top : top + 8, left : left + 8] for top in range(3) for left in range(3)]
    views = torch.stack([*cuts, *(cut.flip(3) for cut in cuts)], dim=1)  # (n, 18, C, H, W)
    expected = normalise(views.flatten(0, 1), case.data.mean, case.data.std).flatten(1)
    seen = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = ready(variant, case)
        made.student.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(1)))
        made.run(6)  # three epochs
    images = torch.cat([batch for batch in seen if len(batch) == 64])  # besides the few that layouts are tried on
    assert len(images) == 6 * 64
    distance, nearest = torch.cdist(images, expected).min(dim=1)
    assert distance.max() < 0.05
    assert set((nearest % 18).tolist()) == set(range(18))
    order = (nearest // 18).tolist()
    first, second = order[:128], order[128:256]
    assert sorted(first) == sorted(second) == list(range(128))
    assert first != second


@pytest.mark.parametrize("workload", ["kd", "srrl"])
@pytest.mark.parametrize("variant", TRAINING)
def test_every_loop_has_the_same_optimizer(tiny_case, ready, workload, variant):
    groups = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, args, options: groups.extend(optimizer.param_groups))
    case = tiny_case(workload)
    try:
        made = ready(variant, case)
        groups.clear()
        made.run(1)
    except Unavailable:
        assert (workload, variant) == ("srrl", "torchdistill")
        return
    finally:
        hook.remove()
    names = ("lr", "momentum", "weight_decay", "dampening", "nesterov")
    assert {tuple(group[name] for name in names) for group in groups} == {(RATE, MOMENTUM, WEIGHT_DECAY, 0, False)}
    trained = sorted(tuple(parameter.shape) for group in groups for parameter in group["params"])
    connector = [(64,), (64,), (64, 64, 1, 1)] if workload == "srrl" else []
    assert trained == sorted([*(tuple(parameter.shape) for parameter in case.student.parameters()), *connector])


def count(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("variant", [*TRAINING, "floor_live", "floor_store"])
def test_a_step_has_the_operations_that_it_needs(tiny_case, ready, workload, variant):
    case = tiny_case(workload)
    inputs = torch.randn(4, *case.workload.shape)

    def forward(network):
        with torch.no_grad():
            return count(lambda: network(inputs))

    networks = case.networks()
    teacher, student = (upto(networks[name], case.workload.ends) for name in ("teacher", "student"))
    taught, learnt = forward(teacher), count(lambda: student.train()(inputs).sum().backward())
    # A 1x1 convolution forward, and backward to its inputs and weights; the teacher's head, which is not trained.
    connector = {"hint": 6 * 4 * 4 * 4 * 32 * 32, "srrl": 6 * 4 * 2 * 2 * 64 * 64 + 4 * 4 * 64 * 3}.get(workload, 0)
    expected = {
        "plain": taught + learnt + connector,
        "torchdistill": taught + learnt + connector,
        "live": taught + learnt + connector,
        "store": learnt + connector,
        "floor_live": taught + learnt,
        "floor_store": learnt,
    }
    if workload == "hint":  # as people write it, the layers above run too
        expected["plain"] += forward(networks["teacher"]) - taught + forward(networks["student"]) - forward(student)
    if workload == "at":  # its loss reads no logits of the teacher
        expected["live"] -= 2 * 4 * 64 * 3
    expected["plain_tuned"] = expected["plain"]
    try:
        made = ready(variant, case)
    except Unavailable:
        assert (workload, variant) == ("srrl", "torchdistill")
        return
    made.run(1)  # networks are made ready with the first step
    assert count(lambda: made.run(2)) == 2 * expected[variant]


def test_only_building_the_store_is_timed_as_the_stores_cost(tiny_case, tmp_path, monkeypatch):
    passed = [0.0]

    def lasting(name, seconds):
        work = getattr(limbeck_loop, name)

        def run(*asked, **options):
            passed[0] += seconds
            return work(*asked, **options)

        monkeypatch.setattr(limbeck_loop, name, run)

    for name, seconds in (("build_now", 7.0), ("first_stage", 100.0), ("training_batches", 100.0), ("run", 100.0)):
        lasting(name, seconds)
    monkeypatch.setattr(limbeck_loop.time, "perf_counter", lambda: passed[0])
    made = make("store", tiny_case("mnist_mlp"), FP32, tmp_path)
    assert (made.store_seconds, passed[0]) == (7.0, 307.0)
    assert make("live", tiny_case("mnist_mlp"), FP32, tmp_path).store_seconds == 0.0
