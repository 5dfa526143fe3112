"""Check that the files and folders that a recipe names exist, before torch is imported."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from limbeck.errors import LimbeckError
from limbeck.files.paths import expanded, near
from limbeck.options import Block
from limbeck.recipe.blocks import MemberBlock, Recipe
from limbeck.user_code import is_code
from limbeck.wording import Problem, shortened

Place = tuple[str | int, ...]


def missing(recipe: Recipe) -> list[Problem]:
    """Return a problem for each input path that does not exist or is neither a file nor a folder."""
    problems = [_weights(place, text) for place, text in _all_weights(recipe)]
    problems += [_code(place, text) for place, text in _all_code(recipe)]
    if recipe.teacher is not None and recipe.teacher.table is not None:
        problems.append(_file(("teacher", "table"), recipe.teacher.table, "table"))
    problems += [_file((*place, "onnx"), one.onnx, "file") for place, one in _teachers(recipe) if one.onnx is not None]
    if recipe.data.source == "folder":
        problems.append(_images(recipe.data.options["path"], recipe.data.root))
    return [problem for problem in problems if problem is not None]


def _teachers(recipe: Recipe) -> list[tuple[Place, MemberBlock]]:
    """The teacher's block, and those of its members."""
    if recipe.teacher is None:
        return []
    members = [(("teacher", "members", number), one) for number, one in enumerate(recipe.teacher.listed)]
    return [(("teacher",), recipe.teacher), *members]


def _all_weights(recipe: Recipe) -> Iterator[tuple[Place, str]]:
    for place, one in _teachers(recipe):
        yield from (((*place, "weights", number), text) for number, text in enumerate(one.weights or ()))
    if recipe.student.weights is not None:
        yield ("student", "weights"), recipe.student.weights
    for name, other in recipe.networks.items():
        if other.weights is not None:
            yield ("networks", name, "weights"), other.weights


def _all_code(recipe: Recipe) -> Iterator[tuple[Place, str]]:
    models: list[tuple[Place, Block | None]] = [
        *(((*place, "model"), one.model) for place, one in _teachers(recipe)),
        (("student", "model"), recipe.student.model),
        *((("networks", name, "model"), other.model) for name, other in recipe.networks.items()),
    ]
    yield from (((*place, "name"), block["name"]) for place, block in models if block is not None)
    yield ("data", "source"), recipe.data.source
    if recipe.data.options.get("transform") is not None:
        yield ("data", "transform"), str(recipe.data.options["transform"])


def _code(place: Place, text: str) -> Problem | None:
    file, _, _ = text.rpartition(":")
    return _file(place, file, "file") if is_code(text) else None


def _file(place: Place, text: str, kind: str) -> Problem | None:
    path = expanded(text).absolute()
    if _is(path.is_file):
        return None
    if _is(path.exists):
        return Problem(place, f"{_short(path)} is not a regular file")
    return Problem(place, _with(f"there is no {kind} {_short(path)}", near(path)))


def _weights(place: Place, text: str) -> Problem | None:
    return None if _is(expanded(text).is_dir) else _file(place, text, "file")


def _images(text: str, root: str | None) -> Problem | None:
    """Check a folder or zip file of images, relative to the current folder or the data root."""
    path = expanded(text)
    if _is(path.exists) and not path.is_absolute():
        return _folder_or_file(path)
    folder = root or os.environ.get("LIMBECK_DATA")
    try:
        inside = path if path.is_absolute() else expanded(folder or "~/.cache/limbeck") / path
    except LimbeckError as error:
        return Problem(("data", "root"), str(error))
    if folder and not path.is_absolute() and not _is(expanded(folder).is_dir):
        origin = "" if root else " (from LIMBECK_DATA)"
        return Problem(("data", "root"), f"the data root {_short(Path(folder))}{origin} is not a folder")
    if _is(inside.exists):
        return _folder_or_file(inside)
    return Problem(("data", "path"), _with(f"{_short(path)} does not exist", near(path.absolute())))


def _folder_or_file(path: Path) -> Problem | None:
    sound = path.is_dir() or path.is_file()
    return None if sound else Problem(("data", "path"), f"{_short(path)} is neither a folder nor a zip file")


def _is(asks: Callable[[], bool]) -> bool:
    """Return the answer of the call, or False for a path that the system rejects, such as one that is too long."""
    try:
        return asks()
    except (OSError, ValueError):
        return False


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else shortened(text)


def _with(message: str, meant: str) -> str:
    return f"{message}: {meant}" if meant else message
