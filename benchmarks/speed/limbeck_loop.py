"""limbeck's loop as a recipe runs it: `limbeck.experiment.plan.plan`, then `limbeck.train.loop.run`."""

import itertools
import time
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from benchmarks.speed.workloads import MOMENTUM, RATE, WEIGHT_DECAY, Case
from limbeck.cache.building import Estimate, Progress
from limbeck.cache.reading import Store
from limbeck.core import Batch, Stage
from limbeck.experiment.caching import cached, keep, teacher_taps
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods import METHODS, PRESETS
from limbeck.optimizers import sgd
from limbeck.options import call, fill
from limbeck.recipe.blocks import CacheBlock
from limbeck.schedules import constant
from limbeck.train.engine import Engine, make_engine
from limbeck.train.loop import BatchSource, run
from limbeck.train.timing import resolve_precision

ENDLESS = 10**9
"""Epochs: the benchmark decides when to stop."""

STORE = CacheBlock(use=True, views=1, dtype="float16")
"""One view of each sample: reading takes as long with more."""


class Window:
    """The batches of a training set, epoch after epoch, in windows of ``steps`` batches.

    The loop takes a window for an epoch, so it returns to its caller after exactly ``steps`` steps. Order,
    augmentation and the ends of epochs are those of the training set.
    """

    def __init__(self, batches: BatchSource) -> None:
        self.steps = 1
        self.samples = batches.samples
        self._batches = batches
        self._flow = itertools.chain.from_iterable(batches(number) for number in itertools.count())

    def __len__(self) -> int:
        return self.steps

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """The next steps' batches."""
        return itertools.islice(self._flow, self.steps)

    def sweep(self) -> Iterable[Batch]:
        """As the training set's."""
        return self._batches.sweep()

    def example_inputs(self) -> Tensor:
        """As the training set's."""
        return self._batches.example_inputs()


class LimbeckLoop:
    """limbeck's loop on a case: called with a number, it trains that many steps and returns their mean loss.

    Args:
        case: data and method.
        networks: ``student``, trained in place, and ``teacher``.
        engine: device, precision, compilation.
        folder: where to build a store of the teacher's outputs, which is then read; None runs the teacher.

    Attributes:
        store_seconds: what building the store took; 0 without one.
    """

    def __init__(self, case: Case, networks: dict[str, nn.Module], engine: Engine, folder: Path | None = None) -> None:
        training, store = training_of(case), None
        self.store_seconds = 0.0
        stages = first_stage(case, networks, training)
        if folder is not None:
            training = cached(training, STORE)
            start = time.perf_counter()
            store = build_now(
                keep(folder, STORE, networks["teacher"], teacher_taps(stages), case.data, training, engine)
            )
            self.store_seconds = time.perf_counter() - start
        self._window = Window(training_batches(case.data, training, seed=0, engine=engine))
        self._epochs = run(stages, networks, self._window, engine, store=store)

    def __call__(self, steps: int) -> float:
        """Train that many steps."""
        self._window.steps = steps
        return next(self._epochs).loss


def build_now(building: Generator[Estimate | Progress, None, Store | None]) -> Store | None:
    """Build a store without showing progress, and return it."""
    while True:
        try:
            next(building)
        except StopIteration as end:
            store: Store | None = end.value
            return store


def engine_of(precision: Literal["32", "bf16"], *, compiled: bool = False) -> Engine:
    """An engine on the CPU.

    Raises:
        LimbeckError: compiling was asked for and there is no compiler.
    """
    return make_engine(device="cpu", precision=precision, compile=compiled)


def pick_engine(case: Case) -> Engine:
    """The engine that a run of this training with ``precision: auto`` gets on the CPU."""
    networks, training = case.networks(), training_of(case)
    batches = training_batches(case.data, training, seed=0, engine=engine_of("32"))
    stages = first_stage(case, networks, training)
    return resolve_precision(stages, networks, batches, device="cpu", precision="auto")


def training_of(case: Case) -> Training:
    """The training that every variant does."""
    optimizer = sgd(lr=RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    return Training(ENDLESS, case.workload.batch_size, optimizer, constant(), case.workload.augment)


def first_stage(case: Case, networks: dict[str, nn.Module], training: Training) -> tuple[Stage, ...]:
    """The first stage of the case's method: of FitNets the hint stage, of the others the only one."""
    block = fill(METHODS, case.workload.method, kind="method", presets=PRESETS)
    return plan(partial(call, METHODS, block), networks, case.data, training)[:1]
