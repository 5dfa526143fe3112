"""A small teacher and small data for the tests of the store; run as a program, a process that builds or reads one."""

import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

from limbeck.cache.building import build
from limbeck.cache.fingerprint import Fingerprint, Format, structure_digest, weights_digest
from limbeck.cache.reading import Store
from limbeck.core import Batch, Tap
from limbeck.taps import Taps, evaluation_mode

ROWS, VIEWS, BATCH, CLASSES = 23, 2, 4, 7
LOGITS, MAPS = Tap("teacher"), Tap("teacher", "0")
TAPS = {LOGITS: Format("float32"), MAPS: Format("float16")}
SHARD_BYTES = 6 * (CLASSES * 4 + 3 * 6 * 6 * 2)  # 6 rows, so that batches of 4 do not fit


def teacher(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, CLASSES))


def fingerprint(network, **parts):
    teacher = {"weights": weights_digest(network), "structure": structure_digest(network)}
    usual = {**teacher, "data": "d", "transform": {"crop": 4}, "seed": 5, "views": VIEWS}
    return Fingerprint(**{**usual, "taps": TAPS, "precision": "32", "versions": {"torch": "2"}, **parts})


class Source:
    """Samples that are a function of their index and view."""

    def __init__(self, rows=ROWS, batch=BATCH, pause=0.0):
        self.rows, self.batch, self.pause = rows, batch, pause
        self.inputs = torch.randn(rows, 2, 8, 8, generator=torch.Generator().manual_seed(1))

    def view(self, number, *, start=0, stop=None):
        stop = self.rows if stop is None else stop
        for first in range(start, stop, self.batch):
            time.sleep(self.pause)
            index = torch.arange(first, min(first + self.batch, stop))
            yield Batch(self.inputs[index].roll(number, 3) + number, index % CLASSES, index, number)


class Reader:
    """The teacher's tensors, and how many samples it ran on."""

    def __init__(self, network, taps=TAPS):
        self.networks, self.taps, self.samples = {"teacher": network}, tuple(taps), 0

    def __call__(self, batch):
        self.samples += len(batch.index)
        with evaluation_mode(self.networks.values()), torch.no_grad(), Taps(self.networks, self.taps) as tapped:
            return tapped.read(batch)


def run(folder, network=None, source=None, reader=None, **options):
    """Build to the end; the last progress."""
    network = network or teacher()
    options = {"fingerprint": fingerprint(network), "rows": ROWS, "shard_bytes": SHARD_BYTES, **options}
    return list(build(folder, reader or Reader(network), source or Source(), **options))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def forked_readers(folder):
    """Two processes that read at once what this one opened; 0 if both read what this one reads."""
    store = Store(folder, fingerprint(teacher()))
    index = torch.arange(ROWS).flip(0)
    wanted = store.read(index, 1)
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            same = [torch.equal(store.read(index, 1)[tap], wanted[tap]) for tap in TAPS for _ in range(50)]
            os._exit(0 if all(same) else 1)
        children.append(child)
    return sum(os.waitpid(child, 0)[1] for child in children)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "read":
        sys.exit(forked_readers(Path(sys.argv[2])))
    run(Path(sys.argv[2]), source=Source(pause=float(sys.argv[3])))
