"""Compiled forms of a frozen network's reading and of a term's loss. Making one takes seconds."""

from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from limbeck.core import Batch, LimbeckError, Loss, Tap
from limbeck.taps import Taps

ROUNDING = 1e-3, 5e-2
"""The length of the difference that is rounding, as a share of the tensor's length; in 32 bits and in bfloat16.

Of 50 networks of up to 110 layers the tensors under autocast to bfloat16 were 0.003 to 0.022 off those in 32 bits.
"""

GRAPHS = 2
"""Made of a loss before it is left as it is: each takes seconds, and a loss that needs a third will need more."""

Read = Callable[[Tensor], Mapping[Tap, Tensor]]
"""A batch's inputs to the taps' tensors."""


class CannotCompile(LimbeckError):
    """What the compiler refused, and why."""


def compiled_reader(network: nn.Module, inputs: Tensor, taps: Iterable[Tap]) -> Read:
    """A function of a batch's inputs that gives the taps' tensors through one compiled graph.

    What is above the last tap is not in the graph, and the weights are constants to the compiler: they must not change
    afterwards. Batches of another size or layout than ``inputs``, or under another autocast, run the network as it is,
    because a last smaller batch is not worth a second compilation.

    Make it where it will be used: under the same autocast, and outside a `Taps` block.

    Args:
        network: frozen and in eval mode, such as `limbeck.train.fuse.fuse` gives; left as it is.
        inputs: (N, ...) inputs of a full batch, on the network's device.
        taps: what to read of it.

    Raises:
        CannotCompile: the network's code cannot be one graph, there is no working compiler, or the compiled tensors
            differ from the network's by more than rounding.
        LimbeckError: a tap does not exist or has no one value.
    """
    wanted = tuple(dict.fromkeys(taps))
    expected = as_it_is(network, inputs, wanted)
    try:
        graph = _compiled(traced(network, inputs, wanted))
        with torch.no_grad():
            found = dict(zip(wanted, graph(inputs), strict=True))
    except Exception as error:  # the network may be the user's, and the compiler raises many kinds
        raise CannotCompile(f"the network cannot be compiled: {reason(error)}") from error
    check_alike(expected, found, low=torch.is_autocast_enabled(inputs.device.type))
    kind = _kind(inputs)

    def read(given: Tensor) -> Mapping[Tap, Tensor]:
        if _kind(given) != kind:
            return as_it_is(network, given, wanted)
        with torch.no_grad():
            return dict(zip(wanted, graph(given), strict=True))

    return read


def compiled_on_maps(loss: Loss) -> Loss:
    """A `compiled_loss` in calls that read feature maps, the loss in others, where compiling gains nothing."""
    fast = compiled_loss(loss)

    def evaluate(*reads: Tensor) -> Tensor:
        return fast(*reads) if any(read.dim() > 2 for read in reads) else loss(*reads)

    return evaluate


def compiled_loss(loss: Loss) -> Loss:
    """A function that gives what the loss gives, forward and backward, through one compiled graph.

    The loss itself is left as it is: a module stays the owner of its parameters and state, and is what learns, is
    copied and is saved. Compiled at the first call, for that call's shapes. Random numbers are those of the loss as it
    is. The loss runs as it is in calls with other shapes, such as for a last smaller batch; and always where its code
    cannot be one graph, such as with a loop over the classes in a batch, because the pieces would gain nothing; or
    where more than `GRAPHS` would be needed, such as with a number of its own that counts the calls.

    Raises:
        CannotCompile: at the first call, the compiler is missing or fails.
    """
    from torch._dynamo import config  # takes seconds
    from torch._dynamo.exc import BackendCompilerFailed

    def call(*reads: Tensor) -> Tensor:
        return loss(*reads)

    # The compiler counts what it has made by code, and stops at a number: each loss has code of its own.
    own = FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    compiled: Loss = torch.compile(own, fullgraph=True, dynamic=False, options={"fallback_random": True})
    first: list[list[torch.Size]] = []
    few = config.patch(recompile_limit=GRAPHS)

    def evaluate(*reads: Tensor) -> Tensor:
        shapes = [read.shape for read in reads]
        first[:] = first or [shapes]
        if shapes == first[0]:
            try:
                with few:
                    return compiled(*reads)
            except BackendCompilerFailed as error:
                raise CannotCompile(f"a loss cannot be compiled: {reason(error)}") from error
            except Exception:  # the tracer raises many kinds, before anything has run; what the loss raises comes again
                first[0] = []  # which no call has
        return loss(*reads)

    return evaluate


def as_it_is(network: nn.Module, inputs: Tensor, taps: tuple[Tap, ...]) -> dict[Tap, Tensor]:
    """The taps' tensors of one network by a plain run."""
    with torch.no_grad(), Taps({tap.source: network for tap in taps}, taps) as tapped:
        return _read(tapped, inputs, taps)


def traced(network: nn.Module, inputs: Tensor, taps: tuple[Tap, ...]) -> ExportedProgram:
    """The reading of the taps of one network as a graph, for inputs of this shape; raises whatever the tracer does."""
    networks = {tap.source: network for tap in taps}
    with torch.no_grad(), Taps(networks, taps, to_the_end=True) as tapped:  # the tracer minds a run that breaks off
        return torch.export.export(_Reading(network, tapped, taps), (inputs,), strict=False)


def check_alike(expected: Mapping[Tap, Tensor], found: Mapping[Tap, Tensor], *, low: bool) -> None:
    """Raise CannotCompile where a tensor is not the expected one up to `ROUNDING`, in low precision or not."""
    share = ROUNDING[low]
    for tap, one in expected.items():
        other = found[tap]
        off = torch.linalg.vector_norm(one.double() - other.double()) if one.shape == other.shape else torch.inf
        if one.dtype != other.dtype or not off <= share * torch.linalg.vector_norm(one.double()):
            raise CannotCompile(f"compiled, {tap} is not what the network gives")


def reason(error: Exception) -> str:
    """An error as a line: its kind and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


class _Reading(nn.Module):
    """The taps' tensors as a module's output, which is the form that can be traced."""

    def __init__(self, network: nn.Module, tapped: Taps, taps: tuple[Tap, ...]) -> None:
        super().__init__()
        self.network = network
        self._tapped, self._taps = tapped, taps

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(_read(self._tapped, inputs, self._taps).values())


def _compiled(program: ExportedProgram) -> Callable[..., Any]:
    """The graph, compiled when it first runs, which is here: freezing is on for as long."""
    from torch._inductor import config  # takes seconds

    graph: Callable[..., Any] = torch.compile(program.module(), fullgraph=True, dynamic=False)
    (inputs,), _ = program.example_inputs
    # Freezing as an option of torch.compile comes too late for the weights to be taken as constants.
    with torch.no_grad(), config.patch(freezing=True):
        graph(inputs)
    return graph


def _read(tapped: Taps, inputs: Tensor, taps: tuple[Tap, ...]) -> dict[Tap, Tensor]:
    found = tapped.read(Batch(inputs, inputs, inputs, 0))
    return {tap: found[tap] for tap in taps}


def _kind(inputs: Tensor) -> tuple[Any, ...]:
    """All that the compiled graph is made for."""
    device = inputs.device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return inputs.shape, inputs.stride(), inputs.dtype, inputs.device, autocast
