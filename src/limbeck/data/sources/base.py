"""What every source is asked for and gives back, and where files are looked for."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from limbeck.core import LimbeckError
from limbeck.data.split import Split
from limbeck.data.trees import exists, near_path
from limbeck.files.paths import expanded

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
    size: tuple[int, int] | None = None  # height and width that images are brought to; None: their own, or a default
    streaming: bool = False  # whether images stay on disk
    workers: int = 0  # processes that decode them
    transform: str | None = None  # of the training images; see `limbeck.data.transforms`
    exif_orientation: bool = True  # whether an image is turned as its EXIF data says


@dataclass(frozen=True, eq=False)
class Parts:
    """What a source found: a split is None where it has none of its own."""

    train: Split
    classes: tuple[str, ...]
    validation: Split | None = None
    test: Split | None = None
    origins: Mapping[str, str] = field(default_factory=dict)  # of each split that is there, as `Data.origins`
    notes: tuple[str, ...] = ()  # as `Data.notes`


Source: TypeAlias = Callable[[Request], Parts]


def data_root(given: Path | None) -> Path:
    """The folder data is looked for and downloaded to: ``given``, else LIMBECK_DATA, else ~/.cache/limbeck.

    Raises:
        LimbeckError: one was given, as argument or variable, and is no folder.
    """
    variable = os.environ.get(VARIABLE)
    if given is None and not variable:
        return Path.home() / ".cache" / "limbeck"
    root = expanded(given if given is not None else Path(str(variable)))
    if not exists(root) or not root.is_dir():
        origin = "" if given is not None else f" (from {VARIABLE})"
        raise LimbeckError(f"the data root {root}{origin} is not a folder{near_path(root)}")
    return root
