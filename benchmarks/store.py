"""A large store of a teacher's outputs: its size, its build by workers that are killed, and how fast it is read.

    python -m benchmarks.store                                       # 1,000,000 rows, top 10 of 1,000 classes
    python -m benchmarks.store --rows 10000000 --classes 20 --kills 0

The teacher is a function of the sample's number, so that its time is small beside that of the store. One process builds
the store undisturbed. Then workers build it again with `limbeck.cache.building.build`, as ``limbeck cache build --shard
i/N`` does; some are killed at random times and started again, and the files must be the same. Without kills, only the
workers build it. Another process reads it. Prints a table in Markdown. It needs Linux, for ``/proc`` and ``fork``.
"""

import argparse
import filecmp
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch
from torch import Tensor

from limbeck.cache.building import build
from limbeck.cache.fingerprint import Fingerprint, Format
from limbeck.cache.reading import Store
from limbeck.core import Batch, Tap

TAP = Tap("teacher")
BATCH = 256
TOP_K = 10

FORK = multiprocessing.get_context("fork")  # a worker need not import torch again


@dataclass(frozen=True)
class Synthetic:
    """A source of numbered samples, and a teacher of them."""

    rows: int
    classes: int

    def view(self, number: int, *, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Batches of four times `BATCH` samples without inputs."""
        for index in torch.split(torch.arange(start, self.rows if stop is None else stop), 4 * BATCH):
            yield Batch(torch.empty(len(index), 0), index % self.classes, index, number)

    def read(self, batch: Batch) -> dict[Tap, Tensor]:
        """Logits (N, classes) that differ between samples and classes."""
        phase = batch.index[:, None].remainder(65_521) * 0.37 + torch.arange(self.classes) * 2.4
        return {TAP: 8 * torch.sin(phase)}

    @property
    def fingerprint(self) -> Fingerprint:
        """That of a store of the largest logits in 16 bits."""
        return Fingerprint(
            weights="none",
            structure="a sine",
            data=f"{self.rows} numbers",
            transform={},
            seed=0,
            views=1,
            taps={TAP: Format("float16", TOP_K)},
            precision="32",
            versions={"torch": torch.__version__},
        )


def build_part(told: Connection, folder: Path, case: Synthetic, number: int, count: int) -> None:
    """Build a part of the store, and tell by how many bytes the memory grew."""
    before = _memory("VmRSS")
    # mypy wants a Batches, of which build uses only view()
    for _ in build(folder, case.read, case, fingerprint=case.fingerprint, rows=case.rows, part=(number, count)):  # type: ignore[arg-type]
        pass
    told.send(_memory("VmHWM") - before)


def read_all(told: Connection, folder: Path, case: Synthetic) -> None:
    """Read the store, and tell: seconds to open it, of a pass, of a batch (median, least), growth of the memory."""
    before = _memory("RssAnon"), _memory("RssFile")
    start = time.perf_counter()
    store = Store(folder, case.fingerprint)
    opened = time.perf_counter() - start
    start = time.perf_counter()
    order = torch.randperm(case.rows, generator=torch.Generator().manual_seed(0))
    for index in torch.split(order[: 400 * BATCH], BATCH):
        store.read(index, 0)
    for unit in store.plan.units:
        store.read(torch.tensor([unit.start]), 0)  # every file is compared with its checksum
    passed, times = time.perf_counter() - start, []
    for _ in range(400):
        index = torch.randint(case.rows, (BATCH,))
        start = time.perf_counter()
        store.read(index, 0)
        times.append(time.perf_counter() - start)
    grown = _memory("RssAnon") - before[0], _memory("RssFile") - before[1]
    told.send((opened, passed, statistics.median(times), min(times), *grown))


def _memory(key: str) -> int:
    """Bytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def start(job: Callable[..., None], *options: object) -> tuple[ForkProcess, Connection]:
    """A process that does a job, and what it will tell."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=job, args=(there, *options))
    process.start()
    there.close()  # so that a process that ends without a word is an error
    return process, here


def disturbed(folder: Path, case: Synthetic, workers: int, kills: int, seconds: float) -> tuple[int, int]:
    """Build with workers that are killed and started again; the number of kills and the largest growth of the memory.

    The kills are spread at random over about half of this time.
    """
    going, killed = [start(build_part, folder, case, number, workers) for number in range(workers)], 0
    for _ in range(kills):
        time.sleep(random.uniform(0, seconds / kills))
        alive = [number for number, (process, _) in enumerate(going) if process.is_alive()]
        if not alive:
            break
        number = random.choice(alive)
        going[number][0].kill()
        going[number][0].join()
        killed += 1
        going[number] = start(build_part, folder, case, number, workers)
    return killed, max(told.recv() for _, told in going)


def main() -> None:
    """Build, compare and read the store, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=8, help="how often a worker is killed, if it is not done before")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _table(Path(folder), Synthetic(asked.rows, asked.classes), asked.workers, asked.kills)


def _table(folder: Path, case: Synthetic, workers: int, kills: int) -> None:
    alone, shared, seconds = folder / "alone", folder / "shared", 0.0
    print("| | |", "|---|---|", sep="\n")
    if kills:
        began = time.perf_counter()
        grown = start(build_part, alone, case, 0, 1)[1].recv()
        seconds = time.perf_counter() - began
        _row("undisturbed build by one process", f"{seconds:.0f} s, memory grows by {grown / 1e6:.0f} MB")
    began = time.perf_counter()
    killed, grown = disturbed(shared, case, workers, kills, seconds)
    seconds = time.perf_counter() - began
    _row(f"build by {workers} workers, killed {killed} times", f"{seconds:.0f} s, memory grows by {grown / 1e6:.0f} MB")
    if kills:
        names = sorted(path.name for path in alone.iterdir())
        _, different, missing = filecmp.cmpfiles(alone, shared, names, shallow=False)
        extra = {path.name for path in shared.iterdir()} - set(names)
        same = "no" if different or missing or extra else f"yes, all {len(names)}"
        _row("files equal those of the undisturbed build bit for bit", same)
    files = list(shared.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    _row("files", f"{len(files)}, {size / 1e6:.1f} MB")
    _row("bytes a row", f"{size / case.rows:.2f}; {2 * (TOP_K + 1) + 2 * TOP_K} of numbers")
    opened, passed, median, least, anonymous, mapped = start(read_all, shared, case)[1].recv()
    _row("opening", f"{opened:.3f} s")
    _row("400 batches in random order, with the checksums of all files", f"{passed:.2f} s")
    _row(f"a random batch of {BATCH} rows", f"{1e3 * median:.2f} ms (median of 400), {1e3 * least:.2f} ms (fastest)")
    _row("memory while reading", f"grows by {anonymous / 1e6:.0f} MB and {mapped / 1e6:.0f} MB of mapped files")


def _row(what: str, found: str) -> None:
    print(f"| {what} | {found} |", flush=True)


if __name__ == "__main__":
    main()
