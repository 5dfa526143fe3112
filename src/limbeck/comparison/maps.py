"""maps.safetensors: the features of the networks of the first seed in two dimensions, for a picture."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAPS = "maps.safetensors"


@dataclass(frozen=True, eq=False)
class Maps:
    """The same test samples in the features of several networks."""

    index: NDArray[np.int64]  # (M,) places in the test split
    labels: NDArray[np.int64]  # (M,) classes
    points: Mapping[str, NDArray[np.float32]]  # by arm, (M, 2): principal components of its own features
