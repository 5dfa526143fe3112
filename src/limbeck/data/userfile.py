"""A function in a Python file of the user's."""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from limbeck.core import LimbeckError
from limbeck.data.trees import near_path, nearest


def function(file: Path, name: str) -> Callable[..., Any]:
    """What the file calls by that name. The file's folder is not put on the import path.

    Raises:
        LimbeckError: there is no such file or function, or the file cannot be imported.
    """
    if not file.is_file():
        raise LimbeckError(f"there is no file {file}{near_path(file)}")
    module = _module(file.resolve())
    functions = {key: value for key, value in vars(module).items() if callable(value) and not key.startswith("__")}
    if name not in functions:
        own = [key for key, value in functions.items() if getattr(value, "__module__", None) == module.__name__]
        raise LimbeckError(f"{file} has no function {name!r}; it has {', '.join(own) or 'none'}{nearest(name, own)}")
    found: Callable[..., Any] = functions[name]
    return found


def _module(path: Path) -> ModuleType:
    name = "_limbeck_file_" + path.as_posix().replace("/", "_").replace(".", "_")
    loader = SourceFileLoader(name, str(path))
    module = module_from_spec(ModuleSpec(name, loader, origin=str(path)))
    sys.modules[name] = module  # dataclasses and pickling look a class's module up by its name
    try:
        loader.exec_module(module)
    except Exception as error:  # the user's file may raise anything
        del sys.modules[name]
        raise LimbeckError(f"{path} could not be imported: {type(error).__name__}: {error}") from error
    return module
