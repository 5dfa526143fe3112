"""Tar files of small images: each sample once an epoch, exact resume, bounded memory, and the speed beside webdataset.

    python -m benchmarks.tars                     # 200,000 images in 200 tar files
    python -m benchmarks.tars --images 20000 --peer PYTHON     # PYTHON has the package webdataset

Writes the tar files to a folder (``--folder``; an existing one is used again), and loads them. For 1 and 2 processes
and 0, 1 and 2 workers of each, it checks that the parts of the processes have each sample once, in the order of one
process; the parts are read in turns. It stops in the middle of an epoch and compares the next batch with that of an
epoch that is begun again, as in a resumed run. The memory is the most that this process had resident before and after
all these passes, and the most of a worker process, which shares much of it with this one. For the speed, limbeck and
webdataset take turns: both read all tar files, shuffle, and decode batches of 256 with as many worker processes;
webdataset shuffles the tar files and 1,000 samples, limbeck all samples.
"""

import argparse
import io
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy
import torch
from PIL import Image

from limbeck.data import Batches, Data, load
from limbeck.data.images import Images

BATCH, SIDE, CLASSES = 256, 32, 10

PEER = """
import sys, time
import numpy, torch, webdataset
from PIL import Image
pattern, workers, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = (webdataset.WebDataset(pattern, shardshuffle=True).shuffle(1000).decode("pil").to_tuple("png", "cls")
        .map_tuple(lambda image: torch.from_numpy(numpy.array(image)).permute(2, 0, 1), int).batched(batch))
loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers)
started, seen = time.perf_counter(), 0
for images, labels in loader:
    seen += len(images.float().div_(255))
print(seen, time.perf_counter() - started)
"""


def main() -> None:
    """Make, check and measure as the arguments say; a check that fails is an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--workers", type=int, default=2, help="of the comparison of speed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", default=sys.executable, help="a Python with the package webdataset and torch")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        pattern = write(folder, given.images, given.shards)
        started = time.perf_counter()
        first = folder / "train-0000.tar"  # the test split, which is not used
        data = load("webdataset", path=pattern, test_path=first, validation=0, workers=0)
        seconds = time.perf_counter() - started
        print(f"{len(data.train):,} images in {given.shards} tar files were loaded in {seconds:.1f} s")
        if len(data.train) != given.images:
            raise SystemExit(f"{given.images:,} images were written")
        check(data)
        compare(data, pattern, given.workers, given.rounds, given.peer)


def write(folder: Path, images: int, shards: int) -> str:
    """Write noise as PNG with labels, unless the folder has the tar files; returns their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = numpy.random.default_rng(0)
    for shard, numbers in enumerate(numpy.array_split(numpy.arange(images), shards)):
        path = folder / f"train-{shard:04d}.tar"
        if path.is_file():
            continue
        with tarfile.open(folder / "unfinished", "w") as archive:
            for number in numbers:
                pixels = io.BytesIO()
                Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), numpy.uint8)).save(pixels, "png")
                for ending, content in (("png", pixels.getvalue()), ("cls", str(number % CLASSES).encode())):
                    header = tarfile.TarInfo(f"{number:09d}.{ending}")
                    header.size = len(content)
                    archive.addfile(header, io.BytesIO(content))
        (folder / "unfinished").rename(path)
    return str(folder / f"train-{{0000..{shards - 1:04d}}}.tar")


def check(data: Data) -> None:
    """Check the order of the samples and the resume, and print the growth of memory."""
    before = _peak(resource.RUSAGE_SELF)
    expected = torch.cat([batch.index for batch in batches(data, 0)(3)])
    for ranks in (1, 2):
        for workers in (0, 1, 2):
            parts = [batches(data, workers, (rank, ranks))(3) for rank in range(ranks)]
            seen = torch.cat([batch.index for together in zip(*parts, strict=True) for batch in together])
            once = bool((torch.bincount(seen, minlength=len(data.train)) == 1).all())
            same = torch.equal(seen, expected)
            print(
                f"{ranks} processes with {workers} workers: each sample once: {once}; the order of one process: {same}"
            )
            if not (once and same):
                raise SystemExit("the samples are not those of one process")
    left = len(expected) // BATCH // 2
    stopped = next(itertools.islice(batches(data, 2)(3), left, None))
    again = next(itertools.islice(batches(data, 0)(3), left, None))
    if not (torch.equal(stopped.inputs, again.inputs) and torch.equal(stopped.index, again.index)):
        raise SystemExit("an epoch that is begun again is another one")
    print(f"batch {left:,} of an epoch that is begun again, without workers, is the same to the bit")
    after, worker = _peak(resource.RUSAGE_SELF), _peak(resource.RUSAGE_CHILDREN)
    print(f"memory: {before >> 20} MiB before, {after >> 20} MiB afterwards; a worker had at most {worker >> 20} MiB")


def batches(data: Data, workers: int, part: tuple[int, int] = (0, 1)) -> Batches:
    """The batches of the training split, decoded by so many workers."""
    images = data.train.inputs
    if not isinstance(images, Images):
        raise TypeError("the images are in memory")
    train = replace(data.train, inputs=replace(images, workers=workers))
    return Batches(train, batch_size=BATCH, seed=1, mean=data.mean, std=data.std, part=part)


def compare(data: Data, pattern: str, workers: int, rounds: int, peer: str) -> None:
    """Print the images a second of limbeck and of webdataset, median and range over the rounds, and their ratio."""
    found: dict[str, list[float]] = {"limbeck": [], "webdataset": []}
    for _ in range(rounds):
        started = time.perf_counter()
        seen = sum(len(batch.index) for batch in batches(data, workers)(0))
        found["limbeck"].append(seen / (time.perf_counter() - started))
        command = [peer, "-W", "ignore", "-c", PEER, pattern, str(workers), str(BATCH)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        count, seconds = done.stdout.split()
        found["webdataset"].append(int(count) / float(seconds))
    for name, rates in found.items():
        print(f"{name}: {statistics.median(rates):,.0f} images/s [{min(rates):,.0f} - {max(rates):,.0f}]")
    ratios = [one / other for one, other in zip(found["limbeck"], found["webdataset"], strict=True)]
    print(f"limbeck / webdataset: {statistics.median(ratios):.2f} [{min(ratios):.2f} - {max(ratios):.2f}]")


def _peak(who: int) -> int:
    return 1024 * resource.getrusage(who).ru_maxrss


if __name__ == "__main__":
    main()
