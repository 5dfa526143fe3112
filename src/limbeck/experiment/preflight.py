"""What happens before a run: every network is built, every layer read once, and every `auto` decided."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from limbeck.cache.building import free_bytes
from limbeck.core import LimbeckError, Method, Stage, Tap
from limbeck.data import Data
from limbeck.evaluate import macs
from limbeck.experiment.arms import arms_of, block_of, check_task, method_of, needed, training_of
from limbeck.experiment.caching import cached, decide, soft_label_table, teacher_taps
from limbeck.experiment.checks import check_student, check_teacher, refuse_shared
from limbeck.experiment.data_checks import check_range, check_splits
from limbeck.experiment.first_batch import first_batch
from limbeck.experiment.first_step import first_step
from limbeck.experiment.networks import check_use, ensemble, teaches
from limbeck.experiment.plan import plan
from limbeck.experiment.prepared import Prepared
from limbeck.experiment.runfiles import RECIPE
from limbeck.experiment.several import as_begun, check_division
from limbeck.experiment.terms import SAMPLES, meaningless
from limbeck.experiment.verdicts import OF_TEACHER, Note, skipped
from limbeck.experiment.workspace import Training, Workspace, example_batch, training_batches
from limbeck.methods import METHODS
from limbeck.models.functions import calls_function
from limbeck.options import Block, fill
from limbeck.recipe.blocks import CacheBlock, Recipe
from limbeck.recipe.read import reread
from limbeck.taps import shapes
from limbeck.train.engine import Engine, make_engine, pick_device
from limbeck.train.freeze import frozen_parts
from limbeck.train.quantise import STAGE as QUANTISE
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
    epochs: Mapping[str, int]  # by arm: those in which its student learns
    memory: Mapping[str, int]  # by arm: bytes of what learns, with its gradients and two numbers of the optimizer each
    notes: tuple[Note, ...]  # what a user should know before anything is trained


Planned = tuple[tuple[Stage, ...], Mapping[str, nn.Module], Training]
"""An arm's stages, the networks that it uses, and its training."""


@dataclass(frozen=True)
class Built:
    """The networks of the first seed, and every training that they take part in."""

    networks: Mapping[str, nn.Module]
    members: Sequence[nn.Module]  # of the teacher; one if it is not an ensemble
    trainings: Mapping[str, Planned]  # by arm: the teacher or one member of an ensemble, then the student's arms
    notes: tuple[Note, ...]  # of `refuse_shared`
    unfit: Mapping[str, str]  # the methods to compare that these networks cannot have, with the reason


def preflight(recipe: Recipe, data: Data, factory: Prepared, folder: Path, own: Mapping[str, Method]) -> Preflight:
    """Build every network, plan every arm and read every tap.

    ``own`` has the functions of the caller that names of methods stand for. ``folder`` is the run's.

    Raises:
        LimbeckError: a file, a network, a layer or an option is wrong.
    """
    block = recipe.teacher
    check_task(recipe, data.task)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seeds[0])  # the same notes on new networks in each start
        made = built(recipe, data, factory, own)
        recipe = _fitting(recipe, made.unfit)
        method = recipe.method["name"]
        networks, trainings = made.networks, made.trainings
        notes = [Note(f"{name} is left out: {why}") for name, why in made.unfit.items()]
        notes += [*made.notes, *check_range(networks, data), *check_splits(data, allow=recipe.allow)]
        notes += check_student(networks["student"], data)
        stages, training = trainings[method][0], trainings[method][2]
        table = soft_label_table(block, data, training) if block is not None else None
        compared = [stage for block in recipe.methods for stage in trainings[block["name"]][0]]
        check_use(recipe, compared or stages, networks.keys() - {"student", "teacher"})
        if block is not None and block.shard:
            check_division(method, stages, networks, data)
        cache, engine = resolve_auto(recipe, stages, networks, data, training, folder, table=table is not None)
        if block is not None and block.is_trained:
            learns = teaches(stages)
            if block.listed:
                notes += _check_members(made.members, data, engine, allow=recipe.allow, learns=learns)
            else:
                notes += check_teacher(networks["teacher"], data, engine, allow=recipe.allow, learns=learns)
            if not cache.use and calls_function(networks["teacher"]):
                slow = "the teacher is called in every epoch, which may be slow: cache: true stores its outputs"
                notes.append(Note(slow))
        else:
            notes += skipped("no trained teacher is given", *OF_TEACHER)
        stored = teacher_taps(stages) if cache.use or table else frozenset[Tap]()
        for arm, planned in trainings.items():
            own_arm = arm == method
            notes += _try_arm(
                planned, data, engine, stored if own_arm else frozenset(), runs=table is None or not own_arm
            )
        if cache.use:  # the steps that were tried have no reader of the teacher
            inputs, teacher = example_batch(data).inputs.to(engine.device), engine.place(networks["teacher"])
            note = network_reader(teacher, tuple(stored), inputs, engine)[1]
            notes += [Note(note)] if note else []
        rest = [f"student.{part}" if part else "student" for part in frozen_parts(networks["student"])]
        if rest:
            notes.append(Note(f"not trained, because requires_grad is False: {', '.join(rest)}"))
        costs = {name: macs(network, data.shape) or 0 for name, network in networks.items()}
    device = pick_device(recipe.device).type
    picked = {"device": device, "precision": engine.precision, "compile": engine.compile, "cache": cache}
    return Preflight(
        recipe=recipe.model_copy(update=picked),
        engine=engine,
        macs=sum(costs.values()),
        teaching={arm: teaches(planned) for arm, (planned, _, _) in trainings.items()},
        work={arm: _work(arm, trainings[arm][0], data, costs, reads=arm == method and not stored) for arm in trainings},
        epochs={
            arm: sum(one.epochs for one in planned if "student" in one.networks and one.name != QUANTISE)
            for arm, (planned, _, _) in trainings.items()
        },
        memory={arm: 4 * _bytes(planned) for arm, planned in trainings.items()},
        notes=tuple(dict.fromkeys(notes)),
    )


def _bytes(planned: Planned) -> int:
    """Of the networks that learn and of the losses."""
    stages, networks, _ = planned
    learning = [networks[name] for name in dict.fromkeys(name for stage in stages for name in stage.networks)]
    modules = nn.ModuleList([*learning, *(loss for stage in stages for loss in stage.losses)])
    return sum(one.nbytes for one in (*modules.parameters(), *modules.buffers()))


def _check_members(
    members: Sequence[nn.Module], data: Data, engine: Engine, *, allow: Collection[str], learns: bool
) -> list[Note]:
    """Check each member as `check_teacher` checks a single teacher. The errors and notes name the member."""
    notes = list[Note]()
    for number, member in enumerate(members):
        try:
            found = check_teacher(member, data, engine, allow=allow, learns=learns)
        except LimbeckError as error:
            raise LimbeckError(f"member {number} of the teacher: {error}") from error
        notes += [note._replace(said=f"member {number} of the teacher: {note.said}") for note in found]
    return notes


def built(recipe: Recipe, data: Data, factory: Prepared, own: Mapping[str, Method]) -> Built:
    """Build every network of the first seed and plan every training.

    Raises:
        LimbeckError: a network, a layer or an option is wrong.
    """
    student, _, others = factory.student(recipe.seeds[0], recipe.method["name"])
    networks, members, block = {"student": student, **others}, list[nn.Module](), recipe.teacher
    if block is not None:
        members = factory.restored(block) or [factory.teacher(block)[0] for _ in range(block.new_members)]
        networks["teacher"] = ensemble(members, block, data.task)
    factory.prune(networks)
    notes = refuse_shared(networks, allow=recipe.allow)
    found: dict[str, Planned] = {}
    if block is not None and block.train is not None:
        taking_part = {"student": members[0]}
        try:
            training = training_of(block.train, data)
            stages = plan(METHODS["alone"], taking_part, data, training)
        except LimbeckError as error:
            raise LimbeckError(f"teacher.train: {error}") from error
        found["teacher" if block.new_members == 1 else "member"] = (stages, taking_part, training)
    training, unfit = training_of(recipe.train, data), dict[str, str]()
    for arm in arms_of(recipe):
        taking_part = needed(recipe, arm, networks)
        try:
            found[arm] = (plan(method_of(recipe, arm, own), taking_part, data, training), taking_part, training)
        except LimbeckError as error:
            if not recipe.methods:
                raise
            if not _by_default(block_of(recipe, arm)):  # the options may be wrong
                raise LimbeckError(f"{arm}: {error}") from error
            unfit[arm] = str(error)
    return Built(networks, members, found, tuple(notes), unfit)


def _by_default(block: Block) -> bool:
    """Whether the methods of a block are limbeck's, with their default options."""
    parts = block.get("parts", [block])
    return all(one["name"] in METHODS and one == fill(METHODS, one["name"], kind="method") for one in parts)


def _fitting(recipe: Recipe, unfit: Mapping[str, str]) -> Recipe:
    """The recipe with those of the methods to compare that its networks can have.

    Raises:
        LimbeckError: there are none, or the student cannot be trained alone.
    """
    if "alone" in unfit:
        raise LimbeckError(unfit["alone"])
    fitting = tuple(block for block in recipe.methods if block["name"] not in unfit)
    if unfit and not fitting:
        raise LimbeckError("; ".join(f"{name}: {why}" for name, why in unfit.items()))
    return recipe.model_copy(update={"method": fitting[0], "methods": fitting}) if fitting else recipe


def _try_arm(planned: Planned, data: Data, engine: Engine, stored: frozenset[Tap], *, runs: bool) -> list[Note]:
    """Notes on an arm after one real step of each of its stages; ``runs``: its teacher is a network."""
    stages, networks, training = planned
    workspace = Workspace(data, training, engine)
    notes = [Note(said) for stage in stages for said in stage.notes]
    notes += [Note(said) for said in first_step(stages, networks, workspace, stored=stored)]
    if not runs:
        return [*notes, *skipped("the teacher is a table of soft labels", "buffers", "terms", "gradients", "constant")]
    losses = [loss for stage in stages for loss in stage.losses]
    for module in (*networks.values(), *losses):
        engine.place(module)
    batch = workspace.spread(min(SAMPLES, training.batch_size, len(workspace.samples)))
    notes += [Note(said, "terms") for said in meaningless(stages, networks, batch)]
    return [*notes, *first_batch(stages, networks, batch)]


def _work(arm: str, stages: Sequence[Stage], data: Data, costs: Mapping[str, int], *, reads: bool) -> float:
    """The approximate multiply-accumulates of an arm, where a backward pass counts as two forward passes.

    With ``reads``, the other networks run at every step, and are not read from a store.
    """
    learns = costs["teacher"] if arm in ("teacher", "member") else costs["student"]
    read = sum(costs.values()) - learns if reads else 0
    return float(sum(stage.epochs for stage in stages) * len(data.train) * (3 * learns + read))


def resolved(recipe: Recipe, folder: Path, *, sizes: bool = True) -> Recipe:
    """The recipe, with each ``auto`` as the run in the folder decided it.

    With ``sizes``, several processes may have begun the run: each batch size ``per_device`` is as they decided it, too.

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
    found = recipe.model_copy(update=update)
    return as_begun(found, known) if sizes else found


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
    sharded = recipe.teacher is not None and recipe.teacher.shard
    device = "cpu" if sharded else recipe.device  # on which the whole teacher fits
    sizes = shapes(networks, teacher_taps(stages), example_batch(data))
    cache = decide(
        CacheBlock(use=False) if table or sharded else recipe.cache,
        stages,
        training,
        len(data.train),
        sizes.__getitem__,
        free=free_bytes(Path(recipe.cache.folder or folder)),
        transformed=data.train.transform is not None,
    )
    plain = make_engine(device=device, precision="32")
    batches = training_batches(data, cached(training, cache), seed=recipe.seeds[0], engine=plain)
    return cache, resolve_precision(
        stages,
        networks,
        batches,
        device=device,
        precision=recipe.precision,
        compile=recipe.compile,
        stored=teacher_taps(stages) if cache.use else frozenset(),
    )
