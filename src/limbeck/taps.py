"""Read the output or input of any layer of an unmodified network by name, with one forward per network."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from limbeck.core import Batch, LimbeckError, Networks, Reader, Tap
from limbeck.errors import close_names

BATCH_FIELDS = ("inputs", "targets", "index")


class OutputOnly(nn.Module):
    """A network of which only the output can be read, such as a function. It supports hooks, but its layers may not.

    Attributes:
        kind: the name of the network in errors, such as "a function".
    """

    kind: str


class _Enough(BaseException):
    """Ends a forward once all taps are read. It is not an Exception, so the network's own handlers do not catch it."""


class Taps:
    """A context manager that registers the forward hooks of a set of taps and reads them.

    Inside the ``with`` block, the activations of a tapped network run out of place, so that they do not overwrite a
    tapped tensor. The results are the same.

    Args:
        networks: the networks by name.
        taps: the taps to read. Every network that they name runs once per batch; the others do not run.
        learns: the names of the networks that get gradients; all others run under ``no_grad``.
        to_the_end: run the whole forward instead of stopping after the last tap.
        readers: for frozen networks, by name, readers that return the taps instead of a run of the network.

    Raises:
        LimbeckError: a network, layer or batch field does not exist; the message suggests the nearest name.
    """

    def __init__(
        self,
        networks: Networks,
        taps: Iterable[Tap],
        *,
        learns: Iterable[str] = (),
        to_the_end: bool = False,
        readers: Mapping[str, Reader] = MappingProxyType({}),
    ) -> None:
        self._networks = networks
        self._taps = tuple(dict.fromkeys(taps))
        self._learns = frozenset(learns)
        self._to_the_end = to_the_end
        self._values: dict[Tap, Tensor] = {}
        self._versions: dict[Tap, int] = {}
        self._runs: dict[Tap, int] = {}
        self._inside = ExitStack()
        self._running = ""  # networks may share modules and thus hooks
        self._missing: dict[str, int] = {}
        for tap in self._taps:
            check(networks, tap)
        read = {tap.source for tap in self._taps} - {"batch"}
        self._readers = {name: reader for name, reader in readers.items() if name in read}
        self._sources = [name for name in networks if name in read and name not in self._readers]
        run = [tap for tap in self._taps if tap.source in self._sources]
        self._hooked = [tap for tap in run if tap.layer or tap.side == "input" or tap.run is not None]
        self._whole = {tap.source: tap for tap in run if tap not in self._hooked}
        self._reader_taps = {name: [tap for tap in self._taps if tap.source == name] for name in self._readers}
        self._tap_counts = {name: sum(tap.source == name for tap in run) for name in self._sources}

    def __enter__(self) -> Self:
        tapped = dict.fromkeys(tap.source for tap in self._hooked if tap.layer)
        self._inside.enter_context(out_of_place(self._networks[name] for name in tapped))
        for tap in self._hooked:
            module = layer_of(self._networks[tap.source], tap.layer)
            if tap.side == "output":
                handle = module.register_forward_hook(partial(self._keep_output, tap))
            else:
                handle = module.register_forward_pre_hook(partial(self._keep_input, tap), with_kwargs=True)
            self._inside.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._inside.close()
        self._values = {}

    def read(self, batch: Batch) -> dict[Tap, Tensor]:
        """Run each network once on ``batch.inputs`` and return the tensor of every tap.

        Raises:
            LimbeckError: a tapped module ran twice or never, did not return one tensor, or its tensor was overwritten
                in place by a later operation.
        """
        self._values, self._versions, self._runs = {}, {}, {}
        for name in self._sources:
            self._running, self._missing[name] = name, self._tap_counts[name]
            with nullcontext() if name in self._learns else torch.no_grad(), suppress(_Enough):
                output = self._networks[name](batch.inputs)
                if name in self._whole:  # no hook is needed, and a hook slows down a small network
                    self._keep(self._whole[name], output)
        self._running = ""  # a loss may run a tapped module again, such as the teacher's classifier
        values, self._values = self._values, {}  # do not keep the tensors beyond the step
        for name, reader in self._readers.items():
            tensors = reader(batch)
            for tap in self._reader_taps[name]:
                values[tap], self._versions[tap] = tensors[tap], version(tensors[tap])
        for tap in self._taps:
            if tap.source == "batch":
                values[tap] = getattr(batch, tap.layer)
            elif tap not in values:
                raise LimbeckError(f"{tap} did not run in the forward of {tap.source}: tap a layer that runs")
            elif values[tap].is_inference():  # autograd cannot save a tensor of inference_mode, but a copy of it
                values[tap] = values[tap].clone()
            elif values[tap]._version != self._versions[tap]:
                raise LimbeckError(
                    f"{tap} was overwritten in place after it was read (by an operation such as `x += y` in the "
                    "network's forward): tap the layer after it"
                )
        return values

    def _keep_output(self, tap: Tap, module: nn.Module, args: Any, output: Any) -> None:
        self._keep(tap, output)

    def _keep_input(self, tap: Tap, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._keep(tap, next(iter([*args, *kwargs.values()]), None))

    def _keep(self, tap: Tap, value: Any) -> None:
        if tap.source != self._running:
            return
        if tap.run is not None:
            self._runs[tap] = self._runs.get(tap, -1) + 1
            if self._runs[tap] != tap.run:
                return
        if tap in self._values:
            raise LimbeckError(
                f"{tap} ran twice in one forward, so its value is ambiguous: tap a layer that runs once, "
                f"or select a run: {tap.layer}:{tap.side}:0"
            )
        if not isinstance(value, Tensor):
            advice = "tap a layer inside it" if tap.layer else "select the logits with `output`"
            raise LimbeckError(f"{tap} is a {type(value).__name__}, not one tensor: {advice}")
        self._values[tap] = value
        self._versions[tap] = version(value)
        self._missing[tap.source] -= 1
        if self._missing[tap.source] == 0 and not self._to_the_end and tap.layer:
            raise _Enough


def check(networks: Networks, tap: Tap) -> None:
    """Raise LimbeckError with the nearest name unless the tap's network, layer and side exist."""
    if tap.side not in ("output", "input"):
        raise LimbeckError(f"{tap.source}.{tap.layer}: side is {tap.side!r}, allowed are 'output' and 'input'")
    if tap.source == "batch":
        if tap.layer not in BATCH_FIELDS:
            raise LimbeckError(f"the batch has no {tap.layer!r}: allowed are {', '.join(BATCH_FIELDS)}")
        return
    if tap.source not in networks:
        raise LimbeckError(f"there is no network {tap.source!r}: allowed are {', '.join([*networks, 'batch'])}")
    _check_closed(networks[tap.source], tap)
    names = [name for name, _ in networks[tap.source].named_modules()]
    if tap.layer not in names:
        near = close_names(tap.layer, names)
        top = [name for name, _ in networks[tap.source].named_children()]
        hint = f"did you mean {' or '.join(near)}?" if near else f"its top layers are {', '.join(top)}"
        raise LimbeckError(f"the {tap.source} has no layer {tap.layer!r}: {hint} (`limbeck taps` lists all)")


def _check_closed(network: nn.Module, tap: Tap) -> None:
    """Raise LimbeckError if the tap's layer is inside a module of which only the output can be read."""
    closed = _closed(network, tap.layer)
    if closed is None or tap == Tap(tap.source):
        return
    module = layer_of(network, closed)
    if scripted(module) or tap != Tap(tap.source, closed):
        raise LimbeckError(
            f"{tap} cannot be read because {closed or 'the network'} is {closed_kind(module)}, which only exposes its "
            "output: use the original module, or a method that reads only outputs, such as kd"
        )


def layer_of(network: nn.Module, layer: str) -> nn.Module:
    """Return the layer of this name. "" is the network itself, for which `get_submodule` of TorchScript fails."""
    return network.get_submodule(layer) if layer else network


def scripted(module: nn.Module) -> bool:
    """Whether the module is TorchScript, which does not support hooks and hides the outputs of its layers."""
    return isinstance(module, torch.jit.ScriptModule)


def closed_kind(module: nn.Module) -> str:
    """What a module is whose layers cannot be read, such as TorchScript or a function; "" if they can be read."""
    return "TorchScript" if scripted(module) else module.kind if isinstance(module, OutputOnly) else ""


def version(tensor: Tensor) -> int:
    """Return the version counter of a tensor; 0 for a tensor of `torch.inference_mode`, which has no counter."""
    return 0 if tensor.is_inference() else tensor._version


def _closed(network: nn.Module, layer: str) -> str | None:
    """Return the name of the outermost module with a `closed_kind` that contains a layer, or None."""
    parts = layer.split(".") if layer else []
    ways = [".".join(parts[:count]) for count in range(len(parts) + 1)]
    modules = dict(network.named_modules())
    return next((way for way in ways if way in modules and closed_kind(modules[way])), None)


def dry_run(networks: Networks, taps: Iterable[Tap], batch: Batch) -> dict[Tap, Tensor]:
    """Return the tensor of every tap, on its network's device, from one run in eval mode. The networks are not changed.

    The dry run completes each forward, so that a module that runs twice or a tensor that is overwritten is detected
    before training.

    Raises:
        LimbeckError: as for `Taps`; or a tensor does not have one row per sample.
    """
    tensors: dict[Tap, Tensor] = {}
    taps = tuple(taps)
    for source in dict.fromkeys(tap.source for tap in taps):
        own = [tap for tap in taps if tap.source == source]
        read = [networks[source]] if source in networks else []
        device = next((parameter.device for network in read for parameter in network.parameters()), torch.device("cpu"))
        there = replace(batch, inputs=batch.inputs.to(device))
        with evaluation_mode(read), torch.no_grad(), Taps(networks, own, to_the_end=True) as tapped:
            for tap, tensor in tapped.read(there).items():
                if tensor.shape[:1] != batch.index.shape:
                    shape, count = tuple(tensor.shape), len(batch.index)
                    raise LimbeckError(f"{tap} has shape {shape} for {count} samples, needed are {count} rows")
                tensors[tap] = tensor
    return tensors


def shapes(networks: Networks, taps: Iterable[Tap], batch: Batch) -> dict[Tap, tuple[int, ...]]:
    """Return the shape of each tap for one sample, without N, from a `dry_run`."""
    return {tap: tuple(tensor.shape[1:]) for tap, tensor in dry_run(networks, taps, batch).items()}


def replaced(network: nn.Module, layer: str, value: Tensor, inputs: Tensor) -> Tensor:
    """Return the network's output on ``inputs`` with the output of one layer replaced by ``value``.

    The layers before the replaced one also run, although their results are not used.
    """
    with layer_of(network, layer).register_forward_hook(lambda module, args, output: value):
        output: Tensor = network(inputs)
    return output


@contextmanager
def out_of_place(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Run the networks' activations out of place inside the block, and restore them afterwards."""
    changed = [
        module
        for network in networks
        for module in network.modules()
        if getattr(module, "inplace", False) is True and not scripted(module)
    ]
    for module in changed:
        module.inplace = False  # type: ignore[assignment]  # attributes of modules are typed as tensors
    try:
        yield
    finally:
        for module in changed:
            module.inplace = True  # type: ignore[assignment]


@contextmanager
def evaluation_mode(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Set eval mode inside the block, and restore the mode of every submodule afterwards, even after an error."""
    modes: Mapping[nn.Module, bool] = {module: module.training for network in networks for module in network.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
