"""Compiled readers of frozen networks, and compiled losses. Compiling one takes seconds."""

from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from limbeck.core import Batch, LimbeckError, Loss, Tap
from limbeck.taps import Taps

ROUNDING = 1e-3, 5e-2
"""The largest difference that counts as rounding, relative, in the 2-norm; in 32 bits and in bfloat16.

The tensors of 50 networks of up to 110 layers differ by 0.003 to 0.022 between 32 bits and autocast to bfloat16.
"""

GRAPHS = 2
"""Graphs compiled of one loss at most: each takes seconds, and a loss that needs a third will need more."""

Read = Callable[[Tensor], Mapping[Tap, Tensor]]
"""From a batch's inputs to the taps' tensors."""


class CannotCompile(LimbeckError):
    """A network or a loss cannot be compiled."""


def compiled_reader(network: nn.Module, inputs: Tensor, taps: Iterable[Tap]) -> Read:
    """A function of a batch's inputs that gives the taps' tensors through one compiled graph.

    The graph ends at the last tap. The weights are constants to the compiler, so they must not change afterwards.
    Batches of another size or memory format than ``inputs``, or under another autocast, run the network uncompiled,
    because a smaller last batch is not worth a second compilation.

    Call this under the autocast under which batches will be read, and outside a `Taps` block.

    Args:
        network: frozen and in eval mode, such as `limbeck.train.fuse.fuse` gives; left as it is.
        inputs: (N, ...) inputs of a full batch, on the network's device.
        taps: what to read of it.

    Raises:
        CannotCompile: the network's code cannot be one graph, there is no working compiler, or the compiled tensors
            differ from the network's by more than rounding.
        LimbeckError: a tap does not exist or has no one value.
    """
    taps = tuple(dict.fromkeys(taps))
    expected = uncompiled(network, inputs, taps)
    try:
        graph = _compiled(traced(network, inputs, taps))
        with torch.no_grad():
            found = dict(zip(taps, graph(inputs), strict=True))
    except Exception as error:  # the network may be the user's, and the compiler raises many kinds
        raise CannotCompile(f"the network cannot be compiled: {reason(error)}") from error
    check_alike(expected, found, low=torch.is_autocast_enabled(inputs.device.type))
    kind = _kind(inputs)

    def read(given: Tensor) -> Mapping[Tap, Tensor]:
        if _kind(given) != kind:
            return uncompiled(network, given, taps)
        with torch.no_grad():
            return dict(zip(taps, graph(given), strict=True))

    return read


def compiled_on_maps(loss: Loss) -> Loss:
    """A `compiled_loss` in calls that read feature maps, the loss in others, where compiling gains nothing."""
    fast = compiled_loss(loss)

    def evaluate(*reads: Tensor) -> Tensor:
        return fast(*reads) if any(read.dim() > 2 for read in reads) else loss(*reads)

    return evaluate


def compiled_loss(loss: Loss) -> Loss:
    """A function that gives what the loss gives, forward and backward, through one compiled graph.

    The loss itself is left as it is: a module still owns its parameters and state, which learn, are copied and are
    saved. It is compiled at the first call, for that call's shapes, and draws the same random numbers as uncompiled.
    Calls with other shapes, as for a smaller last batch, run it uncompiled. So do all calls where its code cannot be
    one graph, as with a loop over the classes in a batch, or needs more than `GRAPHS`, as with a counter of calls.

    Raises:
        CannotCompile: at the first call, the compiler is missing or fails.
    """
    from torch._dynamo import config  # takes seconds
    from torch._dynamo.exc import BackendCompilerFailed

    def call(*reads: Tensor) -> Tensor:
        return loss(*reads)

    # The compiler counts graphs by code object and stops at a limit, so each loss gets a code object of its own.
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
            except Exception:  # raised by the tracer before anything has run; the loss then raises its own error again
                first[0] = []  # no call has these shapes
        return loss(*reads)

    return evaluate


def uncompiled(network: nn.Module, inputs: Tensor, taps: tuple[Tap, ...]) -> dict[Tap, Tensor]:
    """The taps' tensors of one network from an uncompiled run."""
    with torch.no_grad(), Taps({tap.source: network for tap in taps}, taps) as tapped:
        return _read(tapped, inputs, taps)


def traced(network: nn.Module, inputs: Tensor, taps: tuple[Tap, ...]) -> ExportedProgram:
    """The taps' tensors of one network as a graph, for inputs of this shape; raises whatever the tracer raises."""
    networks = {tap.source: network for tap in taps}
    with torch.no_grad(), Taps(networks, taps, to_the_end=True) as tapped:  # the tracer needs a complete forward
        return torch.export.export(_Reading(network, tapped, taps), (inputs,), strict=False)


def check_alike(expected: Mapping[Tap, Tensor], found: Mapping[Tap, Tensor], *, low: bool) -> None:
    """Raise CannotCompile where a tensor differs from the expected one by more than `ROUNDING`; ``low``: of bf16."""
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
    """A module whose output is the taps' tensors, for the tracer."""

    def __init__(self, network: nn.Module, tapped: Taps, taps: tuple[Tap, ...]) -> None:
        super().__init__()
        self.network = network
        self._tapped, self._taps = tapped, taps

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(_read(self._tapped, inputs, self._taps).values())


def _compiled(program: ExportedProgram) -> Callable[..., Any]:
    """The graph, compiled in a first run here, where weights can be made constants."""
    from torch._inductor import config  # takes seconds

    graph: Callable[..., Any] = torch.compile(program.module(), fullgraph=True, dynamic=False)
    (inputs,), _ = program.example_inputs
    # As an option of torch.compile, freezing would come too late to make the weights constants.
    with torch.no_grad(), config.patch(freezing=True):
        graph(inputs)
    return graph


def _read(tapped: Taps, inputs: Tensor, taps: tuple[Tap, ...]) -> dict[Tap, Tensor]:
    found = tapped.read(Batch(inputs, inputs, inputs, 0))
    return {tap: found[tap] for tap in taps}


def _kind(inputs: Tensor) -> tuple[Any, ...]:
    """Everything that the compiled graph depends on."""
    device = inputs.device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return inputs.shape, inputs.stride(), inputs.dtype, inputs.device, autocast
