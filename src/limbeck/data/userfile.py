"""A function in a Python file of the user's."""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from limbeck.core import LimbeckError
from limbeck.data.trees import near_path, nearest


def contents(file: Path) -> bytes:
    """The whole file.

    Raises:
        LimbeckError: there is no such file, or it cannot be read.
    """
    if not file.is_file():
        raise LimbeckError(f"there is no file {file}{near_path(file)}")
    try:
        return file.read_bytes()
    except OSError as error:
        raise LimbeckError(f"{file} cannot be read: {error}") from error


def function(file: Path, name: str, code: bytes) -> Callable[..., Any]:
    """What the file calls by that name. The file's folder is not put on the import path.

    Args:
        file: a Python file.
        name: of what it defines.
        code: the file's `contents`; the file may have changed since, or be gone.

    Raises:
        LimbeckError: there is no such function, or the file cannot be imported.
    """
    module = _module(file.resolve(), code)
    functions = {key: value for key, value in vars(module).items() if callable(value) and not key.startswith("__")}
    if name not in functions:
        own = [key for key, value in functions.items() if getattr(value, "__module__", None) == module.__name__]
        raise LimbeckError(f"{file} has no function {name!r}; it has {', '.join(own) or 'none'}{nearest(name, own)}")
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


def _module(path: Path, code: bytes) -> ModuleType:
    name = "_limbeck_file_" + path.as_posix().replace("/", "_").replace(".", "_")
    loader = _AsRead(name, str(path), code)
    module = module_from_spec(ModuleSpec(name, loader, origin=str(path)))
    sys.modules[name] = module  # dataclasses and pickling look a class's module up by its name
    try:
        loader.exec_module(module)
    except Exception as error:  # the user's file may raise anything
        del sys.modules[name]
        raise LimbeckError(f"{path} could not be imported: {type(error).__name__}: {error}") from error
    return module
