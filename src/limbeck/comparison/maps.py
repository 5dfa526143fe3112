"""maps.safetensors: the features of the networks of the first seed in two dimensions, for a picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from limbeck.errors import LimbeckError
from limbeck.experiment.runfiles import file_record
from limbeck.files.atomic import read, replacing

MAPS = "maps.safetensors"

MOST_BYTES = 16 * 2**20
"""The largest size of the file: those of 1,000 samples and 2,000 arms."""

_OF_ARM = "points/"


@dataclass(frozen=True, eq=False)
class Maps:
    """The same test samples in the features of several networks."""

    index: NDArray[np.int64]  # (M,) places in the test split
    labels: NDArray[np.int64]  # (M,) classes
    points: Mapping[str, NDArray[np.float32]]  # by arm, (M, 2): the principal components of its own features


def write_maps(folder: Path, maps: Maps) -> str:
    """Write the maps into the folder of a comparison, and return the SHA-256 of the file."""
    arms = {f"{_OF_ARM}{arm}": points for arm, points in maps.points.items()}
    with replacing(folder / MAPS) as temporary:
        save_file({"index": maps.index, "labels": maps.labels, **arms}, temporary)
    return str(file_record(folder / MAPS)["sha256"])


def read_maps(folder: Path, known: str) -> Maps:
    """Read the maps of a comparison.

    Args:
        folder: of the comparison.
        known: the SHA-256 of the file, `limbeck.comparison.learned.Learned.maps_sha256`.

    Raises:
        LimbeckError: the file is missing, damaged or of another comparison.
    """
    data = read(folder / MAPS, MOST_BYTES)
    if data is None or sha256(data).hexdigest() != known:
        raise LimbeckError(f"{folder / MAPS} is {'missing' if data is None else 'damaged, or of another comparison'}")
    try:
        arrays = load(data)
        index, labels = arrays.pop("index"), arrays.pop("labels")
    except (SafetensorError, KeyError) as error:
        raise LimbeckError(f"{folder / MAPS} contains no maps: {error}") from error
    points = {name.removeprefix(_OF_ARM): arrays[name] for name in sorted(arrays)}
    flat = all(_is(one, np.int64, (len(index),)) for one in (index, labels) if index.ndim)
    if not (index.ndim and flat and all(_is(one, np.float32, (len(index), 2)) for one in points.values())):
        raise LimbeckError(f"{folder / MAPS} contains no maps: its arrays have other shapes or types")
    return Maps(index, labels, points)


def _is(array: NDArray[Any], dtype: type, shape: tuple[int, ...]) -> bool:
    return array.dtype == dtype and array.shape == shape
