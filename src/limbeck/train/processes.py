"""Several processes that train the same networks, each on its part of every batch; torchrun starts them.

Each process runs the networks on its part. What the losses read is then gathered, so that each process computes the
losses of the whole batch, and their gradients for its own part. Every loss thus gets what it gets in one process: also
one that compares the samples of a batch, remembers them, or contains a BatchNorm. Gradients are averaged by
`torch.nn.parallel.DistributedDataParallel`, statistics of BatchNorm are those of the whole batch.

Only this module and `shard` know of `torch.distributed`.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from limbeck.core import LimbeckError
from limbeck.data.dividing import part_of
from limbeck.data.keys import key

Value = TypeVar("Value")

PATIENCE = timedelta(hours=2)
"""How long a process waits for another, such as for the first one, which measures latencies."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: the number of this process; the first one, 0, writes and prints.
        count: of all processes.
        restarted: whether torchrun has started them again after a failure.
    """

    rank: int = 0
    count: int = 1
    restarted: bool = False

    def gather(self, own: Tensor, total: int) -> Tensor:
        """The tensors (n, ...) of all processes in the order of their ranks, (total, ...).

        `limbeck.data.dividing.part_of` gives n. The gradient of ``own`` is ``count`` times its part, because the
        gradients of weights are averaged afterwards.
        """
        if self.count == 1:
            return own
        gathered: Tensor = _Gather.apply(own, total, self)
        return gathered

    def first(self, make: Callable[[], Value]) -> Value:
        """Run ``make`` in the first process, and return its result in every process. If it fails, the others exit."""
        if self.count == 1:
            return make()
        held: list[Any] = [None, None]
        if self.rank == 0:
            try:
                held[0] = make()
            except Exception as error:
                _tell([None, getattr(error, "exit_code", 1)])
                raise
        _tell(held)
        if held[1] is not None:
            raise SystemExit(held[1])
        made: Value = held[0]
        return made

    @contextmanager
    def one_by_one(self) -> Iterator[None]:
        """The first process enters the block alone; the others enter it when the first has left it."""
        if self.rank or self.count == 1:
            self.first(lambda: None)
            yield
            return
        try:
            yield
        except Exception as error:
            _tell([None, getattr(error, "exit_code", 1)])
            raise
        _tell([None, None])

    def averaged(self, step: nn.Module, losses: nn.Module) -> nn.Module:
        """A module that runs ``step``, and averages the gradients of its parameters over the processes.

        Before each step, the buffers of the first process are copied to the others, except those of the ``losses`` in
        ``step``, which are the same in all of them.
        """
        if self.count == 1:
            return step
        name = next(name for name, module in step.named_modules() if module is losses)
        ignored = [f"{name}.{buffer}" for buffer, _ in losses.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
            step, ignored
        )
        return DistributedDataParallel(step, find_unused_parameters=True)

    @contextmanager
    def unaveraged(self, step: nn.Module) -> Iterator[None]:
        """Inside the block, the gradients of an `averaged` module are added up. The next step averages them."""
        if not isinstance(step, DistributedDataParallel):
            yield
            return
        with step.no_sync():
            yield
        step.require_forward_param_sync = True  # no_sync would also keep the next step from copying the buffers

    @contextmanager
    def synchronised(self, networks: Iterable[nn.Module]) -> Iterator[None]:
        """Inside the block, BatchNorms in training mode use the mean and the variance of the whole batch.

        Raises:
            LimbeckError: a BatchNorm is of a class with a forward of its own.
        """
        modules = dict.fromkeys(one for network in networks for one in network.modules())  # networks may share some
        norms = [one for one in modules if isinstance(one, _BatchNorm)]
        with ExitStack() as restored:
            for norm in norms if self.count > 1 else ():
                if type(norm).forward is not _BatchNorm.forward or "forward" in norm.__dict__:
                    kind = type(norm).__name__
                    raise LimbeckError(f"{kind} has a forward of its own: set train.sync_batch_norm to false")
                restored.callback(norm.__dict__.pop, "forward")
                norm.__dict__["forward"] = partial(_normalised, norm)
            yield

    @contextmanager
    def own_generators(self, device: torch.device, *place: int) -> Iterator[None]:
        """Inside the block, each process draws other numbers, such as for dropout: a function of seed, place and rank.

        Otherwise all processes draw the same numbers.
        """
        if self.count == 1:
            yield
            return
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(key(torch.initial_seed(), self.rank, *place))
            yield


ONE = Processes()


@contextmanager
def processes(device: str, launcher: int) -> Iterator[Processes]:
    """The processes that torchrun has started, inside the block; or this one alone.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``, of which each process gets its own.
        launcher: the parent process when this one started. If it is torchrun and ends early, this process ends, too.

    Raises:
        LimbeckError: there are fewer GPUs than processes on this machine, or another device is asked for.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ONE
        return
    cuda = device in ("auto", "cuda") and torch.cuda.is_available()
    if device == "mps" or (device == "auto" and not cuda and torch.backends.mps.is_available()):
        raise LimbeckError("several processes need device: cpu or cuda")
    if cuda:
        place, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if place >= there:
            raise LimbeckError(f"process {place} of this machine has no GPU: there are {there}")
        torch.cuda.set_device(place)
    ended = threading.Event()
    if torch.distributed.is_torchelastic_launched():
        threading.Thread(target=_end_with, args=(launcher, ended), daemon=True).start()
    try:
        store, rank, count = next(rendezvous("env://", timeout=PATIENCE))
        restarts = torch.tensor(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))  # nodes count differently
        if os.environ.get("GROUP_WORLD_SIZE") == "1":  # torchrun's store still has the addresses of failed processes
            store = PrefixStore(f"restart{restarts}", store)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
        torch.distributed.all_reduce(restarts)
        yield Processes(rank, count, restarts.item() > 0)
        torch.distributed.destroy_process_group()  # not after an error, when the others may be in a collective
    finally:
        ended.set()


def _end_with(launcher: int, ended: threading.Event) -> None:
    """End this process when torchrun was killed, or it would write to the folder of the run that is resumed."""
    while not ended.wait(0.5):
        if os.getppid() != launcher:
            os._exit(1)


def _tell(held: list[Any]) -> None:
    """Replace the list in each process by that of the first."""
    torch.distributed.broadcast_object_list(held, src=0)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, own: Tensor, total: int, ours: Processes) -> Tensor:
        """Gathers."""
        context.place, context.count = part_of(total, ours.rank, ours.count), ours.count
        most, short = -(-total // ours.count), -(-total // ours.count) - len(own)
        own = torch.cat([own, own.new_zeros(short, *own.shape[1:])]) if short else own.contiguous()
        every = [torch.empty_like(own) for _ in range(ours.count)]
        torch.distributed.all_gather(every, own)
        sizes = [one.stop - one.start for one in (part_of(total, rank, ours.count) for rank in range(ours.count))]
        return torch.cat([one[:size] if size < most else one for one, size in zip(every, sizes, strict=True)])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The part of this process."""
        return gradients[0][context.place] * context.count, None, None


def _normalised(norm: _BatchNorm, inputs: Tensor) -> Tensor:
    """The forward of a BatchNorm over all processes."""
    if not norm.training:
        return type(norm).forward(norm, inputs)
    norm._check_input_dim(inputs)  # type: ignore[no-untyped-call]
    kind = torch.promote_types(inputs.dtype, torch.float32)
    with torch.no_grad():
        mean, variance = torch.batch_norm_update_stats(inputs.to(kind), None, None, 0.0)  # a third of var_mean's time
        count = mean.new_full((1,), inputs.numel() // len(mean), dtype=torch.float64)
        own = torch.cat([count, mean.double(), variance.double()])
        every = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(every, own)
        counts, means, variances = torch.split(torch.stack(every), [1, len(mean), len(mean)], dim=1)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean).square())).sum(0) / total
        if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
            share = norm.momentum or 0.0
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
                share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else share
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
            norm.running_var.lerp_((variance * total / (total - 1)).to(norm.running_var.dtype), share)
        weight = mean.new_ones(len(mean), dtype=kind) if norm.weight is None else norm.weight
        bias = mean.new_zeros(len(mean), dtype=kind) if norm.bias is None else norm.bias
    normalised: Tensor = _Normalise.apply(
        inputs, weight, bias, mean.to(kind), variance.to(kind), total.to(kind), norm.eps
    )
    return normalised


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        total: Tensor,
        eps: float,
    ) -> Tensor:
        """Normalises (N, C, ...) with this mean and variance (C,) of ``total`` values in each channel."""
        context.save_for_backward(inputs, weight, mean, variance, total)
        context.eps = eps
        return F.batch_norm(inputs, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of normalisation with fixed statistics, less what the statistics contribute.

        With y = (x - mean) / deviation: dx = w / deviation * (dz - mean(dz) - y * mean(dz * y)).
        """
        inputs, weight, mean, variance, total = context.saved_tensors
        fixed, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], inputs, weight, mean, variance, None, None, False, context.eps, [True, True, True]
        )
        sums = torch.cat([of_weight, of_bias])
        torch.distributed.all_reduce(sums)
        through_deviation, through_mean = (sums / total).chunk(2)
        inverse = (variance + context.eps).rsqrt()
        slope = weight * inverse.square() * through_deviation
        constant = weight * inverse * through_mean - slope * mean
        shape = [1, -1, *[1] * (inputs.dim() - 2)]
        whole = fixed.to(slope.dtype).addcmul_(inputs, slope.view(shape), value=-1)  # not in bf16: the terms cancel
        whole = whole.sub_(constant.view(shape)).to(fixed.dtype)
        return whole, of_weight, of_bias, None, None, None, None
