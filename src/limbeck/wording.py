"""Turn the errors of pydantic into messages in the terms of a recipe: a list, text, a number, true or false."""

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from limbeck.errors import nearest

LENGTH = 60
"""The most characters of a value that a message shows."""


class Problem(NamedTuple):
    """One error in a recipe."""

    path: tuple[str | int, ...]
    message: str


def needed(what: str) -> PydanticCustomError:
    """Return the error of a validator that requires ``what``, such as "a path or a list of paths"."""
    return PydanticCustomError("needed", what)


def shown(value: object) -> str:
    """Return a value as it is written in a recipe, shortened."""
    return shortened(_written(value))


def shortened(text: str) -> str:
    """Return the text, shortened to `LENGTH` characters."""
    return text if len(text) <= LENGTH else f"{text[: LENGTH - 3]}..."


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Return all problems, one for each key: the errors of all members of a union become one problem."""
    grouped: dict[tuple[str | int, ...], list[Mapping[str, Any]]] = {}
    for details in error.errors(include_url=False):
        place = tuple(part for part in details["loc"] if not (isinstance(part, str) and _is_type_name(part)))
        if details["type"] == "extra_forbidden":
            key = details["loc"][-1]  # keep it even if it has the name of a type
            place = (*(place[:-1] if place[-1:] == (key,) else place), key)
        elif details["type"] == "missing" and not isinstance(place[-1], str):
            place = place[:-1]  # a list that is too short
        grouped.setdefault(place, []).append(details)
    return [_problem(place, several, model) for place, several in grouped.items()]


def _problem(place: tuple[str | int, ...], several: Sequence[Mapping[str, Any]], model: type[BaseModel]) -> Problem:
    kind = several[0]["type"]
    if kind == "extra_forbidden":
        return Problem(place, f"unknown key {shown(place[-1])}: {nearest(place[-1], _fields_at(model, place[:-1]))}")
    if kind == "missing" and place[-1:] == several[0]["loc"][-1:]:
        return Problem(place[:-1], f"the key {place[-1]!r} is missing")
    return Problem(place, _message(several))


def _message(several: Sequence[Mapping[str, Any]]) -> str:
    messages = [str(details["ctx"]["error"]) for details in several if details["type"] == "value_error"]
    if messages:
        return messages[0]
    got = several[-1]["input"]
    if isinstance(got, str) and all(details["type"] == "literal_error" for details in several):
        allowed = [str(name) for details in several for name in _literals(details)]
        return f"got {shown(got)}: {nearest(got, allowed)}"
    words = list(dict.fromkeys(word for details in several for word in _words(details)))
    if words == ["a list"] and isinstance(got, int | float):
        words = [f"a list, such as {shown([got])}"]
    if "a number" in words and "a whole number" in words:
        words.remove("a whole number")
    return f"got {shown(got)}: it must be {' or '.join(filter(None, (', '.join(words[:-1]), words[-1])))}"


_WORDS: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "path_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a block of keys",
    "model_type": "a block of keys",
}

_BOUNDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda context: f"above {context['gt']}",
    "greater_than_equal": lambda context: f"at least {context['ge']}",
    "less_than": lambda context: f"below {context['lt']}",
    "less_than_equal": lambda context: f"at most {context['le']}",
    "too_short": lambda context: f"a list of at least {context['min_length']}",
    "too_long": lambda context: (
        f"a {'block' if context['field_type'] == 'Dictionary' else 'list'} of at most {context['max_length']}"
    ),
    "string_too_long": lambda context: f"text of at most {context['max_length']} characters",
}


def _words(details: Mapping[str, Any]) -> list[str]:
    kind = details["type"]
    if kind == "bool_type":
        return ["true", "false"]
    if kind == "literal_error":
        return [str(name) for name in _literals(details)]
    if kind == "missing":
        return [f"a list of {details['loc'][-1] + 1} values"]
    if kind in _BOUNDS:
        return [_BOUNDS[kind](details["ctx"])]
    return [_WORDS.get(kind, details["msg"])]


def _literals(details: Mapping[str, Any]) -> list[Any]:
    """Return the values in a list such as ``'a', 'b' or 3``."""
    listed = details["ctx"]["expected"].replace(" or ", ", ")
    values: list[Any] = list(ast.literal_eval(f"[{listed}]"))
    return values


def _written(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    return repr(value)


def _is_type_name(part: str) -> bool:
    """Whether a part of an error's location names a member of a union instead of a key."""
    return part in ("int", "float", "str", "bool") or part.startswith("constrained-") or "[" in part


def _fields_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Return the keys of the block at a path."""
    parts = iter(path)
    for part in parts:
        if isinstance(part, int):
            continue  # an item of a list, whose blocks the key of the list has given
        annotation = model.model_fields[str(part)].annotation
        if get_origin(annotation) is dict:
            next(parts, None)  # skip the name that the user chose for the block
        model = next(_models_in(annotation))
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the blocks in an annotation, such as that of a list or a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
