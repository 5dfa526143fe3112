"""limbeck's own loop, as a recipe runs it: `limbeck.experiment.plan.plan`, then `limbeck.train.loop.run`."""

import itertools
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from limbeck.bench.workloads import MOMENTUM, RATE, WEIGHT_DECAY, Case
from limbeck.core import Batch, Stage
from limbeck.experiment.caching import build_now, cached, keep, teacher_taps
from limbeck.experiment.plan import Training, plan, training_batches
from limbeck.methods import METHODS, PRESETS
from limbeck.optimizers import sgd
from limbeck.options import call, fill
from limbeck.recipe.blocks import CacheBlock
from limbeck.schedules import constant
from limbeck.train.engine import Engine, make_engine
from limbeck.train.loop import BatchSource, run
from limbeck.train.timing import resolve_precision

FOR_EVER = 10**9
"""Epochs: no variant comes to an end."""

STORE = CacheBlock(use=True, views=1, dtype="float16")
"""One view of each sample: reading takes as long with more."""


class Window:
    """The batches of a training set, epoch after epoch, in windows of as many steps as are asked for.

    The loop takes a window for an epoch, and so comes back to its caller after exactly these steps, while order,
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


class Own:
    """limbeck's loop on a case: called with a number, it trains that many steps and gives their mean loss.

    Args:
        case: data and method.
        networks: ``student``, trained in place, and ``teacher``.
        engine: device, precision, compilation.
        folder: where to put a store of the teacher's outputs, to be read instead of running it; None runs it.

    Attributes:
        filling: seconds that filling the store took; 0 without one.
    """

    def __init__(self, case: Case, networks: dict[str, nn.Module], engine: Engine, folder: Path | None = None) -> None:
        training, store = training_of(case), None
        self.filling = 0.0
        stages = first_stage(case, networks, training)
        if folder is not None:
            training = cached(training, STORE)
            start = time.perf_counter()
            store = build_now(
                keep(folder, STORE, networks["teacher"], teacher_taps(stages), case.data, training, engine)
            )
            self.filling = time.perf_counter() - start
        self._window = Window(training_batches(case.data, training, seed=0, engine=engine))
        self._epochs = run(stages, networks, self._window, engine, store=store)

    def __call__(self, steps: int) -> float:
        """Train that many steps."""
        self._window.steps = steps
        return next(self._epochs).loss


def pick_engine(case: Case) -> Engine:
    """The engine that a run of this training with ``precision: auto`` gets, on the CPU."""
    networks, training = case.networks(), training_of(case)
    batches = training_batches(case.data, training, seed=0, engine=make_engine(device="cpu", precision="32"))
    stages = first_stage(case, networks, training)
    return resolve_precision(stages, networks, batches, device="cpu", precision="auto")


def training_of(case: Case) -> Training:
    """How every variant trains."""
    optimizer = sgd(lr=RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    return Training(FOR_EVER, case.workload.batch_size, optimizer, constant(), case.workload.augment)


def first_stage(case: Case, networks: dict[str, nn.Module], training: Training) -> tuple[Stage, ...]:
    """The first stage of the case's method: all of it, but for FitNets, whose first is the hint stage."""
    block = fill(METHODS, case.workload.method, kind="method", presets=PRESETS)
    return plan(partial(call, METHODS, block), networks, case.data, training)[:1]
