"""What the loop costs besides the networks' work, and how long the command takes to start."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from math import inf

import torch
from torch import nn

from benchmarks.speed import measuring
from benchmarks.speed.limbeck_loop import LimbeckLoop, engine_of
from benchmarks.speed.measuring import Run, Sample
from benchmarks.speed.objectives import kd_loss
from benchmarks.speed.workloads import DIGITS, MOMENTUM, RATE, WEIGHT_DECAY, Case, prepare
from limbeck.data import normalise

HELP = (sys.executable, "-m", "limbeck", "--help")


def in_memory(case: Case, student: nn.Module, teacher: nn.Module) -> Run:
    """The shortest possible loop: batches ready in memory, soft targets, SGD, no value read back."""
    options = {name: value for name, value in case.workload.method.items() if name != "name"}
    inputs = normalise(case.images, case.data.mean, case.data.std)
    size = case.workload.batch_size
    batches = list(zip(torch.split(inputs, size), torch.split(case.data.train.targets, size), strict=True))
    teacher.eval()
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def run(steps: int) -> None:
        for step in range(steps):
            images, labels = batches[step % len(batches)]
            with torch.no_grad():
                teacher_logits = teacher(images)
            loss = kd_loss(student(images), teacher_logits, labels, **options)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's types lack it
            optimizer.step()

    return run


def step_overhead(rounds: int, seconds: float, end: float = inf) -> Iterator[Sample]:
    """Samples of ``plain``, the loop of `in_memory`, and ``live``, limbeck's, on tiny networks.

    Both run with one thread and in 32 bits. The difference of their steps is the overhead.

    Args:
        rounds: at least 1.
        seconds: length of a sample, about.
        end: see `measuring.interleaved`.
    """
    case = prepare(DIGITS)
    plain = case.networks()
    runs: dict[str, Run] = {
        "plain": in_memory(case, plain["student"], plain["teacher"]),
        "live": LimbeckLoop(case, case.networks(), engine_of("32")),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = {name: measuring.warm_up(run, seconds / 5)[1] for name, run in runs.items()}
        yield from measuring.interleaved(runs, measuring.steps_for(times, seconds), rounds, end=end)
    finally:
        torch.set_num_threads(threads)


def startup_seconds(runs: int = 5, command: tuple[str, ...] = HELP) -> float:
    """The median time that a command takes from start to end."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
