"""A network's weights on disk, with what is needed to build the network again. Reading them never runs code of theirs.

docs/security.md says what is promised, and every bound.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.core import LimbeckError
from limbeck.files.atomic import replacing
from limbeck.files.paths import expanded, file_size
from limbeck.files.pickled import ALONE, damaged, read_pickled
from limbeck.models.checkpoints import Found, described, find_state
from limbeck.models.fitting import check_fit
from limbeck.models.rebuilding import check_reuse, portable, rebuild, restore_structure
from limbeck.models.reuse import find_reuse
from limbeck.models.spec import GIVEN, NetworkSpec, parse

HEADER = 2**24
"""The most bytes of the header of safetensors: 16 MiB, of some 100,000 tensors."""

LARGEST = 2**40
"""The most bytes of a weights file that is opened at all: 1 TiB."""

LEAST, TIMES = 2**30, 20
"""A file may be as large as this, or so many times the network that it is for: an optimizer, averages, copies."""

SHARDS = ".index.json"  # ends the file that says which file has which tensor, as Hugging Face writes large networks

_KEY = "limbeck"
_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def save_network(network: nn.Module, path: Path, *, spec: NetworkSpec) -> None:
    """Write parameters and buffers as safetensors, with the spec in the metadata, whole or not at all.

    What is read back is bit-identical. A tensor with two names (tied weights) is written under both. Of a model
    ``path/to/file.py:function``, and of options that are whole paths, the last part is written.

    Raises:
        LimbeckError: an option in the spec cannot be written as JSON.
    """
    changed = find_reuse(network)
    name, options = portable(spec.name, spec.options)
    reuse = None if changed is None else asdict(changed)
    try:
        metadata = {_KEY: json.dumps(asdict(replace(spec, name=name, options=options, reuse=reuse)))}
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
    size = _size(path, LARGEST)
    return _header(path, size)[0] if _is_safetensors(path) else None


def load_weights(network: nn.Module, path: Path | str) -> str:
    """Load a file's parameters and buffers, all of them, into a network of the same layers.

    Args:
        network: is changed in place; its device and dtypes stay.
        path: safetensors, what torch.save wrote, or the index of Hugging Face's shards. The weights may lie under any
            keys, and their names have any prefix, as training scripts save them; see `find_state`.

    Returns:
        Which of the file's weights were taken, a sentence; empty where it holds them plainly and nothing else.

    Raises:
        LimbeckError: there is no such file, it is damaged, or it holds no weights that fit the network; then the
            network is as it was.
    """
    found = read_state(expanded(path), network.state_dict())
    network.load_state_dict(found.state)
    return found.said


@overload
def load_network(
    path: Path | str, *, network: None = None, model: str | None = None, trust_code: bool = False
) -> tuple[nn.Module, NetworkSpec]: ...
@overload
def load_network(
    path: Path | str, *, network: nn.Module, model: None = None, trust_code: bool = False
) -> tuple[nn.Module, NetworkSpec | None]: ...
def load_network(
    path: Path | str, *, network: nn.Module | None = None, model: str | None = None, trust_code: bool = False
) -> tuple[nn.Module, NetworkSpec | None]:
    """The network that `save_network` wrote, in eval mode. No code that the file names is run, nothing is downloaded.

    From the file alone are built networks of the zoo, of timm and of torchvision. One of a user's own code,
    ``path/to/file.py:function``, is named by the caller.

    Args:
        path: the file.
        network: load the weights into this one, whatever the file says of its network. The file may be any that
            `load_weights` reads.
        model: build this model, as a recipe names it, with the options and for the classes and shape of the file.
        trust_code: run the Python file that the weights file names. Only say so of a file that you know.

    Returns:
        The network, and what the file says of it; None of files that limbeck did not write, with ``network``.

    Raises:
        LimbeckError: there is no such file, it is damaged, names code or another network than it has the weights of,
            limbeck did not write it, or its network cannot be built.
    """
    path = expanded(path)
    if network is not None and model is not None:
        raise LimbeckError("load_network takes a network= or a model=, not both")
    size = _size(path, LARGEST)
    spec, shapes = _header(path, size) if _is_safetensors(path) else (None, {})
    if network is not None:
        if not isinstance(network, nn.Module):
            raise LimbeckError(f"network is a {type(network).__name__}: pass the module that the file is of")
        if spec is not None and spec.reuse is not None and find_reuse(network) is None:
            check_reuse(path, spec, shapes)
            restore_structure(network, spec)
        load_weights(network, path)
        return network.eval(), spec
    if spec is not None and model is None and spec.name == GIVEN:
        raise LimbeckError(
            f"{path} is of a network that was given to limbeck.distill as a module: build it and pass it by network=, "
            "or name the model by model="
        )
    if spec is None:
        raise LimbeckError(f"{path} does not say which network it holds: build it and pass it as network=")

    def fits(built: nn.Module) -> None:
        check_fit(path, shapes, built.state_dict())

    built = rebuild(path, spec, shapes, model=model, trust_code=trust_code, fits=fits)
    load_weights(built, path)
    return built.eval(), spec


def read_state(path: Path, wanted: Mapping[str, Tensor], *, classifier: str = "") -> Found:
    """A file's weights of a network, as `load_weights` reads them.

    Args:
        path: the file.
        wanted: the network's state dict.
        classifier: a layer of which the file's weights are left out, and the network's own taken.

    Raises:
        LimbeckError: there is no such file, it is damaged, or it holds no weights that fit.
    """
    content = _content(
        path, max(LEAST, TIMES * sum(tensor.numel() * tensor.element_size() for tensor in wanted.values()))
    )
    found = find_state(content, wanted, classifier=classifier)
    if found is None:
        raise LimbeckError(f"{path} holds no weights, {described(content)}: {ALONE}")
    if not found.fits:
        check_fit(path, found.state, wanted, described(content))
        raise LimbeckError(f"{path} does not fit the network: {described(content)}")
    for name, tensor in found.state.items():
        _check_numbers(path, name, tensor, wanted[name])
    return found


def _check_numbers(path: Path, name: str, tensor: Tensor, wanted: Tensor) -> None:
    """Raise LimbeckError unless a tensor holds numbers that a network's own can be set to."""
    kinds = {
        "sparse or nested": tensor.layout != torch.strided or tensor.is_nested,
        "quantized": tensor.is_quantized,
        "without numbers": tensor.is_meta,
        f"as {tensor.dtype} for {wanted.dtype}": tensor.is_complex() != wanted.is_complex()
        or (wanted.is_floating_point() and not tensor.is_floating_point()),
    }
    wrong = [kind for kind, found in kinds.items() if found]
    if wrong:
        raise LimbeckError(f"{path} holds the weights {name} {wrong[0]}: save dense tensors of the network's own type")


def _content(path: Path, most: int) -> Any:
    """What a file holds, of a size that is allowed."""
    if path.name.endswith(SHARDS):
        return _shards(path, most)
    size = _size(path, most)
    if not _is_safetensors(path):
        return read_pickled(path, size)
    _header(path, size)
    try:
        return load_file(path)
    except _SAFETENSORS as error:
        raise damaged(path, error) from error


def _shards(index: Path, most: int) -> dict[str, Tensor]:
    """The tensors of all the files that Hugging Face's index names; they lie beside it."""
    size = file_size(index, most=HEADER)
    try:
        with index.open("rb") as file:
            files = sorted(set(json.loads(file.read(size))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(index, error) from error
    tensors: dict[str, Tensor] = {}
    for name in files:
        if not isinstance(name, str) or not name or Path(name).name != name or name.endswith(SHARDS):
            raise LimbeckError(f"{index} names a shard {name!r}, needed is the name of a file beside it")
        held = _content(index.with_name(name), most - sum(t.numel() * t.element_size() for t in tensors.values()))
        if isinstance(held, dict):
            tensors |= {key: value for key, value in held.items() if isinstance(value, Tensor)}
    return tensors


_SAFETENSORS = (SafetensorError, ValueError, TypeError, LookupError, RuntimeError, OSError, MemoryError)
"""What is raised of a damaged file, and of a type of numbers that this PyTorch does not know."""


def _header(path: Path, size: int) -> tuple[NetworkSpec | None, dict[str, Tensor]]:
    """What the header of safetensors says: of the network, and its tensors, without their numbers.

    Raises:
        LimbeckError: it is damaged, or longer than `HEADER`.
    """
    with path.open("rb") as file:
        start = file.read(min(size, 8))
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if HEADER < length <= size:
        raise LimbeckError(f"{path} has a header of {length:,} bytes, allowed are at most {HEADER:,}")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            shapes = {
                name: torch.empty(found.get_shape(), dtype=_dtype(found.get_dtype()), device="meta")
                for name, found in slices.items()
            }
    except _SAFETENSORS as error:
        raise damaged(path, error) from error
    if _KEY not in metadata:
        return None, shapes
    try:
        return parse(metadata[_KEY]), shapes
    except ValueError as error:
        raise LimbeckError(f"{path} describes its network in a way this limbeck does not read: {error}") from error


def _dtype(name: str) -> torch.dtype:
    return _DTYPES.get(name, torch.uint8)


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


def _is_safetensors(path: Path) -> bool:
    """Whether the name says so, or the beginning of the file: a length of 8 bytes, and a JSON object."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _size(path: Path, most: int) -> int:
    size = file_size(path, most=most, endings=_ENDINGS)
    if size == 0:
        raise damaged(path, EOFError("it is empty"))
    return size
