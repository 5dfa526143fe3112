"""Several processes train the networks that one process trains, up to the order of sums."""

import os
import socket
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from torch.distributed.tensor import DTensor

import limbeck
from limbeck.core import Batch, LimbeckError
from limbeck.data.dividing import part_of
from limbeck.experiment.measuring import outputs_of
from limbeck.experiment.plan import plan
from limbeck.experiment.several import divided
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods import METHODS
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.recipe.blocks import TeacherBlock
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run
from limbeck.train.processes import ONE, Processes, processes
from limbeck.train.regime import Regime
from limbeck.train.shard import division, shard

CASES = {
    "kd": {},
    "fitnets": {"hint_epochs": 1},
    "fsp": {"fsp_epochs": 1},
    "class_distance": {},
    "srrl": {},
    "crd": {},
    "rkd": {},
}
NETWORKS = (("resnet14", {}), ("resnet8", {}))
MLPS = (("mlp", {"hidden": (6,)}), ("mlp", {"hidden": (4,)}))


class Double:
    """Batches in 64 bits."""

    def __init__(self, batches):
        self._batches, self.samples = batches, batches.samples

    def __len__(self):
        return len(self._batches)

    def __call__(self, epoch):
        return map(self._double, self._batches(epoch))

    def sweep(self):
        return map(self._double, self._batches.sweep())

    def example_inputs(self):
        return self._batches.example_inputs().double()

    def _double(self, batch: Batch):
        return replace(batch, inputs=batch.inputs.double())


def weights(method, options, ours, *, networks=NETWORKS, size=8, accumulate=1, sharded=False):
    """The student's weights; 21 samples are not a multiple of the batch or of the processes."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (21, 3, 8, 8), generator=generator, dtype=torch.uint8)
    targets = torch.arange(21) % 3
    data = limbeck.arrays(images, targets, validation=0, test_set=(images, targets))
    teacher, student = (build(name, classes=3, shape=(3, 8, 8), **more) for name, more in networks)
    engine = replace(make_engine(device="cpu", precision="32"), processes=ours)
    training = Training(1, size, sgd(lr=0.05, momentum=0.9), constant(), regime=Regime(accumulate=accumulate))
    roles = {"student": student, "teacher": teacher}
    stages = plan(partial(METHODS[method], **options), roles, data, training)
    for module in (*roles.values(), *(loss for stage in stages for loss in stage.losses)):
        module.double()
    batches = Double(training_batches(data, training, seed=3, engine=engine))
    if sharded:
        few = batches.example_inputs()
        shard(teacher, few, division(teacher, few), engine.device)
    for _ in run(stages, roles, batches, engine, regime=training.regime):
        pass
    return {name: value.clone() for name, value in student.state_dict().items()}


def evaluated(ours):
    """Outputs of a network that several processes divide, on samples that they cannot share evenly; what one holds."""
    torch.manual_seed(0)
    network, images = build("resnet8", classes=3, shape=(3, 8, 8)), torch.rand(20, 3, 8, 8)
    data = limbeck.arrays(images, torch.arange(20) % 3, validation=0, test_set=(images, torch.arange(20) % 3))
    engine = replace(make_engine(device="cpu", precision="32"), processes=ours)
    if ours.count > 1:
        divided(network, TeacherBlock(weights=["teacher.safetensors"], shard=True), data, engine)
    held = sum(one.to_local().numel() if isinstance(one, DTensor) else one.numel() for one in network.parameters())
    return outputs_of(network, data.test, data, engine), held


class Lends(nn.Module):
    """Uses the weight of a layer outside of the layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, inputs):
        return self.layer(inputs) @ self.layer.weight


NORMS = (
    lambda: nn.BatchNorm2d(4),
    lambda: nn.BatchNorm2d(4, momentum=None, affine=False),
    lambda: nn.BatchNorm2d(4, track_running_stats=False),
    lambda: nn.BatchNorm2d(4),  # of inputs in bfloat16
)


def normalised(number, ours):
    """Outputs, gradients and statistics of a BatchNorm on the part of a process."""
    torch.manual_seed(0)
    norm = NORMS[number]()
    kind = torch.bfloat16 if number == 3 else torch.float32
    whole, weights = (4 + 0.5 * torch.randn(7, 4, 3, 3)).to(kind), torch.randn(7, 4, 3, 3)
    own = part_of(7, ours.rank, ours.count)
    with ours.synchronised([norm]):
        for _ in range(2):
            inputs = whole[own].clone().requires_grad_()
            outputs = norm(inputs)
            (outputs.float() * weights[own]).sum().backward()
    assert "forward" not in norm.__dict__
    return outputs.float(), inputs.grad.float(), {name: value.float() for name, value in norm.state_dict().items()}


def added(ours):
    """Gradients after a batch that is not averaged, and after the next one; and a buffer that is then copied."""
    step = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Identity())
    step.register_buffer("place", torch.tensor(ours.rank))
    averaged = ours.averaged(step, step[1])
    with ours.unaveraged(averaged):
        averaged(torch.full((1, 1), ours.rank + 1.0)).sum().backward()
    first = step[0].weight.grad.item()
    step.place.fill_(ours.rank)
    averaged(torch.full((1, 1), 10.0)).sum().backward()
    return first, step[0].weight.grad.item(), step.place.item()


def one_of_several(rank, count, port, cases, folder):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with processes("cpu", os.getppid()) as ours:
        found = {method: weights(method, options, ours) for method, options in cases.items()}
        found["accumulated"] = weights("kd", {}, ours, networks=MLPS, accumulate=2)
        found["sharded"] = weights("fitnets", CASES["fitnets"], ours, sharded=True)
        outputs, held = evaluated(ours)
        lends = Lends()
        with pytest.raises(LimbeckError, match=r"cannot be divided among processes: .* DTensor"):
            shard(lends, torch.rand(2, 4), division(lends, torch.rand(2, 4)), torch.device("cpu"))
        norms = [normalised(number, ours) for number in range(len(NORMS))]
        assert added(ours) == pytest.approx((rank + 1, 12, 0))  # of 3 processes
    torch.save((found, norms, outputs, held), f"{folder}/{rank}.pt")


def test_several_processes_train_the_weights_of_one(tmp_path):
    count = 3
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_several, (count, port, CASES, str(tmp_path)), nprocs=count)
    found, norms, outputs, held = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(count)), strict=True)
    whole = {method: weights(method, options, ONE) for method, options in CASES.items()}
    whole["sharded"] = whole["fitnets"]
    whole["accumulated"] = weights("kd", {}, ONE, networks=MLPS, size=16)  # one large batch
    for method, alone in whole.items():
        for other in found:
            for name, value in alone.items():
                torch.testing.assert_close(other[method][name], value, rtol=1e-9, atol=1e-9, msg=f"{method} {name}")
    expected, parameters = evaluated(ONE)
    assert all(part < 1.1 * parameters / count for part in held)
    for other in outputs:
        torch.testing.assert_close(other, expected)
    for number in range(len(NORMS)):
        *whole, state = normalised(number, ONE)
        close = {"rtol": 0.02, "atol": 0.05} if number == 3 else {"rtol": 1e-5, "atol": 1e-5}
        for place, one in enumerate(whole):
            torch.testing.assert_close(torch.cat([parts[number][place] for parts in norms]), one, **close)
        for parts in norms:
            torch.testing.assert_close(parts[number][2], state, **close)


def test_the_gradient_of_a_norm_in_bfloat16_is_off_by_its_rounding():
    """Inputs far from 0: the terms of the gradient, each many times larger than it, are not added in bfloat16."""
    norm, exact = nn.BatchNorm2d(16), nn.BatchNorm2d(16).double()
    inputs = (100 + torch.randn(16, 16, 8, 8)).bfloat16().requires_grad_()
    same = inputs.detach().double().requires_grad_()
    weights = torch.randn(16, 16, 8, 8).bfloat16()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with Processes(0, 2).synchronised([norm]):
            (norm(inputs) * weights).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    (exact(same) * weights.double()).sum().backward()
    assert (inputs.grad.double() - same.grad).norm() < 2**-8 * same.grad.norm()


def test_a_norm_with_an_activation_is_not_synchronised_without_it():
    timm = pytest.importorskip("timm.layers")
    message = r"BatchNormAct2d has a forward of its own: set train\.sync_batch_norm to false"
    with pytest.raises(LimbeckError, match=message), Processes(0, 2).synchronised([timm.BatchNormAct2d(4)]):
        pass


def test_a_norm_that_two_networks_share_is_synchronised_once():
    norm = nn.BatchNorm2d(4)
    with Processes(0, 2).synchronised([norm, nn.Sequential(norm)]):
        assert "forward" in norm.__dict__
    assert "forward" not in norm.__dict__


def test_torchrun_may_have_started_processes_that_fit_the_device(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LimbeckError, match="several processes need device: cpu or cuda"), processes("mps", 0):
        pass
