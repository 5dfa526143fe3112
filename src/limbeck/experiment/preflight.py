"""What happens before a run: every network is built, every layer read once, and every `auto` decided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from limbeck.cache.building import free_bytes
from limbeck.core import LimbeckError, Method, Stage, Tap
from limbeck.data import Data
from limbeck.evaluate import macs
from limbeck.experiment.arms import arms_of, method_of, needed, training_of
from limbeck.experiment.caching import cached, decide, soft_label_table, teacher_taps
from limbeck.experiment.checks import check_teacher, refuse_shared
from limbeck.experiment.first_step import first_step
from limbeck.experiment.networks import check_use, ensemble, teaches
from limbeck.experiment.plan import plan
from limbeck.experiment.prepared import Prepared
from limbeck.experiment.runfiles import RECIPE
from limbeck.experiment.terms import SAMPLES, meaningless
from limbeck.experiment.workspace import Training, Workspace, example_batch, training_batches
from limbeck.methods import METHODS
from limbeck.recipe.blocks import CacheBlock, Recipe
from limbeck.recipe.read import reread
from limbeck.taps import shapes
from limbeck.train.engine import Engine, make_engine
from limbeck.train.freeze import frozen_parts
from limbeck.train.readers import network_reader
from limbeck.train.timing import resolve_precision


@dataclass(frozen=True)
class Preflight:
    """What `preflight` finds."""

    recipe: Recipe  # with every `auto` decided
    engine: Engine
    macs: int  # multiply-accumulates of one sample through all networks
    teaching: Mapping[str, bool]  # by arm: whether the method changes its teacher
    work: Mapping[str, float]  # by arm, including the teacher: the approximate multiply-accumulates of its training
    notes: tuple[str, ...]  # what a user should know before anything is trained


def preflight(recipe: Recipe, data: Data, factory: Prepared, folder: Path, own: Method | None) -> Preflight:
    """Build every network, plan every arm and read every tap.

    ``own`` is the method where the recipe's name stands for a function of the caller. ``folder`` is the run's.

    Raises:
        LimbeckError: a file, a network, a layer or an option is wrong.
    """
    method = recipe.method["name"]
    with torch.random.fork_rng(devices=[]):
        student, _, others = factory.student(recipe.seeds[0], method)
        networks, members = {"student": student, **others}, list[nn.Module]()
        block = recipe.teacher
        if block is not None:
            members = factory.restored(block) or [factory.teacher(block)[0] for _ in range(block.members)]
            networks["teacher"] = ensemble(members, block)
        notes = refuse_shared(networks, allow=recipe.allow)
        trainings = _trainings(recipe, data, networks, members, own)
        stages, training = trainings[method][0], trainings[method][2]
        table = soft_label_table(block, data, training) if block is not None else None
        check_use(recipe, stages, others)
        cache, engine = resolve_auto(recipe, stages, networks, data, training, folder, table=table is not None)
        stored = teacher_taps(stages) if cache.use or table else frozenset[Tap]()
        for arm, planned in trainings.items():
            own_arm = arm == method
            notes += _try_arm(
                planned, data, engine, stored if own_arm else frozenset(), runs=table is None or not own_arm
            )
        if cache.use:  # the steps that were tried have no reader of the teacher
            inputs, teacher = example_batch(data).inputs.to(engine.device), engine.place(networks["teacher"])
            note = network_reader(teacher, tuple(stored), inputs, engine)[1]
            notes += [note] if note else []
        if block is not None and block.weights and block.init == "as_is":
            learns = teaches(stages)
            notes += check_teacher(networks["teacher"], data, engine, allow=recipe.allow, learns=learns)
        rest = [f"student.{part}" if part else "student" for part in frozen_parts(student)]
        if rest:
            notes.append(f"not trained, because requires_grad is False: {', '.join(rest)}")
        costs = {name: macs(network, data.shape) or 0 for name, network in networks.items()}
    picked = {"device": engine.device.type, "precision": engine.precision, "compile": engine.compile, "cache": cache}
    return Preflight(
        recipe=recipe.model_copy(update=picked),
        engine=engine,
        macs=sum(costs.values()),
        teaching={arm: teaches(planned) for arm, (planned, _, _) in trainings.items()},
        work={arm: _work(arm, method, trainings[arm][0], trainings[arm][2], data, costs) for arm in trainings},
        notes=tuple(dict.fromkeys(notes)),
    )


Planned = tuple[tuple[Stage, ...], Mapping[str, nn.Module], Training]
"""An arm's stages, the networks that it uses, and its training."""


def _trainings(
    recipe: Recipe, data: Data, networks: Mapping[str, nn.Module], members: Sequence[nn.Module], own: Method | None
) -> dict[str, Planned]:
    """Every training by arm: the teacher or one member of an ensemble, then the student's arms.

    Raises:
        LimbeckError: a network, a layer or an option is wrong.
    """
    found: dict[str, Planned] = {}
    block = recipe.teacher
    if block is not None and block.train is not None:
        taking_part = {"student": members[0]}
        try:
            training = training_of(block.train, data)
            stages = plan(METHODS["alone"], taking_part, data, training)
        except LimbeckError as error:
            raise LimbeckError(f"teacher.train: {error}") from error
        found["teacher" if block.members == 1 else "member"] = (stages, taking_part, training)
    training = training_of(recipe.train, data)
    for arm in arms_of(recipe):
        taking_part = needed(arm, networks)
        found[arm] = (plan(method_of(recipe, arm, own), taking_part, data, training), taking_part, training)
    return found


def _try_arm(planned: Planned, data: Data, engine: Engine, stored: frozenset[Tap], *, runs: bool) -> list[str]:
    """Notes on an arm after one real step of each of its stages; ``runs``: its teacher is a network."""
    stages, networks, training = planned
    workspace = Workspace(data, training, engine)
    notes = [note for stage in stages for note in stage.notes]
    notes += first_step(stages, networks, workspace, stored=stored)
    if not runs:
        return notes
    losses = [loss for stage in stages for loss in stage.losses]
    for module in (*networks.values(), *losses):
        engine.place(module)
    batch = workspace.spread(min(SAMPLES, training.batch_size, len(workspace.samples)))
    return [*notes, *meaningless(stages, networks, batch)]


def _work(
    arm: str, method: str, stages: Sequence[Stage], training: Training, data: Data, costs: Mapping[str, int]
) -> float:
    """The approximate multiply-accumulates of an arm, where a backward pass counts as two forward passes."""
    learns = costs["teacher"] if arm in ("teacher", "member") else costs["student"]
    read = sum(costs.values()) - learns if arm == method else 0
    return float(sum(stage.epochs for stage in stages) * len(data.train) * (3 * learns + read))


def resolved(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe, with each ``auto`` as the run in the folder decided it.

    Raises:
        RecipeError: the folder's recipe is damaged.
    """
    file = folder / RECIPE
    if not file.is_file():
        return recipe
    known = reread(file)
    update = {key: getattr(known, key) for key in ("device", "precision") if getattr(recipe, key) == "auto"}
    if recipe.cache.use in ("auto", known.cache.use):
        said = recipe.cache.model_dump(exclude_none=True, exclude={"use"})
        update["cache"] = known.cache.model_copy(update=said)
    return recipe.model_copy(update=update)


def resolve_auto(
    recipe: Recipe,
    stages: Sequence[Stage],
    networks: Mapping[str, nn.Module],
    data: Data,
    training: Training,
    folder: Path,
    *,
    table: bool,
) -> tuple[CacheBlock, Engine]:
    """Decide every `auto` of the recipe's cache and engine for these stages of its method.

    With ``table``, the teacher is a table of soft labels, and nothing is stored. ``folder`` is the run's.

    Raises:
        LimbeckError: a setting is not possible; see `decide` and `resolve_precision`.
    """
    if recipe.compile not in (True, False):
        raise LimbeckError(f"compile is {recipe.compile!r}: allowed are True and False")
    sizes = shapes(networks, teacher_taps(stages), example_batch(data))
    cache = decide(
        CacheBlock(use=False) if table else recipe.cache,
        stages,
        training,
        len(data.train),
        sizes.__getitem__,
        free=free_bytes(Path(recipe.cache.folder or folder)),
        transformed=data.train.transform is not None,
    )
    plain = make_engine(device=recipe.device, precision="32")
    batches = training_batches(data, cached(training, cache), seed=recipe.seeds[0], engine=plain)
    return cache, resolve_precision(
        stages,
        networks,
        batches,
        device=recipe.device,
        precision=recipe.precision,
        compile=recipe.compile,
        stored=teacher_taps(stages) if cache.use else frozenset(),
    )
