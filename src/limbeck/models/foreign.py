"""Networks that are not ours: timm, torchvision, and a function in a file of the user's."""

import difflib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from limbeck.core import LimbeckError

Options = Mapping[str, Any]


def from_timm(name: str, *, classes: int, shape: tuple[int, ...], options: Options) -> nn.Module:
    """A network of timm with random weights, unless the options say ``pretrained: true``.

    Raises:
        LimbeckError: timm has no such network, or fails to build it with these options.
    """
    import timm

    # the configuration of a name such as hf-hub:... would be fetched from the network: only timm's own names pass
    if not timm.is_model(name):
        raise LimbeckError(f"timm has no model {name!r}{_close(name, timm.list_models())}")
    given = {"num_classes": classes, "in_chans": shape[0]}
    return _call(f"timm:{name}", timm.create_model, name, given=given, options={"pretrained": False, **options})


def from_torchvision(name: str, *, classes: int, shape: tuple[int, ...], options: Options) -> nn.Module:
    """A classifier of torchvision with random weights, unless the options name ``weights``.

    Raises:
        LimbeckError: torchvision has no such classifier, or fails to build it with these options; or the samples do
            not have 3 channels, which all of them need.
    """
    from torchvision import models  # type: ignore[import-untyped]

    # the other kinds (detection, segmentation) fetch the weights of their backbone unless told not to
    known = models.list_models(module=models)
    if name not in known:
        raise LimbeckError(f"torchvision has no classifier {name!r}{_close(name, known)}")
    if shape[0] != 3:
        raise LimbeckError(
            f"torchvision:{name} needs 3 channels, but the data has {shape[0]}: timm:NAME takes any number"
        )
    given = {"num_classes": classes}
    return _call(f"torchvision:{name}", models.get_model, name, given=given, options={"weights": None, **options})


def from_file(file: str, name: str, *, classes: int, shape: tuple[int, ...], options: Options) -> nn.Module:
    """What a function (or class) in a Python file makes of the options, and of the classes and shape if it wants them.

    Raises:
        LimbeckError: there is no such file or function, it does not take these options, it raises, or what it
            returns is no module.
    """
    label = f"{file}:{name}"
    factory = _attribute(_module(Path(file)), file, name)
    parameters = inspect.signature(factory).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        unknown = [key for key in options if key not in parameters]
        if unknown:
            allowed = ", ".join(map(str, parameters.values())) or "nothing"
            raise LimbeckError(
                f"{label} has no option {unknown[0]!r}{_close(unknown[0], parameters)}; it takes {allowed}"
            )
    given = {key: value for key, value in (("classes", classes), ("shape", shape)) if key in parameters}
    return _call(label, factory, given=given, options=options)


def _call(label: str, factory: Callable[..., Any], *places: str, given: Options, options: Options) -> nn.Module:
    taken = [key for key in options if key in given]
    if taken:
        raise LimbeckError(f"{label}: {taken[0]} comes from the data, leave it out of the options")
    try:
        network = factory(*places, **given, **options)
    except Exception as error:  # others' code may raise anything
        raise LimbeckError(f"{label} could not be built: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise LimbeckError(f"{label} gave {type(network).__name__}, a model is a torch.nn.Module")
    return network


def _module(file: Path) -> ModuleType:
    path = file.expanduser().resolve()
    if not path.is_file():
        others = [other.name for other in path.parent.glob("*.py")]
        raise LimbeckError(f"there is no file {file}{_close(path.name, others)}")
    name = "_limbeck_file_" + path.as_posix().replace("/", "_").replace(".", "_")
    loader = SourceFileLoader(name, str(path))
    spec = ModuleSpec(name, loader, origin=str(path))
    spec.has_location = True
    module = module_from_spec(spec)
    # dataclasses and pickling look a class's module up by its name
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except Exception as error:  # the user's file may raise anything
        del sys.modules[name]
        raise LimbeckError(f"{file} could not be imported: {type(error).__name__}: {error}") from error
    return module


def _attribute(module: ModuleType, file: str, name: str) -> Callable[..., Any]:
    functions = {key: value for key, value in vars(module).items() if callable(value) and not key.startswith("__")}
    if name not in functions:
        own = [key for key, value in functions.items() if getattr(value, "__module__", None) == module.__name__]
        raise LimbeckError(f"{file} has no function {name!r}{_close(name, own)}; it has {', '.join(own) or 'none'}")
    factory: Callable[..., Any] = functions[name]
    return factory


def _close(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f": did you mean {' or '.join(near)}?" if near else ""
