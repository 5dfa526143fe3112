"""Networks that do not return a tensor of logits: select the logits from their output.

The search covers tuples, lists, mappings, named tuples, dataclasses and their nested values. It selects the first
tensor of shape (N, classes) or (N, classes, H, W) and prefers the names ``logits``, ``out`` and ``output``. The option
``output`` selects another part: a key (``logits``), an index (``0``), a path (``0.logits``), or a layer of the network.
With ``output: probabilities``, the network ends with softmax, and the logarithm of its output is used; or, for several
labels, it ends with sigmoid, and the logarithm of the odds is used.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from limbeck.core import Batch, LimbeckError, Tap
from limbeck.data.targets import NUMBERS, TaskName
from limbeck.models import Ensemble
from limbeck.taps import check, evaluation_mode, layer_of, scripted

NAMES = ("logits", "out", "output")
PROBABILITIES = "probabilities"


@dataclass
class Logits:
    """A forward hook that replaces a network's output by its logits. A copy of the network has its own hook.

    If the network returns a single tensor in one of its modes, as GoogLeNet does in eval mode, it is not changed.
    """

    name: str  # the name of the network, for errors
    classes: int
    path: tuple[str, ...] | None = None  # the path to the logits; None searches each output
    probabilities: bool = False
    task: TaskName = "classification"
    layer: str = ""  # the layer whose output is the logits
    layer_outputs: list[Tensor] = field(default_factory=list)  # the outputs of the layer in this forward

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Tensor:
        """Return the logits (the forward hook of the network)."""
        if self.layer:
            logits = self._of_layer()
        elif isinstance(output, Tensor):
            logits = output
        else:
            logits = at(output, self.path or find(self.name, output, self.classes), self.name)
        if not self.probabilities:
            return logits
        return _log(logits) - _log(1 - logits) if self.task == "multi_label" else _log(logits)

    def begin(self, module: nn.Module, args: Any) -> None:
        """Drop the outputs of a forward that was interrupted (the forward pre-hook of the network)."""
        self.layer_outputs = []

    def keep(self, module: nn.Module, args: Any, output: Any) -> None:
        """Keep the output of the layer (the forward hook of the layer)."""
        self.layer_outputs.append(output)

    def _of_layer(self) -> Tensor:
        outputs, self.layer_outputs = self.layer_outputs, []
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
            raise LimbeckError(f"output: the {self.name}'s layer {self.layer} must return one tensor in each forward")
        return outputs[0]


def install(
    name: str,
    network: nn.Module,
    batch: Batch,
    classes: int,
    *,
    output: str | None = None,
    layer: str = "",
    task: TaskName = "classification",
) -> tuple[list[RemovableHandle], list[str]]:
    """Make a network return its logits, if its output is something else.

    The hooks do not change the names of the layers or the state dict. For an ensemble, each member gets hooks. The
    network runs once in eval mode and once in training mode on the batch of a few samples; its buffers are restored.
    ``output`` is the part of the output with the logits, see above. If it has none, they are read from ``layer``.

    Returns:
        The hooks, which the caller removes, and notes; both are empty if the network returns a tensor.

    Raises:
        LimbeckError: the output contains no logits, ``output`` names a part that does not exist, or it is
            ``probabilities`` and the task has none.
    """
    if output == PROBABILITIES and task in NUMBERS:
        raise LimbeckError(f"output is {PROBABILITIES!r}, but the {name} returns numbers: the task is {task}")
    if isinstance(network, Ensemble):
        return _of_members(name, network, batch, classes, output=output, layer=layer, task=task)
    outputs = _outputs(network, batch)
    others = [one for one in outputs if not isinstance(one, Tensor)]
    if output is None and not others:
        return [], []
    hook = Logits(name, classes, task=task)
    if output == PROBABILITIES:
        hook.probabilities = True
    elif output is not None:
        _named(hook, network, output, others)
    try:
        for one in others if not hook.layer and hook.path is None else ():
            find(name, one, classes)
    except LimbeckError:
        if not layer or ":" in layer:  # a side or run other than the single output of the layer
            raise
        check({name: network}, Tap(name, layer))
        hook.layer = layer
    if scripted(network):
        raise LimbeckError(f"the {name} is TorchScript, which does not support the hooks that select logits: {_WRAP}")
    for one in outputs[:1] if hook.probabilities else ():
        _check_probabilities(name, one if isinstance(one, Tensor) else at(one, find(name, one, classes), name))
    handles = [network.register_forward_hook(hook)]
    if hook.layer:
        handles.append(network.register_forward_pre_hook(hook.begin))
        handles.append(layer_of(network, hook.layer).register_forward_hook(hook.keep))
    return handles, _notes(hook, outputs)


def installed(network: nn.Module) -> bool:
    """Whether the network, or the network that it is a copy of, has a hook of `install`."""
    own = network.members if isinstance(network, Ensemble) else [network]
    return any(isinstance(hook, Logits) for module in own for hook in module._forward_hooks.values())


def _of_members(
    name: str, network: Ensemble, batch: Batch, classes: int, **options: Any
) -> tuple[list[RemovableHandle], list[str]]:
    hooks: list[RemovableHandle] = []
    notes: list[str] = []
    try:
        for place, member in enumerate(network.members):
            which = f"{name}'s member {place}"
            member_hooks, member_notes = install(which, member, batch, classes, **options)
            hooks += member_hooks
            notes += member_notes
    except LimbeckError:
        for hook in hooks:
            hook.remove()
        raise
    return hooks, notes


def find(name: str, output: Any, classes: int) -> tuple[str, ...]:
    """Return the path to the logits in an output.

    Raises:
        LimbeckError: no part of the output is logits.
    """
    tensors = list(_tensors(output))
    named = [(path, tensor) for path, tensor in tensors if path[-1:] and path[-1] in NAMES]
    named.sort(key=lambda one: (NAMES.index(one[0][-1]), len(one[0])))
    fitting = [path for path, tensor in tensors if tensor.dim() in (2, 4) and tensor.shape[1] == classes]
    candidates = [*(path for path, _ in named if path in fitting), *fitting, *(path for path, _ in named)]
    if not candidates:
        listed = ", ".join(f"{'.'.join(path)} {tuple(tensor.shape)}" for path, tensor in tensors) or "no tensor"
        role = name.partition("'")[0]
        raise LimbeckError(
            f"the {name} returns a {_kind(output)} of {listed}: none is logits of {classes} classes. Name the logits "
            f"with output (in Python {role}_output=, in a recipe {role}: {{output: ...}}), by a key, an index or the "
            f"name of a layer; or {_WRAP}"
        )
    return candidates[0]


def at(output: Any, path: tuple[str, ...], name: str = "network") -> Tensor:
    """Return the tensor at a path in an output.

    Raises:
        LimbeckError: the path does not exist or does not lead to a tensor.
    """
    value = output
    for step in path:
        parts = _parts(value)
        if step not in parts and not (step.isdecimal() and int(step) < len(parts)):
            allowed = f"allowed are {', '.join(parts)}" if parts else "it has no parts"
            raise LimbeckError(f"output is {'.'.join(path)!r}, but the {name} returns a {_kind(value)}: {allowed}")
        value = parts[step] if step in parts else list(parts.values())[int(step)]
    if not isinstance(value, Tensor):
        raise LimbeckError(
            f"output is {'.'.join(path)!r}, which is a {_kind(value)} in the output of the {name}, not one tensor: "
            f"allowed are {', '.join('.'.join(way) for way, _ in _tensors(output))}"
        )
    return value


_WRAP = "wrap it in a module whose forward returns the logits: `return self.network(inputs)[...]`"


def _named(hook: Logits, network: nn.Module, output: str, others: list[Any]) -> None:
    """Set the path or layer of the hook to what ``output`` names."""
    path = tuple(output.split("."))
    known = [one for one in others if path[0] in _parts(one) or path[0].isdecimal()]
    if known:
        for one in others:
            at(one, path, hook.name)
        hook.path = path
    elif output in dict(network.named_modules()):
        check({hook.name: network}, Tap(hook.name, output))
        hook.layer = output
    else:
        names = ", ".join(key for one in others for key in _parts(one))
        parts = f"its output has {names}" if names else "it returns one tensor"
        raise LimbeckError(
            f"the {hook.name} has no output {output!r}: {parts}; also allowed: {PROBABILITIES} and the name of a layer"
        )


def _check_probabilities(name: str, values: Tensor) -> None:
    if values.numel() and not (values.min() >= 0 and values.max() <= 1):
        raise LimbeckError(
            f"output is {PROBABILITIES!r}, but the {name} returns values from {values.min():.3g} to "
            f"{values.max():.3g}: remove output if they are logits"
        )


def _notes(hook: Logits, outputs: list[Any]) -> list[str]:
    name = hook.name
    if hook.layer:
        return [f"the {name}'s logits are the output of its layer {hook.layer}"]
    used = "the logarithm of their odds" if hook.task == "multi_label" else "their logarithm"
    notes = [f"the {name} returns probabilities: {used} is used"] if hook.probabilities else []
    seen = set[str]()
    modes = ("",) if name.startswith("teacher") else ("", " in training mode")  # a teacher is usually frozen
    for output, mode in zip(outputs, modes, strict=False):
        if isinstance(output, Tensor) or _kind(output) in seen:
            continue
        seen.add(_kind(output))
        path = hook.path or find(name, output, hook.classes)
        notes.append(f"the {name} returns a {_kind(output)}{mode}: its {'.'.join(path)!r} is used")
        if mode and len(list(_tensors(output))) > 1:
            notes.append(f"auxiliary outputs of the {name} are not trained")
    return notes


def _outputs(network: nn.Module, batch: Batch) -> list[Any]:
    """Return the outputs in eval mode and in training mode; outputs after the first failure are missing."""
    device = next((parameter.device for parameter in network.parameters()), batch.inputs.device)
    inputs = batch.inputs.to(device)
    saved = [(buffer, buffer.detach().clone()) for buffer in network.buffers() if not buffer.is_inference()]
    outputs = []
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.no_grad(), evaluation_mode([network]):
        try:
            outputs.append(network(inputs))
            for module in network.modules():
                module.training = True
            outputs.append(network(inputs))
        except Exception:  # a user's network may raise anything; the later run reports it
            pass
        finally:
            for buffer, value in saved:
                buffer.copy_(value)
    return outputs


def _log(probabilities: Tensor) -> Tensor:
    """Return the logarithm of probabilities in at least 32 bits; it is finite for 0."""
    wide = probabilities if probabilities.dtype == torch.float64 else probabilities.float()
    return wide.clamp_min(torch.finfo(wide.dtype).tiny).log()


def _parts(value: Any) -> dict[str, Any]:
    """Return the parts of a value by key, field or index."""
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()}
    if isinstance(value, tuple | list):
        return {str(key): part for key, part in zip(getattr(value, "_fields", range(len(value))), value, strict=True)}
    if is_dataclass(value):
        return {one.name: getattr(value, one.name) for one in fields(value)}
    return {} if isinstance(value, Tensor) else dict(getattr(value, "__dict__", {}))


def _tensors(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Yield every tensor in an output with its path, in order."""
    if isinstance(value, Tensor):
        yield path, value
    elif len(path) < 4:
        for key, part in _parts(value).items():
            yield from _tensors(part, (*path, key))


def _kind(output: Any) -> str:
    return type(output).__name__
