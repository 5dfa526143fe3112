"""Run a user's Python file. This is the only module that does, and only for a file that a recipe or the caller names.

A model, a data source, a transform, a loss or a metric ``path/to/file.py:function`` is code. Code that a weights file,
a store, a table or a run folder names is never run, see docs/security.md. This module needs no torch.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from limbeck.errors import LimbeckError, nearest
from limbeck.files.paths import expanded, file_size

LARGEST = 2**20
"""The largest Python file in bytes."""

_RUN = ("name", "transform", "source", "hard_loss", "metric")  # the keys of a recipe whose text may name code


def named(text: str) -> tuple[Path, str] | None:
    """Split ``path/to/file.py:function`` into the file and the function. Return None if the text names no Python file.

    Raises:
        LimbeckError: the text names a Python file without a function, or ``~`` names a user who does not exist.
    """
    file, _, name = text.rpartition(":")
    if not file.endswith(".py"):
        if text.endswith(".py"):
            raise LimbeckError(f"{text} names a file without a function: write {text}:FUNCTION")
        return None
    if not name.isidentifier():
        raise LimbeckError(f"{text}: {name!r} is not the name of a function: write {file}:FUNCTION")
    return expanded(file), name


def is_code(text: str) -> bool:
    """Return whether a text of a recipe names a function in a Python file; `named` validates it."""
    return text.rpartition(":")[0].endswith(".py")


def code_notices(values: Any) -> list[str]:
    """Return a notice for each user function that the values of a recipe name, to show before it is run.

    Args:
        values: plain values, such as a recipe's ``model_dump()``.
    """
    texts = dict.fromkeys(text for text in _texts(values) if is_code(text))
    return [f"runs the code of {text.rpartition(':')[0]} (function {text.rpartition(':')[2]})" for text in texts]


def code_digests(values: Any) -> list[str]:
    """Return a YAML comment with the current sha256 of each Python file that the values of a recipe name."""
    files = dict.fromkeys(file for text in _texts(values) if (code := named(text)) for file in code[:1])
    return [f"# {file.name}: {sha256(contents(file)).hexdigest()}" for file in files]


def contents(file: Path) -> bytes:
    """Read a Python file.

    Raises:
        LimbeckError: the file does not exist, is not a regular file, is larger than `LARGEST`, or is not readable.
    """
    size = file_size(file, most=LARGEST, endings=(".py",))
    try:
        with file.open("rb") as opened:
            return opened.read(size)
    except OSError as error:
        raise LimbeckError(f"{file} cannot be read: {error}") from error


def function(file: Path, name: str, code: bytes) -> Callable[..., Any]:
    """Run a Python file and return one of its functions. The file's folder is not added to ``sys.path``.

    Args:
        file: the path of the file.
        name: the name of a function or class in it.
        code: the `contents` of the file; the file itself may have changed or been deleted since.

    Raises:
        LimbeckError: the function does not exist, or the code fails.
    """
    module = _module(file, code)
    functions = {key: value for key, value in vars(module).items() if callable(value) and not key.startswith("__")}
    if name not in functions:
        own = [key for key, value in functions.items() if getattr(value, "__module__", None) == module.__name__]
        raise LimbeckError(f"{file} has no function {name!r}: {nearest(name, own) if own else 'it has none'}")
    chosen: Callable[..., Any] = functions[name]
    return chosen


def _module(file: Path, code: bytes) -> ModuleType:
    path = file.resolve()
    name = "_limbeck_file_" + path.as_posix().replace("/", "_").replace(".", "_")
    module = ModuleType(name)
    module.__file__ = str(path)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickle look up the module of a class by name
    try:
        exec(compile(code, path, "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:  # the user's file may raise anything
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        raise LimbeckError(f"{file} could not be imported: {type(error).__name__}: {error}") from error
    return module


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, Mapping):
        yield from (value for key, value in values.items() if key in _RUN and isinstance(value, str))
    inner = values.values() if isinstance(values, Mapping) else values if isinstance(values, list | tuple) else ()
    for value in inner:
        yield from _texts(value)
