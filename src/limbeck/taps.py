"""Read any layer of an unmodified network, by name, with one forward a network."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from limbeck.core import Batch, LimbeckError, Networks, Reader, Tap
from limbeck.errors import close_names

BATCH_FIELDS = ("inputs", "targets", "index")


class _Enough(BaseException):
    """Ends a forward whose every tap is read. Not an Exception, so that no network's own handler catches it."""


class Taps:
    """The hooks of a set of taps, there while the ``with`` block lasts, and one way to read through them.

    Inside the block the activations of a tapped network do not work in place, which would overwrite what is read; the
    numbers are the same.

    Args:
        networks: the networks by name.
        taps: what to read. Every network named here runs once a batch, a network not named does not run.
        learns: the networks that get gradients; all others run under ``no_grad``.
        to_the_end: run the whole forward even where nothing above the last tap is read.
        readers: by a frozen network's name, what gives its taps instead of a run of the network.

    Raises:
        LimbeckError: a network, layer or batch field does not exist (the message names the nearest).
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
        self._handles: list[RemovableHandle] = []
        self._out_of_place = ExitStack()
        self._running = ""  # networks may share modules, and with them the hooks
        self._missing: dict[str, int] = {}
        for tap in self._taps:
            check(networks, tap)
        read = {tap.source for tap in self._taps} - {"batch"}
        self._readers = {name: reader for name, reader in readers.items() if name in read}
        self._sources = [name for name in networks if name in read and name not in self._readers]
        run = [tap for tap in self._taps if tap.source in self._sources]
        self._hooked = [tap for tap in run if tap.layer or tap.side == "input" or tap.run is not None]
        self._whole = {tap.source: tap for tap in run if tap not in self._hooked}
        self._given = {name: [tap for tap in self._taps if tap.source == name] for name in self._readers}
        self._wanted = {name: sum(tap.source == name for tap in run) for name in self._sources}

    def __enter__(self) -> Self:
        tapped = dict.fromkeys(tap.source for tap in self._hooked if tap.layer)
        self._out_of_place.enter_context(out_of_place(self._networks[name] for name in tapped))
        for tap in self._hooked:
            module = layer_of(self._networks[tap.source], tap.layer)
            if tap.side == "output":
                handle = module.register_forward_hook(self._output_hook(tap))
            else:
                handle = module.register_forward_pre_hook(self._input_hook(tap), with_kwargs=True)
            self._handles.append(handle)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._out_of_place.close()
        self._values = {}

    def read(self, batch: Batch) -> dict[Tap, Tensor]:
        """Run each network once on ``batch.inputs`` and return every tap's tensor.

        Raises:
            LimbeckError: a tapped module ran twice, never, or gave something else than one tensor; or its tensor
                was overwritten in place by a later module.
        """
        self._values, self._versions, self._runs = {}, {}, {}
        for name in self._sources:
            self._running, self._missing[name] = name, self._wanted[name]
            with nullcontext() if name in self._learns else torch.no_grad(), suppress(_Enough):
                output = self._networks[name](batch.inputs)
                if name in self._whole:  # without a hook, which a small network would feel
                    self._keep(self._whole[name], output)
        self._running = ""  # a loss may run a tapped module once more, such as the teacher's classifier
        values, self._values = self._values, {}  # what is held here would outlive the step
        for name, reader in self._readers.items():
            given = reader(batch)
            for tap in self._given[name]:
                values[tap], self._versions[tap] = given[tap], version(given[tap])
        for tap in self._taps:
            if tap.source == "batch":
                values[tap] = getattr(batch, tap.layer)
            elif tap not in values:
                raise LimbeckError(f"{tap} never ran in the forward of {tap.source}: tap a layer that does")
            elif values[tap].is_inference():  # of a forward under inference_mode: autograd takes a copy only
                values[tap] = values[tap].clone()
            elif values[tap]._version != self._versions[tap]:
                raise LimbeckError(
                    f"{tap} was overwritten in place after it was read (by an operation such as `x += y` in the "
                    "network's forward): tap the layer after it"
                )
        return values

    def _output_hook(self, tap: Tap) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._keep(tap, output)

        return hook

    def _input_hook(self, tap: Tap) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._keep(tap, next(iter([*args, *kwargs.values()]), None))

        return hook

    def _keep(self, tap: Tap, value: Any) -> None:
        if tap.source != self._running:
            return
        if tap.run is not None:
            self._runs[tap] = self._runs.get(tap, -1) + 1
            if self._runs[tap] != tap.run:
                return
        if tap in self._values:
            raise LimbeckError(
                f"{tap} ran twice in one forward, so it has no one value: tap a layer that runs once, "
                f"or say which run: {tap.layer}:{tap.side}:0"
            )
        if not isinstance(value, Tensor):
            advice = "tap a layer inside it" if tap.layer else "say with `output` which part of it are the logits"
            raise LimbeckError(f"{tap} is a {type(value).__name__}, not one tensor: {advice}")
        self._values[tap] = value
        self._versions[tap] = version(value)
        self._missing[tap.source] -= 1
        if self._missing[tap.source] == 0 and not self._to_the_end and tap.layer:
            raise _Enough


def check(networks: Networks, tap: Tap) -> None:
    """Raise LimbeckError, naming the nearest, unless the tap's network, layer and side exist."""
    if tap.side not in ("output", "input"):
        raise LimbeckError(f"{tap.source}.{tap.layer}: side is {tap.side!r}, allowed are 'output' and 'input'")
    if tap.source == "batch":
        if tap.layer not in BATCH_FIELDS:
            raise LimbeckError(f"the batch has no {tap.layer!r}: allowed are {', '.join(BATCH_FIELDS)}")
        return
    if tap.source not in networks:
        raise LimbeckError(f"there is no network {tap.source!r}: allowed are {', '.join([*networks, 'batch'])}")
    names = [name for name, _ in networks[tap.source].named_modules()]
    if tap.layer not in names:
        near = close_names(tap.layer, names)
        top = [name for name, _ in networks[tap.source].named_children()]
        hint = f"did you mean {' or '.join(near)}?" if near else f"its top layers are {', '.join(top)}"
        raise LimbeckError(f"the {tap.source} has no layer {tap.layer!r}: {hint} (`limbeck taps` lists all)")
    closed = _closed(networks[tap.source], tap.layer)
    if closed is not None and tap != Tap(tap.source):
        raise LimbeckError(
            f"{tap} cannot be read, because {closed or 'the network'} is TorchScript, which gives its output alone: "
            "take the module that it was made from, or a method that reads outputs only, such as kd"
        )


def layer_of(network: nn.Module, layer: str) -> nn.Module:
    """The layer of that name; "" is the network, which `get_submodule` of a TorchScript module refuses to give."""
    return network.get_submodule(layer) if layer else network


def scripted(module: nn.Module) -> bool:
    """Whether it is TorchScript, which takes no hooks and hides what its layers give."""
    return isinstance(module, torch.jit.ScriptModule)


def version(tensor: Tensor) -> int:
    """How often the tensor was written to; 0 for one made under `torch.inference_mode`, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _closed(network: nn.Module, layer: str) -> str | None:
    """The outermost TorchScript module on the way to a layer."""
    parts = layer.split(".") if layer else []
    ways = [".".join(parts[:count]) for count in range(len(parts) + 1)]
    return next((way for way in ways if scripted(dict(network.named_modules())[way])), None)


def dry_run(networks: Networks, taps: Iterable[Tap], batch: Batch) -> dict[Tap, Tensor]:
    """Every tap's tensor, where its network is, from one run in eval mode that leaves every network as it was.

    The dry run goes to the end of each forward, so that a module that runs twice or is overwritten later is found
    before any training. Each network runs on the device where it is.

    Raises:
        LimbeckError: as `Taps`; or a tensor has not one row a sample.
    """
    found: dict[Tap, Tensor] = {}
    wanted = tuple(taps)
    for source in dict.fromkeys(tap.source for tap in wanted):
        own = [tap for tap in wanted if tap.source == source]
        read = [networks[source]] if source in networks else []
        device = next((parameter.device for network in read for parameter in network.parameters()), torch.device("cpu"))
        there = replace(batch, inputs=batch.inputs.to(device))
        with evaluation_mode(read), torch.no_grad(), Taps(networks, own, to_the_end=True) as tapped:
            for tap, tensor in tapped.read(there).items():
                if tensor.shape[:1] != batch.index.shape:
                    count = len(batch.index)
                    raise LimbeckError(f"{tap} gives {tuple(tensor.shape)} for {count} samples: not one row each")
                found[tap] = tensor
    return found


def shapes(networks: Networks, taps: Iterable[Tap], batch: Batch) -> dict[Tap, tuple[int, ...]]:
    """Each tap's shape for one sample, N dropped, from a `dry_run`."""
    return {tap: tuple(tensor.shape[1:]) for tap, tensor in dry_run(networks, taps, batch).items()}


def replaced(network: nn.Module, layer: str, value: Tensor, inputs: Tensor) -> Tensor:
    """What the network gives on ``inputs`` where its layer gives ``value`` instead of its own output.

    The layers below the one that is replaced run too, and for nothing.
    """
    handle = layer_of(network, layer).register_forward_hook(lambda module, args, output: value)
    try:
        given: Tensor = network(inputs)
    finally:
        handle.remove()
    return given


@contextmanager
def out_of_place(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block no activation of the networks overwrites its input; afterwards each is as it was."""
    changed = [
        module
        for network in networks
        for module in network.modules()
        if getattr(module, "inplace", False) is True and not scripted(module)
    ]
    for module in changed:
        module.inplace = False  # type: ignore[assignment]  # modules' attributes are typed as tensors
    try:
        yield
    finally:
        for module in changed:
            module.inplace = True  # type: ignore[assignment]


@contextmanager
def evaluation_mode(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Eval mode inside the block; afterwards every submodule has the mode it had, even after an error."""
    modes: Mapping[nn.Module, bool] = {module: module.training for network in networks for module in network.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
