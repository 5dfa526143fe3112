"""The memory that limbeck takes for each sample of tar files, whatever the size of the images.

    python -m benchmarks.memory --samples 1000000

Makes the names and labels of so many samples, as `limbeck.data.sources.shards` reads them, and one small image that
stands for all. Prints for each step the bytes a sample that are held afterwards and, beyond those held before, at most
during the step (resident memory; Linux). The steps of the data are those of `limbeck run`.
"""

import argparse
import gc
import io
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from limbeck.data import Augment, Batches, Split
from limbeck.data.dividing import split_off
from limbeck.data.images import Images
from limbeck.data.overlap import identical
from limbeck.data.trees import Files

Made = TypeVar("Made")

IN_A_TAR = 10_000
IMAGE_BYTES = 110_000


class One(Files):
    """The same image for every name. What is known of its beginning is in the name, as for `limbeck.data.tars.Tars`."""

    place = "nowhere"

    def __init__(self) -> None:
        written = io.BytesIO()
        Image.new("RGB", (32, 32)).save(written, "png")
        self._image = written.getvalue()

    def __call__(self, name: str) -> bytes:
        """The image."""
        return self._image

    def head(self, name: str, count: int) -> tuple[int, bytes]:
        """The size of the image in bytes, and its first bytes."""
        return len(self._image), self._image[:count]

    def beginning(self, name: str) -> tuple[int, bytes]:
        """A size and a hash, which are different for every name."""
        return IMAGE_BYTES, name.split("~")[1][:16].encode()


def main() -> None:
    """Measure as the arguments say, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    count = parser.parse_args().samples
    print(f"| {count:,} samples | held, bytes a sample | at most during the step |\n|---|---|---|")
    reader = One()  # and what is imported and allocated once
    next(iter(Batches(_split(reader, 4), batch_size=2, seed=0, mean=(0.0,) * 3, std=(1.0,) * 3)(0)))
    whole = _measured("names and labels", count, partial(_split, reader, count))
    rest, _ = _measured("divided into training and validation split", count, partial(split_off, 0.02, whole, 0))
    del whole
    parts = {"train": rest, "test": _split(reader, count // 50)}
    _measured("search for images in two splits", count, partial(identical, parts))
    _measured("digest of the training split", count, rest.digest)
    augment, mean, std = Augment(crop=4, flip=True), (0.0,) * 3, (1.0,) * 3
    for title, together in (("an epoch", 0), ("an epoch with `together`", 16)):
        inputs = replace(rest.inputs, together=together) if isinstance(rest.inputs, Images) else rest.inputs
        batches = Batches(replace(rest, inputs=inputs), batch_size=256, seed=0, mean=mean, std=std, augment=augment)
        running = batches(0)
        _measured(title, count, partial(next, running))
        del running


def _split(reader: Files, count: int) -> Split:
    names = tuple(_name(number) for number in range(count))
    return Split(Images(reader, names, (32, 32)), torch.arange(count) % 1000, names)


def _name(number: int) -> str:
    place = number % IN_A_TAR * (IMAGE_BYTES + 2048) + 512
    return f"train-{number // IN_A_TAR:05d}.tar:{place}+{IMAGE_BYTES}~{number:016x}:{number:09d}.jpg"


def _measured(title: str, count: int, step: Callable[[], Made]) -> Made:
    gc.collect()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the greatest resident memory is now that of this moment
    made = step()
    most = _resident("VmHWM")
    gc.collect()
    held, peak = (max(0, after - before) / count for after in (_resident("VmRSS"), most))
    print(f"| {title} | {held:.0f} | {peak:.0f} |", flush=True)
    return made


def _resident(line: str) -> int:
    """A line of this process's status, in bytes."""
    text = Path(f"/proc/{os.getpid()}/status").read_text()
    return 1024 * int(text.partition(f"{line}:")[2].split()[0])


if __name__ == "__main__":
    main()
