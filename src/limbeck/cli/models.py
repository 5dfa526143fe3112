"""The commands `limbeck models` and `limbeck taps`, which list networks and the layers of a network."""

import fnmatch
from typing import Annotated

import typer
from rich.table import Table

from limbeck.cli.reporting import reporting
from limbeck.cli.terminal import console
from limbeck.errors import LimbeckError, nearest


def models(pattern: Annotated[str, typer.Argument(help="A pattern for names, such as 'resnet*'.")] = "*") -> None:
    """List the networks of the zoo."""
    with reporting():
        import torch

        from limbeck.evaluate import parameters
        from limbeck.models import MODELS, build, options

        names = fnmatch.filter(MODELS, pattern if set(pattern) & set("*?[") else f"*{pattern}*")
        if not names:
            raise LimbeckError(f"no model matches {pattern!r}: {nearest(pattern, MODELS)}")
        table = Table("model", "options", "parameters", title="for 10 classes of 3x32x32 images")
        for name in names:
            known = options(name)
            needed = [key for key, option in known.items() if option.default is option.empty]
            with torch.device("meta"):
                count = "" if needed else f"{parameters(build(name, classes=10, shape=(3, 32, 32))):,}"
            shown = [key if key in needed else f"{key}={option.default}" for key, option in known.items()]
            table.add_row(name, ", ".join(shown), count)
        console().print(table)


def taps(
    model: Annotated[str, typer.Argument(help="The name of a model, as in a recipe.")],
    shape: Annotated[str, typer.Option(metavar="C,H,W", help="The shape of one input.")] = "3,32,32",
    classes: Annotated[int, typer.Option(min=2, help="The number of classes.")] = 10,
    override: Annotated[list[str] | None, typer.Option("--set", metavar="A=B", help="An option of the model.")] = None,
) -> None:
    """List the layers of a network and their output shapes."""
    with reporting():
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        from limbeck.models import build, layers

        settings = [item.partition("=") for item in override or []]
        try:
            sizes = tuple(int(size) for size in shape.split(","))
            options = {key: YAML(typ="safe").load(value) for key, _, value in settings}
        except (ValueError, YAMLError) as error:
            raise LimbeckError(
                f"got --shape {shape!r} and --set {override or []}: write --shape C,H,W and --set option=value"
            ) from error
        network = build(model, classes=classes, shape=sizes, **options)
        try:
            rows = layers(network, sizes)
        except Exception as error:  # a user's network may raise anything
            raise LimbeckError(
                f"{model} does not run on samples of shape {sizes}: {type(error).__name__}: {error}"
            ) from error
        table = Table("layer", "kind", "output", "parameters")
        for layer in rows:
            table.add_row(layer.name, layer.kind, "x".join(map(str, layer.shape or ())), f"{layer.parameters:,}")
        console().print(table, soft_wrap=True)
