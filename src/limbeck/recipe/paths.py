"""Check that the files, folders and networks that a recipe names exist.

Torch is imported only if the recipe names a network of timm or torchvision.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from limbeck.errors import MODEL_FORMS, LimbeckError
from limbeck.files.paths import expanded, near
from limbeck.recipe.blocks import MemberBlock, Recipe, StudentBlock
from limbeck.user_code import is_code
from limbeck.wording import Problem, shortened

Place = tuple[str | int, ...]


def missing(recipe: Recipe) -> list[Problem]:
    """Return a problem for each network or input path that does not exist, or path that is neither file nor folder."""
    return [problem for problem in _looked_for(recipe) if problem is not None]


def trained_files(recipe: Recipe) -> dict[Place, str]:
    """Return the paths of weights, of files of ONNX and of a table of soft labels, by their places in the recipe."""
    found: dict[Place, str | None] = {(*place, "weights"): block.weights for place, block in _learning(recipe).items()}
    for place, one in _trained(recipe).items():
        found |= {(*place, "weights", number): text for number, text in enumerate(one.weights or ())}
        found[*place, "onnx"] = one.onnx
    found["teacher", "table"] = recipe.teacher.table if recipe.teacher is not None else None
    return {place: text for place, text in found.items() if text is not None}


def _learning(recipe: Recipe) -> dict[Place, StudentBlock]:
    return {("student",): recipe.student, **{("networks", name): block for name, block in recipe.networks.items()}}


def _trained(recipe: Recipe) -> dict[Place, MemberBlock]:
    if recipe.teacher is None:
        return {}
    found: dict[Place, MemberBlock] = {("teacher",): recipe.teacher}
    return found | {("teacher", "members", number): member for number, member in enumerate(recipe.teacher.listed)}


def _looked_for(recipe: Recipe) -> Iterator[Problem | None]:
    """Yield for each network and path its problem, or None."""
    data = recipe.data
    for place, text in trained_files(recipe).items():
        kind = "table" if place[-1] == "table" else "file"
        yield _weights(place, text) if "weights" in place else _file(place, text, kind)
    networks: dict[Place, StudentBlock | MemberBlock] = {**_learning(recipe), **_trained(recipe)}
    for place, block in networks.items():
        yield _model((*place, "model", "name"), block.model["name"]) if block.model is not None else None
    yield _code(("data", "source"), data.source)
    yield _code(("data", "transform"), str(data.options.get("transform") or ""))
    yield from (_code(("task", key), getattr(recipe.task, key) or "") for key in ("hard_loss", "metric"))
    keys = {"folder": ("path",), "masks": ("path",), "table": ("path", "validation_path", "test_path", "images")}.get(
        data.source, ()
    )
    named = {key: data.options[key] for key in keys}
    yield from (_found(key, text, data.root) for key, text in named.items() if text is not None)


def _code(place: Place, text: str) -> Problem | None:
    file, _, _ = text.rpartition(":")
    return _file(place, file, "file") if is_code(text) else None


def _model(place: Place, name: str) -> Problem | None:
    if ":" not in name or is_code(name):
        return _code(place, name)
    source = name.partition(":")[0]
    if source not in ("timm", "torchvision"):
        return Problem(place, f"unknown source of models {source!r}: {MODEL_FORMS}")
    from limbeck.models.foreign import check_name

    try:
        check_name(name)
    except LimbeckError as error:
        return Problem(place, str(error))
    return None


def _file(place: Place, text: str, kind: str) -> Problem | None:
    path = expanded(text).absolute()
    if _is(path.is_file):
        return None
    if _is(path.exists):
        return Problem(place, f"{_short(path)} is not a regular file")
    return Problem(place, f"there is no {kind} {_short(path)}{near(path)}")


def _weights(place: Place, text: str) -> Problem | None:
    return None if _is(expanded(text).is_dir) else _file(place, text, "file")


def _found(key: str, text: str, root: str | None) -> Problem | None:
    """Check a folder or file that a key of ``data`` names, relative to the current folder or the data root."""
    path = expanded(text)
    if _is(path.exists) and not path.is_absolute():
        return _folder_or_file(key, path)
    folder = root or os.environ.get("LIMBECK_DATA")
    try:
        inside = path if path.is_absolute() else expanded(folder or "~/.cache/limbeck") / path
    except LimbeckError as error:
        return Problem(("data", "root"), str(error))
    if folder and not path.is_absolute() and not _is(expanded(folder).is_dir):
        origin = "" if root else " (from LIMBECK_DATA)"
        return Problem(("data", "root"), f"the data root {_short(Path(folder))}{origin} is not a folder")
    if _is(inside.exists):
        return _folder_or_file(key, inside)
    return Problem(("data", key), f"{_short(path)} does not exist{near(path)}")


def _folder_or_file(key: str, path: Path) -> Problem | None:
    sound = path.is_dir() or path.is_file()
    return None if sound else Problem(("data", key), f"{_short(path)} is neither a folder nor a file")


def _is(asks: Callable[[], bool]) -> bool:
    """Return the answer of the call, or False for a path that the system rejects, such as one that is too long."""
    try:
        return asks()
    except (OSError, ValueError):
        return False


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else shortened(text)
