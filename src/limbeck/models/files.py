"""Save and load the weights of a network together with its specification. Loading never runs code from the file.

docs/security.md lists the guarantees and all limits.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.core import LimbeckError
from limbeck.errors import nearest
from limbeck.files.atomic import replacing
from limbeck.files.paths import expanded, file_size
from limbeck.files.pickled import ALONE, damaged, read_pickled
from limbeck.models.checkpoints import Found, described, find_state
from limbeck.models.compressed import Coding, SharedWeight, coding_of, decoded, encoded, shapes_of
from limbeck.models.fitting import check_fit
from limbeck.models.rebuilding import check_reuse, portable, rebuild, restore_structure
from limbeck.models.reuse import find_reuse
from limbeck.models.spec import GIVEN, NetworkSpec, parse

HEADER = 2**24
"""The largest header of a safetensors file in bytes: 16 MiB, enough for about 100,000 tensors."""

LARGEST = 2**40
"""The largest weights file in bytes: 1 TiB."""

LEAST, TIMES = 2**30, 20
"""A file may have LEAST bytes, or TIMES the size of the network: checkpoints also hold optimizers, averages, copies."""

SHARDS = ".index.json"  # the ending of Hugging Face's index, which maps each tensor of a large network to a file

_KEY = "limbeck"
_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def save_network(
    network: nn.Module, path: Path, *, spec: NetworkSpec, compressed: Mapping[str, SharedWeight] = MappingProxyType({})
) -> None:
    """Write the parameters and buffers as safetensors, with the spec in the metadata. The write is atomic.

    Loading the file restores the exact bits. A tensor with two names (tied weights) is written under both. Folders are
    removed from a model ``path/to/file.py:function`` and from options that are absolute paths. The weights in
    ``compressed``, by name, are entropy-coded.

    Raises:
        LimbeckError: an option in the spec cannot be written as JSON.
    """
    changed = find_reuse(network)
    name, options = portable(spec.name, spec.options)
    reuse = None if changed is None else asdict(changed)
    try:
        metadata = {_KEY: json.dumps(asdict(replace(spec, name=name, options=options, reuse=reuse)))}
    except TypeError as error:
        raise LimbeckError(f"the options {spec.options} of {spec.name} cannot be saved in {path}: {error}") from error
    # safetensors supports neither shared nor strided storage, such as channels_last
    tensors = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format).cpu()
        for name, tensor in network.state_dict().items()
    }
    if compressed:
        tensors, coding = encoded(tensors, compressed)
        metadata |= coding
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_spec(path: Path) -> NetworkSpec | None:
    """Read the spec from a weights file. Return None if limbeck did not write the file.

    Raises:
        LimbeckError: the file does not exist or is damaged.
    """
    size = _size(path, LARGEST)
    return _header(path, size)[0] if _is_safetensors(path) else None


def load_weights(network: nn.Module, path: Path | str) -> str:
    """Load all parameters and buffers from a file into a network with the same layers.

    Args:
        network: the network, changed in place. Its device and dtypes stay the same.
        path: a safetensors file, a file of torch.save, or the index of Hugging Face's shards. The weights may be under
            any keys and their names may have any prefix, see `find_state`.

    Returns:
        A note on which of the file's weights were loaded; empty if the file is a plain state dict.

    Raises:
        LimbeckError: the file does not exist, is damaged, or has no weights that fit. The network is then unchanged.
    """
    return _loaded(network, read_state(expanded(path), network.state_dict()))


def load_all_but_classifier(network: nn.Module, path: Path, classifier: str) -> str:
    """Load the parameters and buffers of a file into a network, except its classifier; otherwise as `load_weights`.

    The file may be of a network with any number of classes, or without a classifier.

    Raises:
        LimbeckError: the network has no layer of this name with weights; the file does not exist, is damaged or has no
            weights; or another layer does not fit. The network is then unchanged.
    """
    state = network.state_dict()
    if not any(name.startswith(f"{classifier}.") for name in state):
        layers = dict.fromkeys(name.rpartition(".")[0] for name in state)
        raise LimbeckError(f"the network has no layer {classifier!r} with weights: {nearest(classifier, layers)}")
    return _loaded(network, read_state(path, state, classifier=classifier))


def _loaded(network: nn.Module, found: Found) -> str:
    """Load weights into a network; return the note on them."""
    state = network.state_dict()
    state.update(found.state)  # keeps the versions of the layers, which some networks of torchvision need
    network.load_state_dict(state)
    return found.note


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
    """Load a network that `save_network` wrote, in eval mode. By default no code is run and nothing is downloaded.

    Networks of the zoo, timm and torchvision are built from the file alone. For a network of a user's code,
    ``path/to/file.py:function``, the caller names the model.

    Args:
        path: the file.
        network: load the weights into this network and ignore the network that the file names. The file may be any
            that `load_weights` reads. If it is of a pruned network, the layers of this network are narrowed.
        model: build this model, named as in a recipe, with the options, classes and shape from the file.
        trust_code: run the Python file that the weights file names. Use this only for files from a trusted source.

    Returns:
        The network and the spec from the file. The spec is None if ``network`` is given and limbeck did not write the
        file.

    Raises:
        LimbeckError: the file does not exist, is damaged, names code or a network that does not fit its weights, or
            was not written by limbeck; or its network cannot be built.
    """
    path = expanded(path)
    if network is not None and model is not None:
        raise LimbeckError("load_network takes a network= or a model=, not both")
    size = _size(path, LARGEST)
    spec, shapes, _ = _header(path, size) if _is_safetensors(path) else (None, {}, None)
    if network is not None:
        if not isinstance(network, nn.Module):
            raise LimbeckError(f"network is a {type(network).__name__}: it must be a torch.nn.Module")
        if spec is not None:
            check_reuse(path, spec, shapes)
            restore_structure(network, spec, shapes)
        load_weights(network, path)
        return network.eval(), spec
    if spec is not None and model is None and spec.name == GIVEN:
        raise LimbeckError(
            f"{path} is from a module that was passed to limbeck.distill: build the network and pass it as network=, "
            "or name the model with model="
        )
    if spec is None:
        raise LimbeckError(f"{path} does not say which network it holds: build the network and pass it as network=")
    built = rebuild(path, spec, shapes, model=model, trust_code=trust_code)
    load_weights(built, path)
    return built.eval(), spec


def read_state(path: Path, expected: Mapping[str, Tensor], *, classifier: str = "") -> Found:
    """Read the weights of a network from a file, as `load_weights` does.

    The layer ``classifier`` keeps its weights in ``expected``, the network's state dict; the file's are ignored.

    Raises:
        LimbeckError: the file does not exist, is damaged, or has no weights that fit.
    """
    size = TIMES * sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    content = _content(path, max(LEAST, size), size)
    found = find_state(content, expected, classifier=classifier)
    if found is None:
        raise LimbeckError(f"{path} contains no weights, {described(content)}: {ALONE}")
    if not found.fits:
        check_fit(path, found.state, expected, described(content), found.beside)
        raise LimbeckError(f"{path} does not fit the network: {described(content)}")
    for name, tensor in found.state.items():
        _check_type(path, name, tensor, expected[name])
    return found


def _check_type(path: Path, name: str, tensor: Tensor, expected: Tensor) -> None:
    """Raise LimbeckError unless a tensor is dense and its dtype can be converted to the network's."""
    kinds = {
        "sparse or nested": tensor.layout != torch.strided or tensor.is_nested,
        "quantized": tensor.is_quantized,
        "without values": tensor.is_meta,
        f"as {tensor.dtype} instead of {expected.dtype}": tensor.is_complex() != expected.is_complex()
        or (expected.is_floating_point() and not tensor.is_floating_point()),
    }
    wrong = [kind for kind, applies in kinds.items() if applies]
    if wrong:
        raise LimbeckError(f"{path} has the weights {name} {wrong[0]}: save dense tensors of the network's dtype")


def _content(path: Path, most: int, most_decoded: int) -> Any:
    """Load the content of a file of at most ``most`` bytes, whose weights have at most ``most_decoded`` if decoded."""
    if path.name.endswith(SHARDS):
        return _shards(path, most)
    size = _size(path, most)
    if not _is_safetensors(path):
        return read_pickled(path, size)
    coding = _header(path, size)[2]
    try:
        tensors = load_file(path)
    except _SAFETENSORS as error:
        raise damaged(path, error) from error
    return tensors if coding is None else decoded(path, tensors, coding, most=most_decoded)


def _shards(index: Path, most: int) -> dict[str, Tensor]:
    """Load the tensors of all files that Hugging Face's index names."""
    tensors: dict[str, Tensor] = {}
    for file in weights_files(index)[1:]:
        left = most - sum(t.numel() * t.element_size() for t in tensors.values())
        held = _content(file, left, left)
        if isinstance(held, dict):
            tensors |= {key: value for key, value in held.items() if isinstance(value, Tensor)}
    return tensors


def weights_files(path: Path) -> list[Path]:
    """Return the file and, if it is the index of Hugging Face's shards, the shards, which are in its folder.

    Raises:
        LimbeckError: the index is damaged, or names files outside of its folder.
    """
    if not path.name.endswith(SHARDS):
        return [path]
    size = file_size(path, most=HEADER)
    try:
        with path.open("rb") as file:
            names = sorted(set(json.loads(file.read(size))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, error) from error
    for name in names:
        if not isinstance(name, str) or not name or Path(name).name != name or name.endswith(SHARDS):
            raise LimbeckError(f"{path} names the shard {name!r}, allowed are names of files in its folder")
    return [path, *map(path.with_name, names)]


_SAFETENSORS = (SafetensorError, ValueError, TypeError, LookupError, RuntimeError, OSError, MemoryError)
"""The exceptions for a damaged file, and for a dtype that this version of PyTorch does not know."""


def _header(path: Path, size: int) -> tuple[NetworkSpec | None, dict[str, Tensor], Coding | None]:
    """Read the spec, the tensors' names, shapes and dtypes (as meta tensors), and the coding of compressed weights.

    Raises:
        LimbeckError: the header is damaged or longer than `HEADER`.
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
                name: torch.empty(part.get_shape(), dtype=_DTYPES.get(part.get_dtype(), torch.uint8), device="meta")
                for name, part in slices.items()
            }
    except _SAFETENSORS as error:
        raise damaged(path, error) from error
    coding = coding_of(path, metadata, shapes)
    shapes |= {} if coding is None else shapes_of(coding)
    if _KEY not in metadata:
        return None, shapes, coding
    try:
        return parse(metadata[_KEY]), shapes, coding
    except ValueError as error:
        raise LimbeckError(f"{path} has a description of its network that limbeck cannot read: {error}") from error


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


def _is_safetensors(path: Path) -> bool:
    """Whether the name ends in .safetensors, or the file begins with a length of 8 bytes and a JSON object."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _size(path: Path, most: int) -> int:
    size = file_size(path, most=most, endings=_ENDINGS)
    if size == 0:
        raise damaged(path, EOFError("it is empty"))
    return size
