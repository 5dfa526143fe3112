"""What a source of data is given and what it returns."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from limbeck.core import LimbeckError
from limbeck.data.split import Split
from limbeck.data.targets import TaskName
from limbeck.data.trees import exists
from limbeck.files.paths import expanded, near

VARIABLE = "LIMBECK_DATA"
"""The environment variable that names the data root."""

HOW_TO_GIVE = f"give the folder that holds it with --data-root (root=) or {VARIABLE}"

Progress: TypeAlias = Callable[[int, int], object]
"""Is called with the number of files that are read and the number of all files."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What a source returns. A split is None where the source has none; `load` then splits it off train."""

    train: Split
    classes: tuple[str, ...]  # the names of the classes by index; of other tasks, of the labels, numbers or points
    validation: Split | None = None
    test: Split | None = None
    task: TaskName = "classification"  # what the targets are, see `limbeck.data.targets`
    origins: Mapping[str, str] = field(default_factory=dict)  # of each split that is there, as `Data.origins`
    notes: tuple[str, ...] = ()  # as `Data.notes`


Source: TypeAlias = Callable[..., Parts]
"""A function whose keyword-only arguments are its keys in a recipe's ``data`` block, with types and defaults."""

GIVEN = ("root", "size", "progress")
"""What `load` passes to a source that names it: ``root: Path | None``, the data root that the user names, see
`data_root`; ``size: tuple[int, int] | None``, the height and width that the images get in the end, so that a source can
resize each image when it decodes it (what has another size is resized afterwards); ``progress: Progress | None``."""


def data_root(given: Path | None) -> Path:
    """The folder where data is looked for and downloaded to: ``given``, else LIMBECK_DATA, else ~/.cache/limbeck.

    Raises:
        LimbeckError: the argument or the variable names no folder.
    """
    variable = os.environ.get(VARIABLE)
    if given is None and not variable:
        return Path.home() / ".cache" / "limbeck"
    root = expanded(given if given is not None else Path(str(variable)))
    if not exists(root) or not root.is_dir():
        origin = "" if given is not None else f" (from {VARIABLE})"
        raise LimbeckError(f"the data root {root}{origin} is not a folder{near(root)}")
    return root


def located(path: Path, root: Path | None) -> Path:
    """The path, relative to the working folder or, if it is not there, to the data root; see `data_root`."""
    path = expanded(path)
    if exists(path) or path.is_absolute():
        return path
    inside = data_root(root) / path
    return inside if exists(inside) else path
