"""Networks whose output is no tensor of logits: what of it they are is found, or named, and read in its place.

Found is the first tensor with one number a class, before others what is called ``logits``, ``out`` or ``output``; in
tuples, lists, mappings, named tuples and dataclasses, and in those inside them. ``output`` names another: a key
(``logits``), a place (``0``), several of them (``0.logits``), or a layer of the network. ``probabilities`` says
that the network ends in softmax: the logarithm of what it gives is read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from limbeck.core import Batch, LimbeckError, Tap
from limbeck.models import Ensemble
from limbeck.taps import check, evaluation_mode, layer_of, scripted

NAMES = ("logits", "out", "output")
PROBABILITIES = "probabilities"


@dataclass
class Logits:
    """A forward hook that gives a network's logits in place of its output; a copy of the network has its own.

    Where the network gives one tensor in one of its modes, as GoogLeNet does in eval mode, that is taken as it is.
    """

    name: str  # the network's, for errors
    classes: int
    path: tuple[str, ...] | None = None  # to the logits; None: found at each kind of output
    probabilities: bool = False
    layer: str = ""  # the layer whose output they are, in place of a part of the network's
    given: list[Tensor] = field(default_factory=list)  # what the layer gave in this forward

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Tensor:
        """The hook of the network."""
        if self.layer:
            logits = self._of_layer()
        elif isinstance(output, Tensor):
            logits = output
        else:
            logits = at(output, self.path or find(self.name, output, self.classes), self.name)
        return _log(logits) if self.probabilities else logits

    def begin(self, module: nn.Module, args: Any) -> None:
        """The hook before a forward; the one before may have been broken off."""
        self.given = []

    def keep(self, module: nn.Module, args: Any, output: Any) -> None:
        """The hook of the layer."""
        self.given.append(output)

    def _of_layer(self) -> Tensor:
        given, self.given = self.given, []
        if len(given) != 1 or not isinstance(given[0], Tensor):
            raise LimbeckError(f"output: the {self.name}'s {self.layer} does not give one tensor in a forward")
        return given[0]


def install(
    name: str, network: nn.Module, batch: Batch, classes: int, *, output: str | None = None, layer: str = ""
) -> tuple[list[RemovableHandle], list[str]]:
    """Let a network give its logits alone, where its output is something else.

    Layers keep their names, and the state and the file of the network stay what they are. Of an ensemble each member is
    seen to. The network runs once in eval mode and once in train mode, and its buffers stay as they were.

    Args:
        name: what errors and notes call it.
        network: on any device.
        batch: of a few samples.
        classes: their number.
        output: what of its output are the logits; see above.
        layer: the layer to take them from where its output has none.

    Returns:
        The hooks, to be removed when that ends, and notes; neither where the network gives a tensor.

    Raises:
        LimbeckError: no part of its output is logits, or none is where it is said to be.
    """
    if isinstance(network, Ensemble):
        return _of_members(name, network, batch, classes, output, layer)
    given = _outputs(network, batch)
    others = [one for one in given if not isinstance(one, Tensor)]
    if output is None and not others:
        return [], []
    hook = Logits(name, classes)
    if output == PROBABILITIES:
        hook.probabilities = True
    elif output is not None:
        _named(hook, network, output, others)
    try:
        for one in others if not hook.layer and hook.path is None else ():
            find(name, one, classes)
    except LimbeckError:
        if not layer or ":" in layer:  # a side or a run that is not the layer's one output
            raise
        check({name: network}, Tap(name, layer))
        hook.layer = layer
    if scripted(network):
        raise LimbeckError(f"the {name} is TorchScript, which gives no part of its output: {_WRAP}")
    for one in given[:1] if hook.probabilities else ():
        _check_probabilities(name, one if isinstance(one, Tensor) else at(one, find(name, one, classes), name))
    return _hook(hook, network), _notes(hook, given)


def installed(network: nn.Module) -> bool:
    """Whether `install` has given a network its hook, or that of which it is a copy."""
    own = network.members if isinstance(network, Ensemble) else [network]
    return any(isinstance(hook, Logits) for module in own for hook in module._forward_hooks.values())


def _of_members(
    name: str, network: Ensemble, batch: Batch, classes: int, output: str | None, layer: str
) -> tuple[list[RemovableHandle], list[str]]:
    hooks: list[RemovableHandle] = []
    notes: list[str] = []
    try:
        for place, member in enumerate(network.members):
            which = f"{name}'s member {place}"
            made, told = install(which, member, batch, classes, output=output, layer=layer)
            hooks += made
            notes += told
    except LimbeckError:
        for hook in hooks:
            hook.remove()
        raise
    return hooks, notes


def find(name: str, output: Any, classes: int) -> tuple[str, ...]:
    """Where in an output the logits are.

    Raises:
        LimbeckError: nowhere.
    """
    tensors = list(_tensors(output))
    named = [(path, tensor) for path, tensor in tensors if path[-1:] and path[-1] in NAMES]
    named.sort(key=lambda one: (NAMES.index(one[0][-1]), len(one[0])))
    fitting = [path for path, tensor in tensors if tensor.dim() == 2 and tensor.shape[1] == classes]
    found = [*(path for path, _ in named if path in fitting), *fitting, *(path for path, _ in named)]
    if not found:
        listed = ", ".join(f"{'.'.join(path)} {tuple(tensor.shape)}" for path, tensor in tensors) or "no tensor"
        raise LimbeckError(
            f"the {name} gives a {_kind(output)} of {listed}: none is logits of {classes} classes. Say which part is "
            f"with output (in Python {name}_output=, in a recipe {name}: {{output: ...}}): a key, a place or a layer's "
            f"name; or {_WRAP}"
        )
    return found[0]


def at(output: Any, path: tuple[str, ...], name: str = "network") -> Tensor:
    """The tensor at a place in an output.

    Raises:
        LimbeckError: there is none.
    """
    value = output
    for step in path:
        parts = _parts(value)
        if step not in parts and not (step.isdecimal() and int(step) < len(parts)):
            allowed = f"allowed are {', '.join(parts)}" if parts else "it has no parts"
            raise LimbeckError(f"output is {'.'.join(path)!r}, but the {name} gives a {_kind(value)}: {allowed}")
        value = parts[step] if step in parts else list(parts.values())[int(step)]
    if not isinstance(value, Tensor):
        raise LimbeckError(
            f"output is {'.'.join(path)!r}, which is a {_kind(value)} of the {name}, not one tensor: "
            f"allowed are {', '.join('.'.join(way) for way, _ in _tensors(output))}"
        )
    return value


_WRAP = "wrap it in a module whose forward returns the logits: `return self.network(inputs)[...]`"


def _named(hook: Logits, network: nn.Module, output: str, others: list[Any]) -> None:
    """Set in the hook what ``output`` names."""
    path = tuple(output.split("."))
    known = [one for one in others if path[0] in _parts(one) or path[0].isdecimal()]
    if known:
        for one in others:
            at(one, path, hook.name)
        hook.path = path
    elif output in dict(network.named_modules()):
        hook.layer = output
    else:
        names = ", ".join(key for one in others for key in _parts(one))
        said = f"its output has {names}" if names else "it gives one tensor"
        raise LimbeckError(
            f"the {hook.name} has no output {output!r}: {said}; allowed are besides {PROBABILITIES} and a layer's name"
        )


def _check_probabilities(name: str, given: Tensor) -> None:
    if given.numel() and not (given.min() >= 0 and given.max() <= 1):
        raise LimbeckError(
            f"output is {PROBABILITIES!r}, but the {name} gives numbers from {given.min():.3g} to {given.max():.3g}: "
            "leave it out where they are logits"
        )


def _hook(hook: Logits, network: nn.Module) -> list[RemovableHandle]:
    handles = [network.register_forward_hook(hook)]
    if hook.layer:
        handles.append(network.register_forward_pre_hook(hook.begin))
        handles.append(layer_of(network, hook.layer).register_forward_hook(hook.keep))
    return handles


def _notes(hook: Logits, given: list[Any]) -> list[str]:
    name = hook.name
    if hook.layer:
        return [f"the {name}'s logits are what its layer {hook.layer} gives"]
    notes = [f"the {name} gives probabilities: their logarithm is read"] if hook.probabilities else []
    seen = set[str]()
    modes = ("",) if name.startswith("teacher") else ("", " in train mode")  # a teacher rests, as a rule
    for output, mode in zip(given, modes, strict=False):
        if isinstance(output, Tensor) or _kind(output) in seen:
            continue
        seen.add(_kind(output))
        path = hook.path or find(name, output, hook.classes)
        notes.append(f"the {name} gives a {_kind(output)}{mode}: its {'.'.join(path)!r} is read")
        if mode and len(list(_tensors(output))) > 1:
            notes.append(f"auxiliary outputs of the {name} are not trained")
    return notes


def _outputs(network: nn.Module, batch: Batch) -> list[Any]:
    """What it gives in eval mode, and in train mode where it runs in that; nothing where it does not run at all."""
    device = next((parameter.device for parameter in network.parameters()), batch.inputs.device)
    inputs = batch.inputs.to(device)
    held = [(buffer, buffer.detach().clone()) for buffer in network.buffers() if not buffer.is_inference()]
    given = []
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.no_grad(), evaluation_mode([network]):
        try:
            given.append(network(inputs))
            for module in network.modules():
                module.training = True
            given.append(network(inputs))
        except Exception:  # the network may be the user's, and raise anything; who runs it in earnest tells
            pass
        finally:
            for buffer, value in held:
                buffer.copy_(value)
    return given


def _log(probabilities: Tensor) -> Tensor:
    """The logarithm of probabilities in at least 32 bits, finite where one is 0."""
    wide = probabilities if probabilities.dtype == torch.float64 else probabilities.float()
    return wide.clamp_min(torch.finfo(wide.dtype).tiny).log()


def _parts(value: Any) -> dict[str, Any]:
    """What a value is made of, by key, field or place."""
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()}
    if isinstance(value, tuple | list):
        return {str(key): part for key, part in zip(getattr(value, "_fields", range(len(value))), value, strict=True)}
    if is_dataclass(value):
        return {one.name: getattr(value, one.name) for one in fields(value)}
    return {} if isinstance(value, Tensor) else dict(getattr(value, "__dict__", {}))


def _tensors(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Every tensor in an output with its path, in order."""
    if isinstance(value, Tensor):
        yield path, value
    elif len(path) < 4:
        for key, part in _parts(value).items():
            yield from _tensors(part, (*path, key))


def _kind(output: Any) -> str:
    return type(output).__name__
