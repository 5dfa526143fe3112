"""Data in memory or streamed from disk: sources, seeded splits, keyed augmentation, batches."""

from limbeck.data.batches import Batches
from limbeck.data.dividing import split_off
from limbeck.data.from_arrays import arrays
from limbeck.data.from_dataset import dataset
from limbeck.data.scaling import normalise
from limbeck.data.sources import SOURCES, load
from limbeck.data.sources.base import Parts, Progress, data_root
from limbeck.data.split import Data, Split
from limbeck.data.views import Augment

__all__ = [
    "SOURCES",
    "Augment",
    "Batches",
    "Data",
    "Parts",
    "Progress",
    "Split",
    "arrays",
    "data_root",
    "dataset",
    "load",
    "normalise",
    "split_off",
]
