"""What the loop costs beside the networks' work, what memory it needs, and how long the command takes to start."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from math import inf

import torch
from torch import nn

from limbeck.bench import measuring
from limbeck.bench.measuring import Run, Sample
from limbeck.bench.objectives import kd_loss
from limbeck.bench.own import Own
from limbeck.bench.workloads import DIGITS, MOMENTUM, RATE, WEIGHT_DECAY, Case, prepare
from limbeck.core import LimbeckError
from limbeck.data import normalise
from limbeck.train.engine import make_engine

HELP = (sys.executable, "-m", "limbeck", "--help")


def in_memory(case: Case, student: nn.Module, teacher: nn.Module) -> Run:
    """The plainest loop there is: batches that lie ready, soft targets, SGD, nothing read back."""
    options = {name: value for name, value in case.workload.method.items() if name != "name"}
    inputs = normalise(case.images, case.data.mean, case.data.std)
    size = case.workload.batch_size
    targets = case.data.train.targets
    batches = list(zip(torch.split(inputs, size), torch.split(targets, size), strict=True))
    teacher.eval()
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def run(steps: int) -> None:
        for step in range(steps):
            images, labels = batches[step % len(batches)]
            with torch.no_grad():
                taught = teacher(images)
            loss = kd_loss(student(images), taught, labels, **options)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return run


def step_overhead(rounds: int, seconds: float, until: float = inf) -> Iterator[Sample]:
    """Samples of ``plain``, with its batches ready in memory, and ``live``, on networks of next to no work.

    With one thread and in 32 bits, both; what matters is the difference of their steps.

    Args:
        rounds: at least 1.
        seconds: of a sample, about.
        until: see `measuring.interleaved`.
    """
    case = prepare(DIGITS)
    loop, own = case.networks(), case.networks()
    runs: dict[str, Run] = {
        "plain": in_memory(case, loop["student"], loop["teacher"]),
        "live": Own(case, own, make_engine(device="cpu", precision="32")),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = {name: measuring.warm_up(run, seconds / 5)[1] for name, run in runs.items()}
        yield from measuring.interleaved(runs, measuring.steps_for(times, seconds), rounds, until=until)
    finally:
        torch.set_num_threads(threads)


def peak_memory(workload: str) -> dict[str, float]:
    """The peak of resident memory in MB of two processes of their own, one for ``plain`` and one for ``live``.

    They run side by side: nothing is timed.

    Raises:
        LimbeckError: one of them failed.
    """
    processes: dict[str, subprocess.Popen[str]] = {}
    with ExitStack() as ends:
        for name in ("plain", "live"):
            process = subprocess.Popen(
                [sys.executable, "-m", "limbeck.bench.memory", name, workload],
                env={**os.environ, "OMP_NUM_THREADS": "1"},  # or they would wait for each other
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            processes[name] = ends.enter_context(process)  # which is waited for
            ends.callback(process.kill)  # before that; one that has ended feels nothing of it
        said = {name: process.communicate() for name, process in processes.items()}
    for name, process in processes.items():
        if process.returncode:
            last = [f"exit status {process.returncode}", *said[name][1].strip().splitlines()][-1]
            raise LimbeckError(f"the process that measures the memory of {name} failed: {last}")
    return {name: float(out) for name, (out, _) in said.items()}


def startup_seconds(runs: int = 5, command: tuple[str, ...] = HELP) -> float:
    """The median time from the command to its end, of a command that does next to nothing."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
