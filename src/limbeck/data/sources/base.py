"""What every source is asked for and gives back, and where files are looked for."""

import difflib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from limbeck.core import LimbeckError
from limbeck.data.split import Split

VARIABLE = "LIMBECK_DATA"
"""The environment variable that names the data root."""

HOW_TO_GIVE = f"give the folder it is in with --data-root (root=) or {VARIABLE}"

TEST_SHARE, TEST_SEED = 0.2, 1797
"""Of a set without a test split of its own: the same in every run, so that no run trains on another's test split."""


@dataclass(frozen=True)
class Request:
    """What a source needs to know; each takes what concerns it."""

    root: Path | None = None  # see data_root
    path: Path | None = None  # of the folder or zip file
    download: bool = True  # whether files that are missing may be downloaded
    size: tuple[int, int] | None = None  # height and width to which images of different sizes are resized


@dataclass(frozen=True, eq=False)
class Parts:
    """What a source found: a split is None where it has none of its own."""

    train: Split
    classes: tuple[str, ...]
    validation: Split | None = None
    test: Split | None = None


Source: TypeAlias = Callable[[Request], Parts]


def data_root(given: Path | None) -> Path:
    """The folder data is looked for and downloaded to: ``given``, else LIMBECK_DATA, else ~/.cache/limbeck.

    Raises:
        LimbeckError: one was given, as argument or variable, and is no folder.
    """
    variable = os.environ.get(VARIABLE)
    if given is None and not variable:
        return Path.home() / ".cache" / "limbeck"
    root = (given if given is not None else Path(str(variable))).expanduser()
    if not root.is_dir():
        origin = "" if given is not None else f" (from {VARIABLE})"
        raise LimbeckError(f"the data root {root}{origin} is no folder{near_path(root)}")
    return root


def nearest(name: str, allowed: Iterable[str]) -> str:
    """What was probably meant, to end a message with; empty where nothing is near."""
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def near_path(path: Path) -> str:
    """As `nearest`, of what lies beside a path that does not exist."""
    parent = path.absolute().parent
    return nearest(path.name, [entry.name for entry in parent.iterdir()]) if parent.is_dir() else ""
