"""Data in memory or streamed from disk: sources, seeded splits, keyed augmentation, batches."""

from limbeck.data.batches import Batches
from limbeck.data.from_arrays import arrays
from limbeck.data.images import Images
from limbeck.data.scaling import normalise
from limbeck.data.sources import SOURCES, load
from limbeck.data.sources.base import data_root
from limbeck.data.split import Data, Split, split_off
from limbeck.data.views import Augment, augment

__all__ = [
    "SOURCES",
    "Augment",
    "Batches",
    "Data",
    "Images",
    "Split",
    "arrays",
    "augment",
    "data_root",
    "load",
    "normalise",
    "split_off",
]
