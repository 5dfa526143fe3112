"""Users' code: the one module that runs a Python file, and only one that a recipe or the caller names.

A model, a data source or a transform ``path/to/file.py:function`` is code. What a file of weights, a store, a table or
a run folder says is never run, see docs/security.md. Nothing here needs torch.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from limbeck.errors import LimbeckError, nearest
from limbeck.files.paths import expanded, file_size

LARGEST = 2**20
"""The most bytes of a Python file."""

_RUN = ("name", "transform", "source")  # the keys of a recipe under which a text may name code


def named(text: str) -> tuple[Path, str] | None:
    """The file and the function that ``path/to/file.py:function`` names; None where the text names no Python file.

    Raises:
        LimbeckError: it names a Python file and no function, or there is no such user.
    """
    file, _, name = text.rpartition(":")
    if not file.endswith(".py"):
        if text.endswith(".py"):
            raise LimbeckError(f"{text} names a file and no function in it: write {text}:FUNCTION")
        return None
    if not name.isidentifier():
        raise LimbeckError(f"{text}: {name!r} is no name of a function: write {file}:FUNCTION")
    return expanded(file), name


def is_code(text: str) -> bool:
    """Whether a text of a recipe names a function in a Python file; `named` checks that it is one."""
    return text.rpartition(":")[0].endswith(".py")


def said(values: Any) -> list[str]:
    """A sentence for each function of a user's that these values of a recipe name, to be shown before it is run.

    Args:
        values: plain values, such as a recipe's ``model_dump()``.
    """
    found = dict.fromkeys(text for text in _texts(values) if is_code(text))
    return [f"runs the code of {text.rpartition(':')[0]} (function {text.rpartition(':')[2]})" for text in found]


def code_digests(values: Any) -> list[str]:
    """A comment for each Python file that these values of a recipe name, with the sha256 of what it holds now."""
    files = dict.fromkeys(file for text in _texts(values) if (found := named(text)) for file in found[:1])
    return [f"# {file.name}: {sha256(contents(file)).hexdigest()}" for file in files]


def contents(file: Path) -> bytes:
    """The whole file, as it is now.

    Raises:
        LimbeckError: there is no such file, it is no regular file or larger than `LARGEST`, or it cannot be read.
    """
    size = file_size(file, most=LARGEST, endings=(".py",))
    try:
        with file.open("rb") as opened:
            return opened.read(size)
    except OSError as error:
        raise LimbeckError(f"{file} cannot be read: {error}") from error


def function(file: Path, name: str, code: bytes) -> Callable[..., Any]:
    """Run a Python file, and give what it calls by that name. The file's folder is not put on the import path.

    Args:
        file: where the code is from.
        name: of a function or class that it defines.
        code: the file's `contents`; the file may have changed since, or be gone.

    Raises:
        LimbeckError: there is no such function, or the code fails.
    """
    module = _module(file, code)
    functions = {key: value for key, value in vars(module).items() if callable(value) and not key.startswith("__")}
    if name not in functions:
        own = [key for key, value in functions.items() if getattr(value, "__module__", None) == module.__name__]
        raise LimbeckError(f"{file} has no function {name!r}: {nearest(name, own) if own else 'it has none'}")
    found: Callable[..., Any] = functions[name]
    return found


class _AsRead(SourceFileLoader):
    """Imports these bytes, not the file as it is now, nor what Python compiled of it a moment before."""

    def __init__(self, name: str, path: str, code: bytes) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, _: str) -> CodeType:
        compiled: CodeType = self.source_to_code(self._code, self.path)
        return compiled


def _module(file: Path, code: bytes) -> ModuleType:
    path = file.resolve()
    name = "_limbeck_file_" + path.as_posix().replace("/", "_").replace(".", "_")
    loader = _AsRead(name, str(path), code)
    spec = ModuleSpec(name, loader, origin=str(path))
    spec.has_location = True
    module = module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up by its name
    try:
        loader.exec_module(module)
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
