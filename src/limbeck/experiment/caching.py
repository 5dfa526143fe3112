"""Whether the teacher's outputs are kept, what a store of them depends on, and how they are computed."""

import math
import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from torch import Tensor, nn

from limbeck.cache import (
    LEFT_FREE,
    Estimate,
    Fingerprint,
    Format,
    Progress,
    Store,
    TableStore,
    Verification,
    begun,
    build,
    estimate,
    network_digest,
    parts_of,
    read_table,
    rows_for,
    verify,
)
from limbeck.core import LimbeckError, Outputs, Reader, Stage, Tap
from limbeck.data import Data
from limbeck.experiment.arms import teacher_of
from limbeck.experiment.events import Job, StoreEstimate, StoreProgress
from limbeck.experiment.plan import NO_AUGMENTATION, Training, training_batches
from limbeck.recipe.blocks import CacheBlock, Recipe, TeacherBlock
from limbeck.taps import evaluation_mode
from limbeck.train.engine import Engine
from limbeck.train.readers import network_reader

MOST = 2**30
"""Bytes up to which `auto` keeps outputs."""

VIEWS = 4
"""Views of each sample that are kept where the training augments and nobody says how many; no more than epochs."""

DEPENDS = ("limbeck", "torch", "torchvision", "pillow")
"""Packages whose version a stored number may depend on."""

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def teacher_taps(stages: Sequence[Stage]) -> frozenset[Tap]:
    """What the stages read of the teacher; nothing where one of them changes it."""
    if any("teacher" in stage.networks for stage in stages):
        return frozenset()
    return frozenset(tap for stage in stages for tap in stage.reads if tap.source == "teacher")


def decide(
    block: CacheBlock,
    stages: Sequence[Stage],
    training: Training,
    samples: int,
    shape: Callable[[Tap], tuple[int, ...]],
    *,
    free: int,
    transformed: bool = False,
) -> CacheBlock:
    """The block with everything decided.

    Args:
        block: as the recipe has it.
        stages: what will be trained.
        training: as the recipe has it.
        samples: of the training set.
        shape: a tap's tensor's, of one sample.
        free: bytes of the disk that the store would be on.
        transformed: whether the data has a transform of its own, whose views differ too.

    Raises:
        LimbeckError: a store is asked for and the method reads nothing of the teacher, or changes it; several views
            of a training that does not augment; what the method reads cannot be kept as it is asked for.
    """
    if block.use is False:
        return block
    taps, epochs = teacher_taps(stages), sum(stage.epochs for stage in stages)
    same = training.augment == NO_AUGMENTATION and not transformed
    size = samples * sum(math.prod(shape(tap)) for tap in taps) * 4
    if block.use == "auto":
        pays = bool(taps) and same and epochs > 1 and size <= min(MOST, free - LEFT_FREE)
        return block.model_copy(update={"use": True, "views": 1, "dtype": "float32"} if pays else {"use": False})
    if not taps:
        raise LimbeckError("cache: the method reads nothing of the teacher, or changes it, so nothing can be kept")
    if same and (block.views or 1) > 1:
        raise LimbeckError(f"cache.views is {block.views}, but nothing is augmented, so all views are the same: use 1")
    views = block.views or (1 if same else min(VIEWS, max(stage.epochs for stage in stages)))
    dtype = block.dtype or ("float32" if same and size <= MOST else "float16")
    decided = block.model_copy(update={"views": views, "dtype": dtype})
    for tap, form in formats(decided, taps).items():
        parts_of(form, shape(tap))
    return decided


def formats(block: CacheBlock, taps: frozenset[Tap]) -> dict[Tap, Format]:
    """How each tap's rows are stored.

    Raises:
        LimbeckError: the greatest logits are to be kept, and a tap is not the whole teacher's output.
    """
    others = sorted(str(tap) for tap in taps if tap != Tap("teacher"))
    if block.top_k is not None and others:
        raise LimbeckError(f"cache.top_k keeps the teacher's logits, but the method reads {', '.join(others)}")
    return {tap: Format(block.dtype or "float16", block.top_k) for tap in taps}


def fingerprint(
    block: CacheBlock, teacher: nn.Module, taps: frozenset[Tap], data: Data, training: Training, engine: Engine
) -> Fingerprint:
    """All that the stored numbers depend on."""
    return Fingerprint(
        teacher=network_digest(teacher),
        data=data.train.without(training.exclude).digest(),
        transform={"augment": asdict(training.augment), "mean": list(data.mean), "std": list(data.std)},
        seed=block.seed,
        views=block.views or 1,
        taps=formats(block, taps),
        precision=engine.precision,
        versions={name: version(name) for name in DEPENDS},
    )


@contextmanager
def reading(teacher: nn.Module, taps: frozenset[Tap], few: Tensor, engine: Engine) -> Iterator[Reader]:
    """A reader of the teacher, which is in eval mode inside the block; see `limbeck.train.readers.network_reader`."""
    with evaluation_mode([engine.place(teacher)]):
        yield network_reader(teacher, taps, few, engine)


def keep(
    folder: Path,
    block: CacheBlock,
    teacher: nn.Module,
    taps: frozenset[Tap],
    data: Data,
    training: Training,
    engine: Engine,
) -> Generator[Estimate | Progress, None, Store]:
    """Build the store unless it is there, whatever of it is there whole being kept, and give it.

    What a new one will take comes first.

    Raises:
        LimbeckError: the folder holds another store; the disk has too little room.
    """
    expected = fingerprint(block, teacher, taps, data, training, engine)
    batches = training_batches(data, training, seed=block.seed, engine=engine)
    rows = len(data.train.without(training.exclude))
    with reading(teacher, taps, batches.example_inputs(), engine) as reader:
        if begun(folder) is None:
            timed = max(1, min(3, len(batches) * expected.views // 50))  # not much beside the work itself
            yield estimate(folder, reader, batches, fingerprint=expected, rows=rows, batches=timed)
        yield from build(folder, reader, batches, fingerprint=expected, rows=rows)
    return Store(folder, expected)


def soft_label_table(block: TeacherBlock, data: Data, training: Training) -> TableStore | None:
    """The rows of a teacher that is a table of soft labels; None where it is a network.

    Raises:
        LimbeckError: the table or the data does not say which file a row is of; images are missing in it.
    """
    if block.table is None:
        return None
    names = data.train.without(training.exclude).names
    if names is None:
        raise LimbeckError("teacher.table names its rows by image files, but the data has none: use the source folder")
    return TableStore(rows_for(read_table(Path(block.table), block.values), names, data.classes))


def cached(training: Training, block: CacheBlock) -> Training:
    """The training over the views that are kept."""
    return replace(training, views=block.views, view_seed=block.seed) if block.use else training


def outputs(
    recipe: Recipe,
    run: Path,
    seed: int,
    stages: Sequence[Stage],
    teacher: nn.Module,
    data: Data,
    training: Training,
    engine: Engine,
) -> Generator[StoreEstimate | StoreProgress, None, Outputs | None]:
    """What the method's stages read of a recipe's teacher, where it is kept: the store is built unless it is there.

    Args:
        recipe: with its cache decided.
        run: its run folder.
        seed: the student's.
        stages: of the method.
        teacher: trained, or the stand-in of a table.
        data: of the recipe.
        training: of the student.
        engine: to run the teacher with.
    """
    if not recipe.cache.use:
        return soft_label_table(recipe.teacher, data, training) if recipe.teacher else None
    job = teacher_of(recipe, seed)
    folder = folder_of(recipe, run, job)
    building = keep(folder, recipe.cache, teacher, teacher_taps(stages), data, training, engine)
    event = None
    while True:
        try:
            progress = next(building)
        except StopIteration as end:
            if event is not None:
                yield event
            store: Outputs = end.value
            return store
        if isinstance(progress, Estimate):
            yield StoreEstimate(job, folder, progress.bytes, progress.seconds, progress.free)
            continue
        event = StoreProgress(job, folder, progress.done, progress.of, progress.bytes)
        if progress.done < progress.of:  # the last is told once, when all is on disk
            yield event


def folder_of(recipe: Recipe, run: Path, teacher: Job) -> Path:
    """Where a teacher's outputs are kept: in the recipe's folder for them, or in that of the run."""
    parent = Path(recipe.cache.folder) if recipe.cache.folder else run / "store"
    return parent / f"{teacher.arm}-seed{teacher.seed}"


def check(
    folder: Path,
    block: CacheBlock,
    teacher: nn.Module,
    taps: frozenset[Tap],
    data: Data,
    training: Training,
    engine: Engine,
) -> Verification:
    """Compare a finished store with the teacher on random rows, others each time.

    Raises:
        LimbeckError: it is not finished, damaged, of something else, or a row is not what the teacher gives.
    """
    store = Store(folder, fingerprint(block, teacher, taps, data, training, engine))
    batches = training_batches(data, training, seed=block.seed, engine=engine)
    with reading(teacher, taps, batches.example_inputs(), engine) as reader:
        return verify(store, reader, batches, seed=secrets.randbits(32))


def build_now(building: Generator[Estimate | Progress, None, Store]) -> Store:
    """The store, for who does not watch it being built."""
    while True:
        try:
            next(building)
        except StopIteration as end:
            store: Store = end.value
            return store
