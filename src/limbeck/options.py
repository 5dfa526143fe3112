"""Validate the keys of a recipe block against the keyword arguments of a function, fill in defaults, and call it.

A block is ``{"name": ..., **options}`` or just the name. The signature of the function defines its options, their types
and defaults. `limbeck.recipe.signatures` reads a copy of the signatures without torch.
"""

import inspect
import json
import pathlib  # `Path` is left to `_TYPES`: a name of this module would come first
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from limbeck.errors import LimbeckError, nearest
from limbeck.files.paths import expanded
from limbeck.schedules import SCHEDULES
from limbeck.wording import Problem as Problem
from limbeck.wording import needed, problems_of, shown

Block = Mapping[str, Any]
Model = TypeVar("Model", bound=BaseModel)
AnyPath = TypeVar("AnyPath", str, pathlib.Path)

Signature = Mapping[str, Mapping[str, Any]]
"""The options of a function by name: ``{"type": "float | Schedule", "default": 4.0}``, or only a type if required."""

Known = Callable[..., Any] | Signature
"""A function that a block can name, or its signature."""

LARGEST = 2**31
"""The bound on integers in the options of a block; no count, size or index is as large."""


class Checked(BaseModel):
    """A block in which unknown keys are errors and values are not converted between types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def as_block(value: Any) -> Any:
    """Turn ``"cosine"`` into ``{"name": "cosine"}``; return other values unchanged."""
    return {"name": value} if isinstance(value, str) else value


def _named(value: Any) -> Any:
    block = as_block(value)
    if not isinstance(block, Mapping):
        raise needed("a name or a block with a name")
    return block


Named = Annotated[dict[str, Any], BeforeValidator(_named)]


def with_known_home(path: AnyPath) -> AnyPath:
    """The path as it is; a ValueError, which pydantic lists with all else, where ``~user`` is nobody."""
    try:
        expanded(path)
    except LimbeckError as error:
        raise ValueError(str(error)) from error
    return path


_TYPES = {
    "Whole": Annotated[int, Field(gt=-LARGEST, lt=LARGEST)],
    "Schedule": Named,  # a recipe has the block of a schedule
    "Path": Annotated[pathlib.Path, AfterValidator(with_known_home)],
    "Literal": Literal,
    "Sequence": Sequence,
}

_RANGES: Mapping[str, Any] = {
    "lr": Annotated[float, Field(gt=0)],
    "temperature": Annotated[float, Field(gt=0)],
    "contrast_temperature": Annotated[float, Field(gt=0)],
    "momentum": Annotated[float, Field(ge=0, lt=1)],
    "weight_decay": Annotated[float, Field(ge=0)],
}
"""The types of options that mean the same in every method and optimizer."""


def signature(function: Callable[..., Any], *, given: Collection[str] = ("shape", "classes")) -> Signature:
    """Return the keyword-only arguments of a function except those ``given`` by limbeck itself."""
    options = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and name not in given:
            annotation = parameter.annotation
            text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
            text = re.sub(r"\b(typing|collections\.abc|pathlib(\._local)?)\.", "", text)
            option = {"type": text.replace("Callable[[float], float]", "Schedule")}
            options[name] = option if parameter.default is parameter.empty else {**option, "default": parameter.default}
    return options


def keyword_model(
    known: Known, base: type[Checked] = Checked, types: Mapping[str, Any] = MappingProxyType({})
) -> type[Checked]:
    """Return a pydantic model with one field for each option, after those of the base.

    ``types`` replaces the types of the options that it names.
    """
    fields: dict[str, Any] = {}
    for name, option in _signature(known).items():
        default = option.get("default", ...)
        listed = tuple(default) if isinstance(default, list) else default  # JSON has no tuples
        fields[name] = (types.get(name) or re.sub(r"\bint\b", "Whole", option["type"]), listed)
    model: type[Checked] = create_model("Options", __base__=base, **fields)
    model.model_rebuild(_types_namespace=_TYPES)
    return model


def complete(
    block: Any,
    table: Mapping[str, Known],
    *,
    kind: str,
    presets: Mapping[str, Mapping[str, Block]] | None = None,
) -> tuple[dict[str, Any], list[Problem]]:
    """Return the block with every option filled in, and its problems (with paths inside the block)."""
    block = as_block(block)
    if not isinstance(block, Mapping) or not isinstance(block.get("name"), str):
        return {}, [Problem((), f"got {shown(block)}, a {kind} is a name or a block with a name: {nearest('', table)}")]
    options = dict(block)
    name = options.pop("name")
    if name not in table:
        return {}, [Problem(("name",), f"there is no {kind} {shown(name)}: {nearest(name, table)}")]
    if "preset" in options and presets is not None:
        preset, known = options.pop("preset"), presets.get(name, {})
        if not isinstance(preset, str) or preset not in known:
            return {}, [Problem(("preset",), f"{name} has no preset {shown(preset)}: {nearest(preset, known)}")]
        options = {**known[preset], **options}
    values, problems = validate(keyword_model(table[name], types=_RANGES), options)
    if values is None:
        return {}, problems
    for key in _schedules(table[name], values.model_dump()):
        filled, wrong = complete(getattr(values, key), SCHEDULES, kind="schedule")
        problems += [Problem((key, *problem.path), problem.message) for problem in wrong]
        values = values.model_copy(update={key: filled})
    if kind == "schedule":  # its function needs no torch, and checks the rest
        try:
            SCHEDULES[name](**values.model_dump())
        except LimbeckError as error:
            problems.append(Problem((), str(error)))
    return {"name": name, **values.model_dump(mode="json")}, problems


def fill(
    table: Mapping[str, Known],
    block: Any,
    *,
    kind: str,
    presets: Mapping[str, Mapping[str, Block]] | None = None,
) -> dict[str, Any]:
    """Return the completed block; raise LimbeckError if `complete` finds problems."""
    filled, problems = complete(block, table, kind=kind, presets=presets)
    if problems:
        raise LimbeckError("\n".join(".".join(map(str, (kind, *p.path))) + ": " + p.message for p in problems))
    return filled


def call(table: Mapping[str, Callable[..., Any]], block: Block, *arguments: Any) -> Any:
    """Call the function that a completed block names with the positional arguments and the options of the block."""
    function = table[block["name"]]
    options = {key: value for key, value in block.items() if key != "name"}
    for key in _schedules(function, options):
        options[key] = call(SCHEDULES, options[key])
    return function(*arguments, **options)


def validate(model: type[Model], values: Any) -> tuple[Model | None, list[Problem]]:
    """Return the values as the model (None if they are invalid), and their problems."""
    try:
        return model.model_validate_json(json.dumps(values, default=str)), []
    except ValidationError as error:
        return None, problems_of(error, model)


def with_takers(problem: Problem, table: Mapping[str, Collection[str]]) -> Problem:
    """The problem; if it is an unknown key, with the names of the table whose keys include this key."""
    key = str(problem.path[-1]) if problem.path else ""
    takers = [name for name, keys in table.items() if key in keys]
    if not takers or not problem.message.startswith("unknown key"):
        return problem
    listed = " and ".join(filter(None, (", ".join(takers[:-1]), takers[-1])))
    return Problem(problem.path, f"{problem.message}; it is a key of {listed}")


def _signature(known: Known) -> Signature:
    return known if isinstance(known, Mapping) else signature(known)


def _schedules(known: Known, options: Block) -> list[str]:
    types = {key: option["type"].split(" | ") for key, option in _signature(known).items()}
    return [key for key, value in options.items() if "Schedule" in types.get(key, ()) and isinstance(value, Mapping)]
