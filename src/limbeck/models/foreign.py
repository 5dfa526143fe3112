"""Networks that are not ours: timm, torchvision, and a function in a file of the user's."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.core import LimbeckError
from limbeck.errors import close_names
from limbeck.user_code import contents, function

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
    try:
        return _call(f"torchvision:{name}", models.get_model, name, given=given, options={"weights": None, **options})
    except LimbeckError as error:
        if options.get("weights") is None or "'num_classes'" not in str(error):
            raise
        raise LimbeckError(
            f"torchvision:{name} with the option weights has the classes that those were trained for, not {classes}: "
            "take timm:NAME with pretrained: true, which gets a new classifier; or save its state_dict() in a file, "
            "and start from that by weights: and init: fine_tune"
        ) from error


def from_file(file: Path, name: str, *, classes: int, shape: tuple[int, ...], options: Options) -> nn.Module:
    """What a function (or class) in a Python file makes of the options, and of the classes and shape if it wants them.

    Raises:
        LimbeckError: there is no such file or function, it does not take these options, it raises, or what it
            returns is no module.
    """
    label = f"{file}:{name}"
    factory = function(file, name, contents(file))
    parameters = _parameters(label, factory)
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
    except (Exception, SystemExit) as error:  # others' code may raise anything
        if (options.get("pretrained") or options.get("weights")) and _is_of_the_network(error):
            raise LimbeckError(
                f"{label}: its pretrained weights could not be downloaded ({type(error).__name__}: {error}): build it "
                "once with a connection to the internet, after which they are kept on this machine; or bring the file "
                "here and name it under weights:, without pretrained: true"
            ) from error
        raise LimbeckError(f"{label} could not be built: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise LimbeckError(f"{label} gave {type(network).__name__}, a model is a torch.nn.Module")
    return network


def _parameters(label: str, factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except (ValueError, TypeError) as error:  # of some that are written in C
        raise LimbeckError(f"{label} does not say which arguments it takes: wrap it in a function") from error


def _is_of_the_network(error: BaseException) -> bool:
    """Whether an error, or one that it came of, is of a connection: of the system, or of the library for downloads."""
    chain: Iterator[BaseException] = _causes(error)
    return any(isinstance(cause, OSError) or type(cause).__module__.startswith("httpx") for cause in chain)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _close(name: str, names: Iterable[str]) -> str:
    near = close_names(name, names)
    return f": did you mean {' or '.join(near)}?" if near else ""
