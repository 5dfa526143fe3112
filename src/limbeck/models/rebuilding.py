"""Build the network that a weights file describes, without running code from it, if it fits the file's tensors."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from limbeck.core import LimbeckError
from limbeck.files.pickled import first_line
from limbeck.models.building import MODELS, build
from limbeck.models.fitting import check_fit
from limbeck.models.narrowing import narrow
from limbeck.models.reuse import Reuse, apply_reuse, find_reuse, projector
from limbeck.models.spec import NetworkSpec
from limbeck.user_code import named

LARGEST = 2**32
"""The largest network in bytes that is built from its file alone: 4 GiB. Larger ones need the name of the model."""

NUMBER, VALUES = 2**16, 10_000
"""The largest number in the options of a file, or the largest dimension of a tensor; the most values of an option."""

PRUNED = 16
"""A pruned network may have been built with PRUNED times the bytes of its file, but with at most LARGEST."""

_LIBRARIES = ("timm", "torchvision")

_FETCHED = frozenset({"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"})
_FETCHED |= {"weights", "weights_backbone", "progress"}
"""Options of the libraries that select initial weights. They are ignored, as the file has the weights."""

_STRUCTURAL = re.compile("pretrained|checkpoint|weights|features_only|feature_c|scriptable|exportable|_cfg$|^cfg|hub")
"""Options of the libraries that no file may set: they name other files or another kind of network."""

_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.linspace)


def portable(name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a network's name and options without the folders of this machine."""
    file, _, function = name.rpartition(":")
    short = f"{PureWindowsPath(file).name}:{function}" if file.endswith(".py") else name
    return short, {key: _without_folders(value) for key, value in options.items()}


def rebuild(
    path: Path,
    spec: NetworkSpec,
    shapes: Mapping[str, Tensor],
    *,
    model: str | None,
    trust_code: bool,
) -> nn.Module:
    """Build the network that a file describes, or the ``model``, with random weights.

    Of ``shapes``, the tensors of the file, only the names, shapes and dtypes are used.

    Raises:
        LimbeckError: the file names code, an option is not plain or would load a file, or the network cannot be built
            or does not fit.
    """
    name = spec.name if model is None else model
    try:
        code = named(name)
    except LimbeckError as error:
        raise LimbeckError(f"{path} has an invalid network name: {error}") from error
    if code is not None and model is None and not trust_code:
        raise LimbeckError(
            f"{path} names code as its network, {name!r}, and loading weights does not run code. Build the network and "
            "pass it (network=...); or name the model (model='path/to/file.py:function', in a recipe model: next to "
            "weights:); or, if you trust the source of the file, pass trust_code=True (--trust-code)"
        )
    options = dict(spec.options) if code is not None else _checked(path, name, spec.options, shapes)
    size = sum(tensor.numel() * tensor.element_size() for tensor in shapes.values())

    def made() -> nn.Module:
        network = build(name, classes=spec.classes, shape=spec.shape, **options)
        restore_structure(network, spec, shapes)
        return network

    if code is not None:  # the caller's code may not support the meta device
        check_reuse(path, spec, shapes)
        return made()
    if model is None and size > LARGEST:
        raise LimbeckError(
            f"{path} has {size:,} bytes of weights, allowed are at most {LARGEST:,} if the network is built from the "
            "file alone: pass network= or model= (in a recipe model: next to weights:)"
        )
    size = min(PRUNED * size, max(LARGEST, size)) if spec.pruned else size
    _look(path, made, shapes, size, plain=not options and name not in MODELS)
    return made()


def restore_structure(network: nn.Module, spec: NetworkSpec, shapes: Mapping[str, Tensor]) -> None:
    """Apply the changes of structure that the spec describes to a built network, unless it has them already.

    Of ``shapes``, the tensors of the file, only the names and shapes are used.

    Raises:
        LimbeckError: the description is invalid, or the network cannot be changed like this.
    """
    reuse = _reuse(spec)
    if reuse is not None and find_reuse(network) is None:
        apply_reuse(network, reuse)
    if spec.pruned:
        narrow(network, shapes)


def check_reuse(path: Path, spec: NetworkSpec, shapes: Mapping[str, Tensor]) -> None:
    """Raise LimbeckError if the layers that a file adds to a network have more weights than the file."""
    reuse = _reuse(spec)
    if reuse is None:
        return
    with torch.device("meta"):
        added = [projector(reuse), nn.Linear(reuse.outside, reuse.classes)]
    count = sum(parameter.numel() for module in added for parameter in module.parameters())
    if count - reuse.classes > sum(tensor.numel() for tensor in shapes.values()):
        raise LimbeckError(f"{path} describes a projector and classifier of {count:,} weights, but has fewer weights")


def _reuse(spec: NetworkSpec) -> Reuse | None:
    if spec.reuse is None:
        return None
    try:
        reuse = TypeAdapter(Reuse).validate_python(dict(spec.reuse), extra="forbid")
    except (ValidationError, TypeError) as error:
        raise LimbeckError(f"the file has an invalid description of a reused classifier: {spec.reuse}") from error
    numbers = (reuse.channels, reuse.outside, reuse.classes, reuse.factor, *(reuse.size or ()))
    if reuse.side not in ("output", "input") or not all(0 < number <= 2**20 for number in numbers):
        raise LimbeckError(f"the file has an invalid description of a reused classifier: {spec.reuse}")
    return reuse


class _Bounded(TorchFunctionMode):
    """Raise LimbeckError once more operations or bytes are used than a network of this size needs to be built."""

    def __init__(self, tensors: int, size: int) -> None:
        super().__init__()
        self._calls, self._bytes = 32 * tensors + 10_000, 8 * size + 2**28

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES:  # count the bytes before they are allocated
            self._count(func(*args, **{**kwargs, "device": "meta"}))
        made = func(*args, **kwargs)
        if isinstance(made, Tensor) and func not in _FACTORIES and not (args and made is args[0]):
            self._count(made)
        self._calls -= 1
        return made

    def _count(self, made: Tensor) -> None:
        self._bytes -= made.numel() * made.element_size()
        if self._bytes < 0 or self._calls < 0:
            raise LimbeckError("it needs more memory or operations than its file justifies")


def _look(path: Path, made: Callable[[], nn.Module], shapes: Mapping[str, Tensor], size: int, *, plain: bool) -> None:
    """Build the network on the meta device and compare it with the file.

    Some networks of the libraries do not support the meta device. Without options, these have their published size and
    are built with bounded memory.
    """
    try:
        try:
            with torch.device("meta"), _Bounded(len(shapes), size):
                network = made()
        except LimbeckError as error:
            if not (plain and isinstance(error.__cause__, NotImplementedError)):
                raise
            with _Bounded(len(shapes), size):
                network = made()
    except Exception as error:  # the values come from an untrusted file and may cause any exception
        raise LimbeckError(f"{path} describes a network that cannot be built: {first_line(error)}") from error
    check_fit(path, shapes, network.state_dict())


def _checked(path: Path, name: str, options: Mapping[str, Any], shapes: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options if they are plain values of bounded size.

    Raises:
        LimbeckError: an option is not, or would load a file.
    """
    most = max([NUMBER, *(size for tensor in shapes.values() if tensor.numel() for size in tensor.shape)])
    library = name.partition(":")[0] in _LIBRARIES
    kept = {key: value for key, value in options.items() if not (library and key in _FETCHED)}
    for key, value in kept.items():
        if library and _STRUCTURAL.search(key):
            raise LimbeckError(f"{path} sets the option {key!r} of {name}, which a weights file must not set")
        for count, one in enumerate(_leaves(value)):
            wrong = isinstance(one, int | float) and abs(one) > most
            wrong |= isinstance(one, str) and (len(one) > 100 or any(sign in one for sign in "/\\:"))
            if count > VALUES or wrong or not isinstance(one, bool | int | float | str | None):
                raise LimbeckError(
                    f"{path} sets the option {key!r} of {name} to {str(one)[:60]!r}: allowed are true, false, short "
                    f"text that is not a path, numbers up to {most:,}, and lists of these"
                )
    return kept


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _without_folders(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_without_folders(inner) for inner in value]
    if isinstance(value, Mapping):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, Path):
        return value.name
    whole = isinstance(value, str) and len(value) > 1 and _is_whole(value)
    return PureWindowsPath(value).name if whole else value


def _is_whole(text: str) -> bool:
    return text.startswith("~") or PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
