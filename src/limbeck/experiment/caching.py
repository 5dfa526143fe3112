"""Whether a teacher's outputs are stored, what the store depends on, and how the outputs are computed."""

import math
import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from torch import Tensor, nn

from limbeck.cache.blackbox import TableStore, rows_for
from limbeck.cache.building import LEFT_FREE, Estimate, Progress, build, estimate
from limbeck.cache.checking import Verification, verify
from limbeck.cache.encoding import parts_of
from limbeck.cache.fingerprint import Fingerprint, Format, structure_digest, weights_digest
from limbeck.cache.manifest import begun, digest_of, info
from limbeck.cache.reading import Store
from limbeck.cache.table import read_table
from limbeck.core import LimbeckError, Outputs, Reader, Stage, Tap
from limbeck.data import Data
from limbeck.data.images import Images
from limbeck.experiment.arms import teacher_of
from limbeck.experiment.events import StoreEstimate, StoreProgress
from limbeck.experiment.store_folders import store_folder
from limbeck.experiment.workspace import NO_AUGMENTATION, Training, training_batches
from limbeck.recipe.blocks import CacheBlock, Recipe, TeacherBlock
from limbeck.taps import evaluation_mode
from limbeck.train.engine import Engine
from limbeck.train.readers import network_reader

MOST = 2**30
"""The most bytes of a store that `auto` builds."""

VIEWS = 4
"""Stored views of each sample, unless the recipe says how many, if the training augments; at most one an epoch."""

DEPENDS = ("limbeck", "torch", "torchvision", "pillow")
"""Packages on whose version a stored number may depend."""


def teacher_taps(stages: Sequence[Stage]) -> frozenset[Tap]:
    """The teacher's taps that the stages read; none if a stage trains the teacher."""
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
    """Resolve ``auto`` and the defaults of the block.

    Args:
        block: the recipe's.
        stages: what will be trained.
        training: the recipe's.
        samples: the number of training samples.
        shape: returns the shape of a tap's tensor, for one sample.
        free: free bytes of the disk on which the store would be.
        transformed: whether the data has a transform that gives different views.

    Raises:
        LimbeckError: a store is required, but the method does not read the teacher, or trains it, or the training mixes
            inputs; there are several views, but the training does not augment; a format does not fit a tap.
    """
    if block.use is False:
        return block
    taps, epochs = teacher_taps(stages), sum(stage.epochs for stage in stages)
    same = training.augment == NO_AUGMENTATION and not transformed
    size = samples * sum(math.prod(shape(tap)) for tap in taps) * 4
    if block.use == "auto":
        mixes = training.soft is not None and training.soft.mixing
        pays = bool(taps) and same and not mixes and epochs > 1 and size <= min(MOST, free - LEFT_FREE)
        return block.model_copy(update={"use": True, "views": 1, "dtype": "float32"} if pays else {"use": False})
    if not taps:
        raise LimbeckError("cache: the method does not read the teacher, or trains it, so nothing can be stored")
    refuse_mixing(training, "a store of the teacher's outputs")
    if same and (block.views or 1) > 1:
        raise LimbeckError(f"cache.views is {block.views}, but nothing is augmented, so all views are the same: use 1")
    views = block.views or (1 if same else min(VIEWS, max(stage.epochs for stage in stages)))
    dtype = block.dtype or ("float32" if same and size <= MOST else "float16")
    decided = block.model_copy(update={"views": views, "dtype": dtype})
    for tap, form in formats(decided, taps).items():
        parts_of(form, shape(tap))
    return decided


def refuse_mixing(training: Training, what: str) -> None:
    """Raise LimbeckError if the training mixes inputs, because a store or table has one row for each sample."""
    if training.soft is not None and training.soft.mixing:
        raise LimbeckError(
            f"{training.soft.mixing} mixes the samples of each batch, but {what} has one row for each sample: remove "
            f"{training.soft.mixing}, or compute the teacher's outputs during training"
        )


def formats(block: CacheBlock, taps: frozenset[Tap]) -> dict[Tap, Format]:
    """How the rows of each tap are stored.

    Raises:
        LimbeckError: ``cache.top_k`` is given, and a tap is not the teacher's output.
    """
    others = sorted(str(tap) for tap in taps if tap != Tap("teacher"))
    if block.top_k is not None and others:
        raise LimbeckError(f"cache.top_k stores the teacher's logits, but the method also reads {', '.join(others)}")
    return {tap: Format(block.dtype or "float16", block.top_k) for tap in taps}


def fingerprint(
    block: CacheBlock, teacher: nn.Module, taps: frozenset[Tap], data: Data, training: Training, engine: Engine
) -> Fingerprint:
    """What the stored numbers depend on."""
    samples = data.train.without(training.exclude)
    transform = {**asdict(training.augment), "mean": list(data.mean), "std": list(data.std)}
    if isinstance(samples.inputs, Images):  # whose digest includes their transform
        images = samples.inputs
        transform |= {"function": images.transform, "digest of the code": digest_of({"code": images.code.hex()})}
        samples = replace(samples, inputs=replace(images, transform=None, code=b""))
    return Fingerprint(
        weights=weights_digest(teacher),
        structure=structure_digest(teacher),
        data=samples.digest(),
        transform=transform,
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
        yield network_reader(teacher, tuple(taps), few, engine)[0]


def keep(
    folder: Path,
    block: CacheBlock,
    teacher: nn.Module,
    taps: frozenset[Tap],
    data: Data,
    training: Training,
    engine: Engine,
    part: tuple[int, int] | None = None,
) -> Generator[Estimate | Progress, None, Store | None]:
    """Build the store, or finish or repair it, and open it. The estimate of a new store is yielded first.

    Of several writers, each builds its ``part``, as for `limbeck.cache.building.build`, and compares the files of its
    part with their checksums. The store is None until the last of them is finished. Without a part, everything is
    built, and files that are there are compared with their checksums when they are first read.

    Raises:
        LimbeckError: the folder holds another store; the disk has not enough space.
    """
    expected = fingerprint(block, teacher, taps, data, training, engine)
    batches = training_batches(data, training, seed=block.seed, engine=engine)
    rows, own = len(data.train.without(training.exclude)), part or (0, 1)
    with reading(teacher, taps, batches.example_inputs(), engine) as reader:
        if begun(folder) is None or own != (0, 1):
            timed = max(1, min(3, len(batches) * expected.views // 50))  # not much beside the work itself
            yield estimate(folder, reader, batches, fingerprint=expected, rows=rows, part=own, batches=timed)
        checked = yield from build(
            folder,
            reader,
            batches,
            fingerprint=expected,
            rows=rows,
            part=own,
            check=part is not None,
        )
    return Store(folder, expected, checked) if own == (0, 1) or info(folder).finished else None


def soft_label_table(block: TeacherBlock, data: Data, training: Training) -> TableStore | None:
    """The rows of a teacher that is a table of soft labels; None if the teacher is a network.

    Raises:
        LimbeckError: the data has no files; the table cannot be read, or has no row for a file; the training mixes
            inputs.
    """
    if block.table is None:
        return None
    refuse_mixing(training, "teacher.table")
    names = data.train.without(training.exclude).names
    if names is None:
        raise LimbeckError("teacher.table has a row for each file, but the data has no files: use the source folder")
    return TableStore(rows_for(read_table(Path(block.table), block.values), names, data.classes))


def cached(training: Training, block: CacheBlock) -> Training:
    """The training, over the stored views."""
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
    part: tuple[int, int] | None = None,
) -> Generator[StoreEstimate | StoreProgress, None, Outputs | None]:
    """The stored outputs of a recipe's teacher; None if the teacher runs at every step. Builds the store if necessary.

    Args:
        recipe: with every `auto` of its cache resolved.
        run: the run's folder.
        seed: the student's.
        stages: the method's.
        teacher: trained, or the placeholder of a table.
        data: the recipe's.
        training: the student's.
        engine: runs the teacher.
        part: of the store to build, as for `keep`.

    Raises:
        LimbeckError: the folder holds another store; the disk has not enough space; a table does not fit the data.
    """
    if not recipe.cache.use:
        return soft_label_table(recipe.teacher, data, training) if recipe.teacher else None
    job = teacher_of(recipe, seed)
    folder = store_folder(recipe, run, job.seed)
    building = keep(folder, recipe.cache, teacher, teacher_taps(stages), data, training, engine, part)
    while True:
        try:
            step = next(building)
        except StopIteration as end:
            store: Outputs | None = end.value
            return store
        yield (
            StoreEstimate(job, folder, step.bytes, step.whole, step.seconds, step.free)
            if isinstance(step, Estimate)
            else StoreProgress(job, folder, step.done, step.total, step.bytes)
        )


def check(
    folder: Path,
    block: CacheBlock,
    teacher: nn.Module,
    taps: frozenset[Tap],
    data: Data,
    training: Training,
    engine: Engine,
) -> Verification:
    """Compare all files of a finished store with their checksums, and random rows with its teacher.

    The rows are others at each call.

    Raises:
        LimbeckError: the store is not finished, damaged or built from something else; a row is not what the teacher
            gives.
    """
    store = Store(folder, fingerprint(block, teacher, taps, data, training, engine), check=True)
    batches = training_batches(data, training, seed=block.seed, engine=engine)
    with reading(teacher, taps, batches.example_inputs(), engine) as reader:
        return verify(store, reader, batches, seed=secrets.randbits(32))
