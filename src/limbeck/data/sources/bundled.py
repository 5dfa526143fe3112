"""The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn includes (UCI ML hand-written digits, test part)."""

import torch

from limbeck.data.sources.base import Parts
from limbeck.data.split import Split


def digits() -> Parts:
    """(1797, 1, 8, 8) uint8: the original 0..16 as round(255 / 16 * value); needs no files."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # takes a second to import

    loaded = load_digits()
    inputs = torch.from_numpy(loaded.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    targets = torch.from_numpy(loaded.target).long()
    return Parts(
        Split(inputs, targets),
        classes=tuple(str(name) for name in loaded.target_names),
        origins={"train": "the 1,797 digits of scikit-learn"},
    )
