"""Build networks of timm, of torchvision, and of a function in a user's file."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from xxhash import xxh3_128_hexdigest

from limbeck.core import LimbeckError
from limbeck.errors import close_names
from limbeck.models.functions import as_network
from limbeck.models.inputs import Channels, Input
from limbeck.user_code import contents, function

Options = Mapping[str, Any]


def check_name(name: str) -> None:
    """Raise LimbeckError if ``timm:NAME`` or ``torchvision:NAME`` names no network."""
    source, _, rest = name.partition(":")
    if source == "timm":
        import timm

        # timm would download the configuration of a name such as hf-hub:..., so only names in its list are allowed
        if not timm.is_model(rest):
            raise LimbeckError(f"timm has no model {rest!r}{_close(rest, timm.list_models())}")
    else:
        from torchvision import models  # type: ignore[import-untyped]

        # by default the other kinds (detection, segmentation) download the weights of their backbone
        known = models.list_models(module=models)
        if rest not in known:
            raise LimbeckError(f"torchvision has no classifier {rest!r}{_close(rest, known)}")


def from_timm(name: str, *, classes: int, shape: tuple[int, ...], options: Options) -> nn.Module:
    """Build a network of timm. Its weights are random unless the options contain ``pretrained: true``.

    Raises:
        LimbeckError: timm has no network of this name, or fails to build it with these options.
    """
    import timm

    check_name(f"timm:{name}")
    fixed = {"num_classes": classes, "in_chans": shape[0]}
    return _call(f"timm:{name}", timm.create_model, name, fixed=fixed, options={"pretrained": False, **options})


def from_torchvision(name: str, *, classes: int, shape: tuple[int, ...], options: Options) -> nn.Module:
    """Build a classifier of torchvision. Its weights are random unless the options contain ``weights``.

    Raises:
        LimbeckError: torchvision has no classifier of this name, or fails to build it with these options; or the
            samples do not have 3 channels, which all classifiers of torchvision need.
    """
    from torchvision import models

    check_name(f"torchvision:{name}")
    if shape[0] != 3:
        raise LimbeckError(
            f"torchvision:{name} needs 3 channels, but the data has {shape[0]}: timm:NAME takes any number"
        )
    if isinstance(options.get("weights"), bool):
        raise LimbeckError(f"torchvision:{name}: weights is {options['weights']}; allowed are names such as DEFAULT")
    fixed = {"num_classes": classes}
    try:
        return _call(f"torchvision:{name}", models.get_model, name, fixed=fixed, options={"weights": None, **options})
    except LimbeckError as error:
        if options.get("weights") is None or "'num_classes'" not in str(error):
            raise
        raise LimbeckError(
            f"torchvision:{name} with the option weights has the classes that they were trained on, not {classes}: "
            "use timm:NAME with pretrained: true, which gets a new classifier; or save its state_dict() in a file and "
            "start from that file with weights: and init: fine_tune"
        ) from error


def pretrained_input(name: str, options: Options) -> Input | None:
    """What the pretrained weights of a network of timm or torchvision were trained on; None if it has none.

    timm's ``pretrained_cfg`` and the meta data of torchvision's weights say so. The size is part of it only if the
    network takes no other.
    """
    source, _, rest = name.partition(":")
    if source == "timm" and options.get("pretrained"):
        from timm.models import get_pretrained_cfg

        found = get_pretrained_cfg(rest)
        if found is None:
            return None
        fixed = found.fixed_input_size and not options.get("dynamic_img_size")
        size = options.get("img_size", found.input_size[1:]) if fixed else None
        return Input(tuple(found.mean), tuple(found.std), size, _colour(found.mean))
    if source == "torchvision" and options.get("weights"):
        from torchvision.models import get_model_weights  # type: ignore[import-untyped]

        try:
            preset = get_model_weights(rest).verify(options["weights"]).transforms()
        except (KeyError, ValueError, TypeError):  # the error is raised when the network is built
            return None
        return Input(tuple(preset.mean), tuple(preset.std), None, _colour(preset.mean))
    return None


def _colour(mean: Sequence[float]) -> Channels | None:
    """RGB for weights of three channels, so that grey images are repeated."""
    return "rgb" if len(mean) == 3 else None


def from_file(
    file: Path, name: str, *, classes: int, shape: tuple[int, ...], options: Options, trained: bool = False
) -> nn.Module:
    """Build a network with a function (or class) in a Python file, called as `build` describes.

    Args:
        file: the path of the file.
        name: the function.
        classes: the number of logits.
        shape: the shape of one sample.
        options: the options of the network.
        trained: the function may also return a trained teacher that is not a module, see `as_network`.

    Raises:
        LimbeckError: the file or function does not exist, does not accept these options, raises, or does not return
            a network.
    """
    label, code = f"{file}:{name}", contents(file)
    factory = function(file, name, code)
    try:
        parameters = inspect.signature(factory).parameters
    except (ValueError, TypeError) as error:  # some callables written in C have no signature
        raise LimbeckError(f"{label} has no readable signature: wrap it in a Python function") from error
    unknown = next((key for key in options if key not in parameters), None)
    if unknown is not None and not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        allowed = ", ".join(map(str, parameters.values())) or "nothing"
        raise LimbeckError(f"{label} has no option {unknown!r}{_close(unknown, parameters)}; it takes {allowed}")
    fixed = {key: value for key, value in (("classes", classes), ("shape", shape)) if key in parameters}
    identity = f"{name} {xxh3_128_hexdigest(code)}" if trained else ""
    return _call(label, factory, fixed=fixed, options=options, identity=identity)


def _call(
    label: str, factory: Callable[..., Any], *arguments: str, fixed: Options, options: Options, identity: str = ""
) -> nn.Module:
    """Call a factory. With an ``identity``, it may also return a function, which becomes a network of this identity."""
    for repeated in sorted(options.keys() & fixed.keys()):
        raise LimbeckError(f"{label}: {repeated} is set from the data, remove it from the options")
    try:
        network = factory(*arguments, **fixed, **options)
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        if (options.get("pretrained") or options.get("weights")) and _is_connection_error(error):
            raise LimbeckError(
                f"{label}: its pretrained weights could not be downloaded ({type(error).__name__}: {error}): build it "
                "once with an internet connection, which caches them on this machine; or copy the file to this "
                "machine and name it under weights:, without pretrained: true"
            ) from error
        raise LimbeckError(f"{label} could not be built: {type(error).__name__}: {error}") from error
    if identity and callable(network) and not isinstance(network, type):
        network = as_network(network, identity=identity)
    if not isinstance(network, nn.Module):
        raise LimbeckError(f"{label} returned a {type(network).__name__}, a model must be a torch.nn.Module")
    return network


def _is_connection_error(error: BaseException | None) -> bool:
    """Whether an error or one of its causes comes from the system or from the download library."""
    if error is None or isinstance(error, OSError) or type(error).__module__.startswith("httpx"):
        return error is not None
    return _is_connection_error(error.__cause__ or error.__context__)


def _close(name: str, names: Iterable[str]) -> str:
    near = close_names(name, names)
    return f": did you mean {' or '.join(near)}?" if near else ""
