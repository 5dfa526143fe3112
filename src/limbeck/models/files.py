"""A network's weights on disk, with what is needed to build the network again."""

import json
import pickle
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.core import LimbeckError
from limbeck.errors import nearest
from limbeck.models.building import build
from limbeck.models.fitting import check_fit
from limbeck.models.reuse import Reuse, apply_reuse, find_reuse
from limbeck.whole import replacing

_KEY = "limbeck"
_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_DOWNLOADS = {"timm": "pretrained", "torchvision": "weights"}


@dataclass(frozen=True)
class NetworkSpec:
    """What `limbeck.models.build` needs to build a network, and the order of its classes."""

    name: str
    options: Mapping[str, Any]  # as a recipe has them, so that they can be written as JSON
    classes: int
    shape: tuple[int, ...]  # of one sample, without N
    labels: tuple[str, ...] = ()  # the classes' names in the order of the logits; empty if unknown
    mean: tuple[float, ...] = ()  # what was taken from its inputs, as `limbeck.data.normalise`; empty if unknown
    std: tuple[float, ...] = ()  # and what they were divided by
    reuse: Mapping[str, Any] | None = None  # how a student was changed that ends as its teacher does; see `Reuse`


def save_network(network: nn.Module, path: Path, *, spec: NetworkSpec) -> None:
    """Write parameters and buffers as safetensors, with the spec in the metadata, whole or not at all.

    What is read back is bit-identical. A tensor with two names (tied weights) is written under both.

    Raises:
        LimbeckError: an option in the spec cannot be written as JSON.
    """
    changed = find_reuse(network)
    try:
        metadata = {_KEY: json.dumps(asdict(replace(spec, reuse=None if changed is None else asdict(changed))))}
    except TypeError as error:
        raise LimbeckError(f"the options {spec.options} of {spec.name} cannot be kept in {path}: {error}") from error
    # safetensors takes neither shared nor strided storage, such as channels_last
    tensors = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format).cpu()
        for name, tensor in network.state_dict().items()
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_spec(path: Path) -> NetworkSpec | None:
    """The spec a file of weights was saved with; None where limbeck did not write the file.

    Raises:
        LimbeckError: there is no such file, or it is damaged.
    """
    _check_exists(path)
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise _damaged(path, error) from error
    if _KEY not in metadata:
        return None
    try:
        values = json.loads(metadata[_KEY])
        values |= {key: tuple(values[key]) for key in ("shape", "labels", "mean", "std")}
        return NetworkSpec(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise LimbeckError(f"{path} describes its network in a way this limbeck does not read: {error!r}") from error


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a file's parameters and buffers, all of them, into a network of the same layers.

    Args:
        network: is changed in place; its device and dtypes stay.
        path: safetensors, or what torch.save wrote of a state dict, as it is or under ``state_dict`` or ``model``.
            The prefixes of DataParallel (``module.``) and torch.compile (``_orig_mod.``) are taken off.

    Raises:
        LimbeckError: there is no such file, it is damaged or not a state dict, or it does not fit the network; then
            the network is as it was.
    """
    wanted = network.state_dict()
    state = read_state(path, wanted)
    check_fit(path, state, wanted)
    network.load_state_dict(state)


def load_network(path: Path | str) -> tuple[nn.Module, NetworkSpec]:
    """The network that `save_network` wrote, built from the file alone, in eval mode; nothing is downloaded.

    Raises:
        LimbeckError: there is no such file, it is damaged, limbeck did not write it, or its network cannot be built.
    """
    path = Path(path)
    spec = read_spec(path)
    if spec is None:
        raise LimbeckError(f"{path} does not say which network it holds: build one and use load_weights")
    download = _DOWNLOADS.get(spec.name.partition(":")[0])
    options = {key: value for key, value in spec.options.items() if key != download}
    network = build(spec.name, classes=spec.classes, shape=spec.shape, **options)
    restore_structure(network, spec)
    load_weights(network, path)
    return network.eval(), spec


def restore_structure(network: nn.Module, spec: NetworkSpec | None) -> None:
    """Change a freshly built network as the one was that the spec is of."""
    if spec is not None and spec.reuse is not None:
        apply_reuse(network, Reuse(**spec.reuse))


def read_state(path: Path, wanted: Collection[str]) -> dict[str, Tensor]:
    """A file's tensors by name, as `load_weights` reads it; prefixes stay where the wanted names have them.

    Raises:
        LimbeckError: there is no such file, it is damaged or not a state dict.
    """
    state = _stored(path)
    for prefix in _PREFIXES:
        if not any(name.startswith(prefix) for name in wanted) and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _stored(path: Path) -> dict[str, Tensor]:
    _check_exists(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise _damaged(path, error) from error
    try:
        if is_zipfile(path):
            with ZipFile(path) as file:  # torch.load does not look at the checksums
                damaged = file.testzip()
            if damaged:
                raise BadZipFile(f"{damaged} does not agree with its checksum")
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise LimbeckError(
            f"{path} is damaged, or holds more than tensors and plain values, which could run code when it is read: "
            "save network.state_dict() alone"
        ) from error
    except (RuntimeError, EOFError, ValueError, TypeError, LookupError, OSError, BadZipFile) as error:
        raise _damaged(path, error) from error
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise LimbeckError(f"{path} holds no state dict, neither as it is nor under {' or '.join(_WRAPPERS)}")
    return dict(state)


def _check_exists(path: Path) -> None:
    if not path.is_file():
        others = [other.name for other in path.parent.glob("*") if other.suffix in (".safetensors", ".pt", ".pth")]
        raise LimbeckError(f"there is no file {path}" + (f": {nearest(path.name, others)}" if others else ""))


def _damaged(path: Path, error: Exception) -> LimbeckError:
    reason = (str(error).splitlines() or [""])[0]
    return LimbeckError(f"{path} is cut short or damaged ({type(error).__name__}: {reason})")
