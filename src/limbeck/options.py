"""A function's keyword arguments as the keys of a recipe block: checked, completed, and turned into the call.

A block is ``{"name": ..., **options}``, or the name alone. The function's signature is the only place where its
options, their types and defaults are written down.
"""

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from types import UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model

from limbeck.core import LimbeckError, Schedule
from limbeck.errors import nearest
from limbeck.schedules import SCHEDULES

Block = Mapping[str, Any]
Model = TypeVar("Model", bound=BaseModel)


class Problem(NamedTuple):
    """One thing that is wrong with a recipe."""

    path: tuple[str | int, ...]
    message: str


class Checked(BaseModel):
    """A block whose unknown keys are errors and whose values are not converted between kinds."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def as_block(value: Any) -> Any:
    """``"cosine"`` to ``{"name": "cosine"}``; anything else as it is."""
    return {"name": value} if isinstance(value, str) else value


Named = Annotated[dict[str, Any], BeforeValidator(as_block)]


def keyword_model(function: Callable[..., Any]) -> type[Checked]:
    """A pydantic model with one field for each keyword-only argument of the function, but for shape and classes."""
    hints = get_type_hints(function)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and name not in ("shape", "classes"):
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name] = (_recipe_type(hints[name]), default)
    model: type[Checked] = create_model(function.__name__, __base__=Checked, **fields)
    return model


def complete(
    block: Any,
    table: Mapping[str, Callable[..., Any]],
    *,
    kind: str,
    presets: Mapping[str, Mapping[str, Block]] | None = None,
) -> tuple[dict[str, Any], list[Problem]]:
    """The block with every option written out, and what is wrong with it (paths inside the block)."""
    block = as_block(block)
    if not isinstance(block, Mapping) or not isinstance(block.get("name"), str):
        return {}, [Problem((), f"got {block!r}, a {kind} is a name or a block with a name: {nearest('', table)}")]
    options = dict(block)
    name = options.pop("name")
    if name not in table:
        return {}, [Problem(("name",), f"there is no {kind} {name!r}: {nearest(name, table)}")]
    if "preset" in options and presets is not None:
        preset, known = options.pop("preset"), presets.get(name, {})
        if not isinstance(preset, str) or preset not in known:
            return {}, [Problem(("preset",), f"{name} has no preset {preset!r}: {nearest(preset, known)}")]
        options = {**known[preset], **options}
    model = keyword_model(table[name])
    values, problems = validate(model, options)
    if values is None:
        return {}, problems
    for key in _schedules(table[name], values.model_dump()):
        filled, wrong = complete(getattr(values, key), SCHEDULES, kind="schedule")
        problems += [Problem((key, *problem.path), problem.message) for problem in wrong]
        values = values.model_copy(update={key: filled})
    return {"name": name, **values.model_dump(mode="json")}, problems


def fill(
    table: Mapping[str, Callable[..., Any]],
    block: Any,
    *,
    kind: str,
    presets: Mapping[str, Mapping[str, Block]] | None = None,
) -> dict[str, Any]:
    """`complete` for callers with one block: raise LimbeckError instead of listing."""
    filled, problems = complete(block, table, kind=kind, presets=presets)
    if problems:
        raise LimbeckError("\n".join(".".join(map(str, (kind, *p.path))) + ": " + p.message for p in problems))
    return filled


def call(table: Mapping[str, Callable[..., Any]], block: Block, *given: Any) -> Any:
    """Call the function that a completed block names, with its options."""
    function = table[block["name"]]
    options = {key: value for key, value in block.items() if key != "name"}
    for key in _schedules(function, options):
        options[key] = call(SCHEDULES, options[key])
    return function(*given, **options)


def validate(model: type[Model], values: Any) -> tuple[Model | None, list[Problem]]:
    """The values as the model, or all that is wrong with them."""
    try:
        return model.model_validate_json(json.dumps(values, default=str)), []
    except ValidationError as error:
        return None, [_problem(model, details) for details in error.errors(include_url=False)]


def _problem(model: type[BaseModel], details: Mapping[str, Any]) -> Problem:
    path = tuple(part for part in details["loc"] if not (isinstance(part, str) and _is_type_name(part)))
    if details["type"] == "extra_forbidden":
        key = details["loc"][-1]  # whatever it is: it may be called as a type is
        above = path[:-1] if path[-1:] == (key,) else path
        return Problem((*above, key), f"unknown key {key!r}: {nearest(key, _fields_at(model, above))}")
    if details["type"] == "missing" and isinstance(path[-1], str):
        return Problem(path[:-1], f"the key {path[-1]!r} is missing")
    return Problem(path, f"got {details['input']!r}: {details['msg'][0].lower()}{details['msg'][1:]}")


def _is_type_name(part: str) -> bool:
    """Whether part of an error's location names a member of a union, not a key."""
    return part in ("int", "float", "str", "bool") or "[" in part


def _fields_at(model: type[BaseModel], path: Collection[str | int]) -> list[str]:
    for part in path:
        inner = [model.model_fields[str(part)].annotation]
        inner += get_args(inner[0])
        model = next(kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)


def _recipe_type(hint: Any) -> Any:
    """The type a recipe writes for a parameter: where the function takes a schedule, the recipe has its block."""
    members = _members(hint)
    if Schedule in members:
        others = [member for member in members if member != Schedule]
        union: Any = Named
        for member in others:
            union = member | union
        return union
    return hint


def _schedules(function: Callable[..., Any], options: Block) -> list[str]:
    hints = get_type_hints(function)
    return [
        key for key, value in options.items() if Schedule in _members(hints.get(key)) and isinstance(value, Mapping)
    ]


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union; anything else is its own only one."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
